// A canvas that fills a place of the page, for a chart to be drawn on: sharp,
// drawn once a frame at most, and again when its size or the theme changes; and
// what charts need of the page beside: colours, keys of a legend, the keyboard.

import { make } from "../dom.js";

/** The colours of series by their number, as theme.css names them. */
export const SERIES = ["first", "second", "third", "fourth", "fifth", "sixth"];

const SHARPEST = 6;         // pixels of the canvas for one of the page, at most,
const COARSEST = 0.5;       // and with the graph far away
const NOTICED = 0.05;       // a change of zoom that is drawn anew

/**
 * { dirty(), refresh(), pixel(event), open(), close() } of a canvas in its place. draw(context, width,
 * height, ratio) is called with a clear canvas; ratio: pixels of the canvas for one of the page. zooms:
 * whether the place is on the graph.
 */
export function makeSurface(place, canvas, draw, { zooms = false } = {}) {
  const context = canvas.getContext("2d");
  let [frame, zoom] = [0, 0];

  const dirty = () => (frame ||= requestAnimationFrame(paint));
  const zoomNow = () => (zooms ? zoomOf(place) : 1);

  function paint() {
    frame = 0;
    const [width, height] = [place.clientWidth, place.clientHeight];
    if (!width || !height) {
      return;
    }
    zoom = zoomNow();
    const ratio = Math.min((devicePixelRatio || 1) * Math.max(zoom, COARSEST), SHARPEST);
    const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== across || canvas.height !== down) {
      [canvas.width, canvas.height] = [across, down];
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height, ratio);
  }

  const sizes = new ResizeObserver(dirty);
  const theme = new MutationObserver(dirty);        // a theme changes variables at the root

  return {
    dirty,
    /** Draw again where the graph was zoomed since. */
    refresh() {
      if (Math.abs(zoomNow() - zoom) > NOTICED * zoom) {
        dirty();
      }
    },
    /** [x, y] in the place of what has clientX and clientY on the page. */
    pixel({ clientX, clientY }) {
      const box = canvas.getBoundingClientRect();
      const scale = zoomNow() || 1;
      return [(clientX - box.left) / scale, (clientY - box.top) / scale];
    },
    open() {
      sizes.observe(place);
      for (const node of [document.documentElement, document.body]) {
        theme.observe(node, { attributes: true, attributeFilter: ["class", "style"] });
      }
    },
    close() {
      sizes.disconnect();
      theme.disconnect();
      cancelAnimationFrame(frame);
      frame = 0;
    },
  };
}

/** How much the graph's zoom magnifies an element. */
function zoomOf(element) {
  return element.offsetWidth ? element.getBoundingClientRect().width / element.offsetWidth : 1;
}

/** { of(name), paper }: the colours of theme.css where an element is, and what it is drawn on. */
export function coloursOf(element) {
  const style = getComputedStyle(element);
  return { of: (name) => style.getPropertyValue(`--fewstep-${name}`).trim(), paper: style.backgroundColor };
}

/** What tells in a legend which colour means what. */
export function keyOf(text, colour) {
  const key = make("span", "key", {}, text);
  key.style.setProperty("--colour", `var(--fewstep-${colour})`);
  return key;
}

/** What a key of the keyboard stands for in `moves`; undefined for others. The host does not see it then. */
export function moveOf(event, moves) {
  if (!(event.key in moves)) {
    return undefined;
  }
  event.preventDefault();
  event.stopPropagation();
  return moves[event.key];
}
