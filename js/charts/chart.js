// A small chart for a node: lines with dots, bars and rings on a canvas, with a hairline and a tooltip of
// values. Drawn once a frame at most, in ComfyUI's colours, sharp at every zoom of the graph.
//
//   const chart = makeChart();        chart.element, chart.head for controls, chart.place for what lies on it
//   chart.show({
//     label,                              what it shows, in words
//     x: { from, to, ticks: [{ at, text }] },
//     y: { low, high },                   widen the range of the values
//     series: [{ name, colour: 0-5, points: [[x, y]], kind, wide, shift }],
//                                         kind: "line" | "dots" | "both" | "bars" | "rings" | "level"
//     tips: [{ x, lines }],               what is told of a place, from left to right
//     note, empty,                        small print; a sentence in the place of the chart
//   });

import { make, mark, say } from "../dom.js";
import {
  drawBars, drawDots, drawHairline, drawLine, drawRings, drawSentence, drawTicks, drawValues, roomyTicks,
} from "./draw.js";
import { axis, label } from "./scale.js";
import { coloursOf, keyOf, makeSurface, moveOf, SERIES } from "./surface.js";

const FONT = "10px Inter, system-ui, sans-serif";
const [TOP, RIGHT, BOTTOM] = [8, 8, 17];
const ENDLESS = 10;         // pixels of room for what lies at infinity
const LOW = 120;            // pixels of height with fewer ticks
const BROADEST = 70;        // pixels of a place with bars
const WIDTH = 1.75;         // of a line
const RING = 6;             // radius
const HAIRLINE = [2, 3];
const TOLD = 24;            // tips that a screen reader is told
const BESIDE = 10;          // pixels from the hairline to the tip

