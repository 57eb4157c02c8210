// What every chart is drawn with, on a 2-D context that is handed in: axes, lines, dots, rings, bars,
// hairlines and sentences. Knows no page.
//
// An area is { left, top, right, bottom } in the pixels of the drawing. A place is [x, y] in the same pixels.
// Colours are what a context takes.

import { label } from "./scale.js";

const APART = 5;                // pixels between the area and what stands at its ticks
const ALONE = 3;                // between two of these, at least
const DASHES = [3, 3];
const LEADING = 14;             // of a sentence with several lines
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500];
const ROUND = 2 * Math.PI;

// ---- axes ------------------------------------------------------------------------------------------

/**
 * The ticks of a scale at the left or the right side, with lines across the area where `grid` is a colour.
 */
export function drawValues(context, area, ticks, y, { colour, grid = null, side = "left" }) {
  const left = side === "left";
  context.textAlign = left ? "right" : "left";
  context.textBaseline = "middle";
  context.strokeStyle = grid;
  context.lineWidth = 1;
  context.fillStyle = colour;
  for (const tick of ticks) {
    const at = Math.round(y(tick)) + 0.5;
    if (grid) {
      trace(context, [[area.left, at], [area.right, at]]);
    }
    context.fillText(label(tick), left ? area.left - APART : area.right + APART, at);
  }
}

/** Texts below the area: [{ at: pixel, text }]. */
export function drawTicks(context, area, ticks, colour) {
  context.fillStyle = colour;
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const { at, text } of ticks) {
    context.fillText(text, at, area.bottom + APART);
  }
}

/**
 * The ticks [{ at: value, text }] that there is room for, as [{ at: pixel, text }]: of whole numbers each
 * second, fifth, tenth, ..., none over another, and none beyond the pixel `edge`.
 */
export function roomyTicks(context, ticks, x, edge) {
  const whole = ticks.filter((tick) => /^\d+$/.test(tick.text));
  const wide = Math.max(0, ...whole.map((tick) => context.measureText(tick.text).width)) + 6;
  const apart = Math.min(...whole.slice(1).map((tick, i) => x(tick.at) - x(whole[i].at)));
  const every = STEPS.find((step) => step * apart >= wide) ?? 1000;
  const found = [];
  let free = -Infinity;
  for (const tick of ticks.filter((one) => !whole.includes(one) || Number(one.text) % every === 0)) {
    const half = context.measureText(tick.text).width / 2;
    const at = Math.min(x(tick.at), edge - half - 1);
    if (at - half >= free) {
      found.push({ at, text: tick.text });
    }
    free = Math.max(free, at + half + ALONE);
  }
  return found;
}

/** A line down the area. */
export function drawHairline(context, area, x, colour, dashes = []) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash(dashes);
  trace(context, [[x, area.top], [x, area.bottom]]);
  context.setLineDash([]);
}

// ---- series ----------------------------------------------------------------------------------------

/** A line through places; `dashed` where it is not known, or has no end. */
export function drawLine(context, places, { colour, width = 1, join = "bevel", dashed = false }) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = join;
  if (dashed) {
    context.setLineDash(DASHES);
  }
  trace(context, places);
  if (dashed) {
    context.setLineDash([]);
  }
}

export function drawDots(context, places, radius, colour) {
  context.fillStyle = colour;
  for (const [x, y] of places) {
    context.beginPath();
    context.arc(x, y, radius, 0, ROUND);
    context.fill();
  }
}

/** Rings, filled with `paper` where it is a colour. */
export function drawRings(context, places, radius, colour, paper = null) {
  context.strokeStyle = colour;
  context.fillStyle = paper;
  context.lineWidth = 1.5;
  for (const [x, y] of places) {
    context.beginPath();
    context.arc(x, y, radius, 0, ROUND);
    if (paper) {
      context.fill();
    }
    context.stroke();
  }
}

/** Bars of a width from `floor` to each place. */
export function drawBars(context, places, floor, width, colour) {
  context.fillStyle = colour;
  for (const [x, y] of places) {
    const height = Math.max(Math.abs(y - floor), y === floor ? 0 : 1);
    context.fillRect(x - width / 2, Math.min(y, floor), width, height);
  }
}

function trace(context, places) {
  context.beginPath();
  for (const [x, y] of places) {
    context.lineTo(x, y);       // the first moves there
  }
  context.stroke();
}

// ---- text ------------------------------------------------------------------------------------------

/** A sentence around a place, in lines of at most that width. */
export function drawSentence(context, text, [x, y], width, colour) {
  context.fillStyle = colour;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const lines = [[]];
  for (const word of text.split(/(?<=\s|[、。，])/)) {
    if (lines.at(-1).length && context.measureText([...lines.at(-1), word].join("")).width > width) {
      lines.push([]);
    }
    lines.at(-1).push(word);
  }
  lines.forEach((words, i) => {
    context.fillText(words.join("").trim(), x, y + (i - (lines.length - 1) / 2) * LEADING);
  });
}
