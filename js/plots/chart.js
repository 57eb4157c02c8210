// A small chart for a node: lines with dots, bars and rings on a canvas, with a hairline and a tooltip of values. Drawn once a
// frame at most, in ComfyUI's colours, sharp at every zoom of the graph.
//
//   const chart = makeChart();        chart.element, chart.head (for controls), chart.place (for what lies on the canvas)
//   chart.show({
//     label,                                                 what it shows, in words
//     x: { from, to, ticks: [{ at, text }] },
//     y: { low, high, ends: [bottom, top] },                 low and high widen the range; ends name the infinite values
//     series: [{ name, colour: 0-2, points: [[x, y]], kind: "line" | "dots" | "both" | "bars" | "rings", wide, shift, faint }],
//     tips: [{ x, lines }],                                  what is told of a place, from left to right
//     note, empty,                                           small print; a sentence in the place of the chart
//   });

import { axis, label } from "../panel/axes.js";
import { make, mark, say } from "../panel/dom.js";

const COLOURS = ["first", "second", "third"];
const FONT = "10px Inter, system-ui, sans-serif";
const [TOP, RIGHT, BOTTOM] = [8, 8, 17];
const BROADEST = 70;      // pixels of a place with bars

export function makeChart() {
  const canvas = make("canvas", "", { role: "img", tabIndex: 0 });
  const tip = make("output", "nodeplot-tip", { hidden: true });
  const place = make("div", "nodeplot-place", {}, canvas, tip);
  const legend = make("span", "nodeplot-row", {});
  const head = make("div", "nodeplot-head", {}, legend, make("span", "nodeplot-space"));
  const note = make("div", "nodeplot-note", {});
  const element = make("div", "nodeplot", {}, head, place, note);
  const context = canvas.getContext("2d");
  let [spec, area, at, frame, zoom] = [null, null, null, 0, 0];

  const dirty = () => (frame ||= requestAnimationFrame(draw));

  function draw() {
    frame = 0;
    const [width, height] = [place.clientWidth, place.clientHeight];
    if (!spec || !width || !height) {
      return;
    }
    zoom = zoomOf(place);
    const ratio = Math.min((devicePixelRatio || 1) * Math.max(zoom, 0.5), 6);
    const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== across || canvas.height !== down) {
      [canvas.width, canvas.height] = [across, down];
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    const colours = coloursOf(element);
    area = spec.empty ? null : layOut(context, spec, width, height);
    if (area) {
      drawAxes(context, spec, area, colours);
      if (at !== null && spec.tips[at]) {
        hairline(context, area, spec.tips[at].x, colours.muted);
      }
      for (const series of spec.series) {
        drawSeries(context, series, area, colours);
      }
    } else {
      context.fillStyle = colours.muted;
      context.textAlign = "center";
      context.textBaseline = "middle";
      wrapped(context, spec.empty, width / 2, height / 2, width - 24);
    }
    tell();
    chart.onDrawn?.();
  }

  function tell() {
    const found = area && at !== null ? spec.tips[at] : null;
    tip.hidden = !found;
    if (!found) {
      return;
    }
    say(tip, found.lines.join("\n"));
    const x = area.x(found.x);
    const left = x + 10 + tip.offsetWidth <= place.clientWidth ? x + 10 : x - 10 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, left)}px`;
  }

  function point(event) {
    if (!area || !spec.tips.length) {
      return;
    }
    const x = area.shareAt((event.clientX - canvas.getBoundingClientRect().left) / (zoomOf(place) || 1));
    const far = spec.tips.map((one) => Math.abs(one.x - x));
    look(far.indexOf(Math.min(...far)));
  }

  function look(index) {
    if (at === index) {
      return;
    }
    at = index;
    dirty();
  }

  function onKey(event) {
    const last = (spec?.tips.length ?? 0) - 1;
    const moves = { ArrowLeft: (at ?? last + 1) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: last, Escape: null };
    if (!(event.key in moves) || last < 0) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    look(moves[event.key] === null ? null : Math.min(Math.max(moves[event.key], 0), last));
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.addEventListener("blur", () => look(null));
  canvas.addEventListener("keydown", onKey);
  const sizes = new ResizeObserver(dirty);
  const theme = new MutationObserver(dirty);      // a theme changes variables at the root

  const chart = {
    element, head, place, note, onDrawn: null,
    show(next) {
      spec = { tips: [], series: [], ...next };
      if (at !== null && at >= spec.tips.length) {
        at = null;
      }
      legend.replaceChildren(...spec.series.filter((series) => series.name).map(keyOf));
      say(note, spec.note ?? "");
      note.title = spec.note ?? "";
      note.hidden = !spec.note;
      mark(canvas, "aria-label", [spec.label, ...spec.tips.slice(0, 24).map((one) => one.lines.join(", "))].join(". "));
      dirty();
    },
    /** Draw again where the graph was zoomed since. */
    refresh() {
      if (spec && Math.abs(zoomOf(place) - zoom) > 0.05 * zoom) {
        dirty();
      }
    },
    /** Pixels in `place` of a value, and the value at pixels of the page; null before anything is drawn. */
    pixels: (x, y) => (area ? [area.x(x), area.y(y)] : null),
    values(clientX, clientY) {
      const box = canvas.getBoundingClientRect();
      const scale = zoomOf(place) || 1;
      return area ? [area.shareAt((clientX - box.left) / scale), area.valueAt((clientY - box.top) / scale)] : null;
    },
    look,
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
  return chart;
}

/** How much the graph's zoom magnifies an element. */
function zoomOf(element) {
  return element.offsetWidth ? element.getBoundingClientRect().width / element.offsetWidth : 1;
}

function keyOf(series) {
  const key = make("span", "nodeplot-key", {}, series.name);
  key.style.setProperty("--colour", `var(--fewstep-${COLOURS[series.colour ?? 0]})`);
  return key;
}

function coloursOf(element) {
  const style = getComputedStyle(element);
  const of = (name) => style.getPropertyValue(`--fewstep-${name}`).trim();
  return { series: COLOURS.map(of), grid: of("line"), muted: of("muted"), paper: style.backgroundColor };
}

/** Where values lie: {left, top, right, bottom, x(value), y(value), shareAt(pixel), valueAt(pixel), ticks}. */
function layOut(context, { x, y = {}, series }, width, height) {
  const known = series.flatMap((one) => [...one.points.map((point) => point[1]), ...(one.kind === "bars" ? [0] : [])]);
  const finite = [...known, y.low, y.high].filter(Number.isFinite);
  const range = finite.length ? finite : [0, 1];
  const scale = axis(Math.min(...range), Math.max(...range), height < 120 ? 3 : 4);
  const endless = known.some((value) => Math.abs(value) === Infinity) ? 10 : 0;      // room for what lies at infinity
  const wide = Math.max(...scale.ticks.map((tick) => context.measureText(label(tick)).width));
  const [left, top, right, bottom] = [wide + 8, TOP + endless, width - RIGHT, height - BOTTOM - endless];
  const span = x.to - x.from || 1;
  return {
    left, right, top: TOP, bottom: height - BOTTOM, ticks: scale.ticks,
    x: (value) => left + ((value - x.from) / span) * (right - left),
    y(value) {
      if (value === Infinity) {
        return TOP;
      }
      return value === -Infinity ? height - BOTTOM - 2 : bottom - scale.at(value) * (bottom - top);
    },
    shareAt: (pixel) => x.from + ((pixel - left) / (right - left)) * span,
    valueAt: (pixel) => scale.from + ((bottom - pixel) / (bottom - top)) * (scale.to - scale.from),
  };
}

function drawAxes(context, { x }, area, colours) {
  context.lineWidth = 1;
  context.strokeStyle = colours.grid;
  context.fillStyle = colours.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const tick of area.ticks) {
    const y = Math.round(area.y(tick)) + 0.5;
    line(context, [[area.left, y], [area.right, y]]);
    context.fillText(label(tick), area.left - 5, y);
  }
  context.textBaseline = "top";
  context.textAlign = "center";
  let free = -Infinity;
  for (const { at, text } of roomy(context, x.ticks, area)) {
    const half = context.measureText(text).width / 2;
    const place = Math.min(area.x(at), area.right + RIGHT - half - 1);
    if (place - half >= free) {
      context.fillText(text, place, area.bottom + 5);
    }
    free = Math.max(free, place + half + 3);
  }
}

/** The ticks that there is room for: of whole numbers each second, fifth, tenth, ... */
function roomy(context, ticks, area) {
  const whole = ticks.filter((tick) => /^\d+$/.test(tick.text));
  const wide = Math.max(0, ...whole.map((tick) => context.measureText(tick.text).width)) + 6;
  const apart = Math.min(...whole.slice(1).map((tick, i) => area.x(tick.at) - area.x(whole[i].at)));
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step * apart >= wide) ?? 1000;
  return ticks.filter((tick) => !whole.includes(tick) || Number(tick.text) % every === 0);
}

function hairline(context, area, x, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash([2, 3]);
  line(context, [[area.x(x), area.top], [area.x(x), area.bottom]]);
  context.setLineDash([]);
}

function drawSeries(context, series, area, colours) {
  const { kind = "both", points, faint } = series;
  const colour = colours.series[series.colour ?? 0];
  const places = points.filter((point) => point[1] !== null).map(([x, y]) => [area.x(x), area.y(y), Math.abs(y) === Infinity]);
  context.globalAlpha = faint ? 0.45 : 1;
  context.strokeStyle = context.fillStyle = colour;
  if (kind === "bars") {
    drawBars(context, series, area);
  }
  if (kind === "line" || kind === "both") {
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    line(context, places.filter((place) => !place[2]));
    context.setLineDash([3, 3]);      // to where it goes without end
    places.forEach((place, i) => {
      if (i && place[2] !== places[i - 1][2]) {
        line(context, [places[i - 1], place]);
      }
    });
    context.setLineDash([]);
  }
  if (kind !== "line" && kind !== "bars") {
    const radius = kind === "rings" ? 6 : places.length > 60 ? 1.5 : places.length > 24 ? 2.25 : 3.25;
    for (const [x, y, endless] of places) {
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      if (kind === "rings" || endless) {
        context.lineWidth = 1.5;
        context.fillStyle = colours.paper;
        if (endless) {
          context.fill();
        }
        context.stroke();
        context.fillStyle = colour;
      } else {
        context.fill();
      }
    }
  }
  context.globalAlpha = 1;
}

function drawBars(context, { points, wide = 0.8, shift = 0 }, area) {
  const floor = area.y(0);
  const one = area.x(1) - area.x(0);
  const scale = Math.min(one, BROADEST) / one;
  const width = Math.max(1, wide * scale * one);
  for (const [x, y] of points) {
    if (!Number.isFinite(y)) {
      continue;
    }
    const top = area.y(y);
    const height = Math.max(Math.abs(top - floor), y ? 1 : 0);
    context.fillRect(area.x(x + shift * scale) - width / 2, Math.min(top, floor), width, height);
  }
}

function line(context, places) {
  context.beginPath();
  places.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function wrapped(context, text, x, y, width) {
  const lines = [[]];
  for (const word of text.split(/(?<=\s|[、。，])/)) {
    if (context.measureText([...lines.at(-1), word].join("")).width > width && lines.at(-1).length) {
      lines.push([]);
    }
    lines.at(-1).push(word);
  }
  lines.forEach((words, i) => context.fillText(words.join("").trim(), x, y + (i - (lines.length - 1) / 2) * 14));
}