export function makeChart() {
  const canvas = make("canvas", "", { role: "img", tabIndex: 0 });
  const tip = make("output", "tip", { hidden: true });
  const place = make("div", "nodeplot-place", {}, canvas, tip);
  const legend = make("span", "nodeplot-row", {});
  const head = make("div", "nodeplot-head", {}, legend, make("span", "nodeplot-space"));
  const note = make("div", "nodeplot-note", {});
  const element = make("div", "nodeplot", {}, head, place, note);
  const surface = makeSurface(place, canvas, draw, { zooms: true });
  let [spec, area, at] = [null, null, null];

  function draw(context, width, height) {
    if (!spec) {
      return;
    }
    context.font = FONT;
    const colours = coloursOf(element);
    area = spec.empty ? null : layOut(context, spec, width, height);
    if (area) {
      drawChart(context, area, colours);
    } else {
      drawSentence(context, spec.empty, [width / 2, height / 2], width - 24, colours.of("muted"));
    }
    tell();
    chart.onDrawn?.();
  }

  function drawChart(context, { x, y, ...box }, colours) {
    const muted = colours.of("muted");
    drawValues(context, box, box.ticks, y, { colour: muted, grid: colours.of("line") });
    drawTicks(context, box, roomyTicks(context, spec.x.ticks, x, box.right + RIGHT), muted);
    if (at !== null && spec.tips[at]) {
      drawHairline(context, box, x(spec.tips[at].x), muted, HAIRLINE);
    }
    for (const series of spec.series) {
      drawSeries(context, series, area, colours);
    }
  }

  function tell() {
    const found = area && at !== null ? spec.tips[at] : null;
    tip.hidden = !found;
    if (!found) {
      return;
    }
    say(tip, found.lines.join("\n"));
    const x = area.x(found.x);
    const fits = x + BESIDE + tip.offsetWidth <= place.clientWidth;
    tip.style.left = `${Math.max(0, fits ? x + BESIDE : x - BESIDE - tip.offsetWidth)}px`;
  }

  function point(event) {
    if (!area || !spec.tips.length) {
      return;
    }
    const x = area.shareAt(surface.pixel(event)[0]);
    const far = spec.tips.map((one) => Math.abs(one.x - x));
    look(far.indexOf(Math.min(...far)));
  }

  function look(index) {
    if (at === index) {
      return;
    }
    at = index;
    surface.dirty();
  }

  function onKey(event) {
    const last = (spec?.tips.length ?? 0) - 1;
    if (last < 0) {
      return;
    }
    const [before, after] = [(at ?? last + 1) - 1, (at ?? -1) + 1];
    const moves = { ArrowLeft: before, ArrowRight: after, Home: 0, End: last, Escape: null };
    const move = moveOf(event, moves);
    if (move !== undefined) {
      look(move === null ? null : Math.min(Math.max(move, 0), last));
    }
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", () => look(null));
  canvas.addEventListener("blur", () => look(null));
  canvas.addEventListener("keydown", onKey);

  const chart = {
    element, head, place, note, onDrawn: null,
    open: surface.open,
    close: surface.close,
    show(next) {
      spec = { tips: [], series: [], ...next };
      if (at !== null && at >= spec.tips.length) {
        at = null;
      }
      const named = spec.series.filter((series) => series.name);
      legend.replaceChildren(...named.map((series) => keyOf(series.name, colourOf(series))));
      say(note, spec.note ?? "");
      note.title = spec.note ?? "";
      note.hidden = !spec.note;
      const tips = spec.tips.slice(0, TOLD).map((one) => one.lines.join(", "));
      mark(canvas, "aria-label", [spec.label, ...tips].join(". "));
      surface.dirty();
    },
    /** Draw again where the graph was zoomed since. */
    refresh() {
      if (spec) {
        surface.refresh();
      }
    },
    /** Pixels in `place` of a value, and the value at pixels of the page; null before anything is drawn. */
    pixels: (x, y) => (area ? [area.x(x), area.y(y)] : null),
    values(clientX, clientY) {
      const [x, y] = surface.pixel({ clientX, clientY });
      return area ? [area.shareAt(x), area.valueAt(y)] : null;
    },
  };
  return chart;
}

/**
 * Where values lie: { left, top, right, bottom, x(value), y(value), shareAt(pixel), valueAt(pixel), ticks }.
 */
function layOut(context, { x, y = {}, series }, width, height) {
  const values = series.flatMap((one) => one.points.map((point) => point[1]));
  const known = series.some((one) => one.kind === "bars") ? [0, ...values] : values;      // bars begin at 0
  const finite = [...known, y.low, y.high].filter(Number.isFinite);
  const range = finite.length ? finite : [0, 1];
  const scale = axis(Math.min(...range), Math.max(...range), height < LOW ? 3 : 4);
  const endless = known.some((value) => Math.abs(value) === Infinity) ? ENDLESS : 0;
  const wide = Math.max(...scale.ticks.map((tick) => context.measureText(label(tick)).width));
  const [left, right] = [wide + 8, width - RIGHT];
  const [top, bottom] = [TOP + endless, height - BOTTOM - endless];
  const span = x.to - x.from || 1;
  const [above, below] = [TOP, height - BOTTOM - 2];        // where infinities lie
  return {
    left, right, top: TOP, bottom: height - BOTTOM, ticks: scale.ticks,
    x: (value) => left + ((value - x.from) / span) * (right - left),
    y(value) {
      if (Math.abs(value) === Infinity) {
        return value > 0 ? above : below;
      }
      return bottom - scale.at(value) * (bottom - top);
    },
    shareAt: (pixel) => x.from + ((pixel - left) / (right - left)) * span,
    valueAt: (pixel) => scale.value((bottom - pixel) / (bottom - top)),
  };
}

/** The name of a series' colour; there are only so many. */
function colourOf({ kind, colour = 0 }) {
  return kind === "level" ? "muted" : SERIES[colour % SERIES.length];
}

function drawSeries(context, series, area, { of, paper }) {
  const { kind = "both", points } = series;
  const colour = of(colourOf(series));
  const known = points.filter((point) => point[1] !== null);
  const places = known.map(([x, y]) => [area.x(x), area.y(y), Math.abs(y) === Infinity]);
  const inside = places.filter((place) => !place[2]);
  if (kind === "bars") {
    drawBarsOf(context, series, area, colour);
  }
  if (kind === "line" || kind === "both") {
    drawLine(context, inside, { colour, width: WIDTH, join: "round" });
    places.forEach((place, i) => {
      if (i && place[2] !== places[i - 1][2]) {       // to where it goes without end
        drawLine(context, [places[i - 1], place], { colour, width: WIDTH, join: "round", dashed: true });
      }
    });
  }
  if (kind === "level") {      // no values, but a height that they are held against
    drawLine(context, inside, { colour: of("muted"), width: WIDTH, dashed: true });
  }
  if (kind === "rings") {
    drawRings(context, places, RING, colour);
  }
  if (kind === "dots" || kind === "both") {
    const radius = radiusOf(places.length);
    drawDots(context, inside, radius, colour);
    drawRings(context, places.filter((place) => place[2]), radius, colour, paper);
  }
}

/** Of the dots of a series: the more there are, the smaller. */
function radiusOf(count) {
  if (count > 60) {
    return 1.5;
  }
  return count > 24 ? 2.25 : 3.25;
}

function drawBarsOf(context, { points, wide = 0.8, shift = 0 }, area, colour) {
  const one = area.x(1) - area.x(0);
  const scale = Math.min(one, BROADEST) / one;
  const known = points.filter(([, y]) => Number.isFinite(y));
  const places = known.map(([x, y]) => [area.x(x + shift * scale), area.y(y)]);
  drawBars(context, places, area.y(0), Math.max(1, wide * scale * one), colour);
}
