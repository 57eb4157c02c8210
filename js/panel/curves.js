// The two curves of a run, loss to the left and fidelity (or another face of quality) to the right, each with
// its own scale, drawn with charts/draw.js on a context that is handed in. Knows no page.
//
// x is the training update, from 0 to `to`. loss and fidelity are Curves, see charts/curve.js; an area also
// has `columns`, the pixel columns of the screen that it covers.

import { drawDots, drawHairline, drawLine, drawRings, drawTicks, drawValues } from "../charts/draw.js";
import { axis, label, ticks } from "../charts/scale.js";

const MARGIN = { left: 38, right: 38, top: 8, bottom: 18 };
const FONT = "10px sans-serif";
const TICK = 70;              // pixels for a tick below
const WIDTH = 1.5;            // of a line
const RAW = 0.35;             // how strong what lies behind the smooth line is
const DOT = 2.5;              // radius
const ROOM = 6;               // columns for a point that has a dot
const SHOWN = [2, 3];         // dashes where the picture is of
const KEPT = 5;               // radius of the ring at the update that is kept
const REACH = 0.45;           // how strong an interval is drawn

/** The area of curves on a place of that size; ratio: pixels of the screen for one of the page. */
export function plotArea(width, height, ratio = 1) {
  const across = Math.max(1, width - MARGIN.left - MARGIN.right);
  const down = Math.max(1, height - MARGIN.top - MARGIN.bottom);
  return {
    left: MARGIN.left,
    top: MARGIN.top,
    right: MARGIN.left + across,
    bottom: MARGIN.top + down,
    columns: Math.max(1, Math.round(across * ratio)),
  };
}

/**
 * What a column tells who points at it: { column, update, loss:
 * { mean, low, high, count }, fidelity: { update, value } }.
 */
export function lookUp({ loss, fidelity }, column) {
  const nearest = nearestColumn(loss, column);
  const middle = (((nearest ?? column) + 0.5) / loss.columns) * loss.to;
  const found = { column: nearest ?? column, update: Math.round(middle), loss: null, fidelity: null };
  if (nearest !== null) {
    const count = loss.counts[nearest];
    const [low, high] = [loss.lows[nearest], loss.highs[nearest]];
    found.loss = { mean: loss.sums[nearest] / count, low, high, count };
    if (count === 1) {
      found.update = loss.updates[loss.find((nearest / loss.columns) * loss.to)] ?? found.update;
    }
  }
  if (fidelity.length) {
    const i = nearestPoint(fidelity, found.update);
    found.fidelity = { update: fidelity.updates[i], value: fidelity.values[i] };
  }
  return found;
}

function nearestColumn(curve, column) {
  for (let away = 0; away < curve.columns; away++) {
    if (curve.counts[column - away]) {
      return column - away;
    }
    if (curve.counts[column + away]) {
      return column + away;
    }
  }
  return null;
}

function nearestPoint(curve, update) {
  const i = Math.min(curve.length - 1, curve.find(update));
  const before = i > 0 && update - curve.updates[i - 1] < curve.updates[i] - update;
  return before ? i - 1 : i;
}

/**
 * colours: { loss, fidelity, grid, text }; at: the column that is pointed at; shown: the
 * update whose picture is shown; kept: the one that is saved; other: another run's fidelity;
 * ends: the intervals of what stands for fidelity, [[update, low, high]].
 */
export function drawCurves(context, area, what) {
  const { loss, fidelity, to, colours, at = null, shown = null, kept = null, other = null, ends = [] } = what;
  const x = (update) => area.left + (update / to) * (area.right - area.left);
  loss.view(to, area.columns);
  fidelity.view(to, area.columns);
  context.font = FONT;
  const updates = updatesOf(area, to).map((update) => ({ at: x(update), text: label(update) }));
  drawTicks(context, area, updates, colours.text);
  if (shown !== null) {
    drawHairline(context, area, x(shown), colours.grid, SHOWN);
  }
  if (loss.length) {
    const { scale, y } = scaleOf(loss, area);
    drawValues(context, area, scale.ticks, y, { colour: colours.loss, grid: colours.grid });
    drawLoss(context, loss, area, y, colours.loss);
  }
  if (fidelity.length) {
    const { scale, y } = scaleOf(reachOf(fidelity, other, ends), area);
    drawValues(context, area, scale.ticks, y, { colour: colours.fidelity, side: "right" });
    if (other?.length) {
      const inside = pointsOf(other, x, y).filter(([place]) => place <= area.right + 1);
      drawLine(context, inside, { colour: colours.text, dashed: true });
    }
    context.globalAlpha = REACH;
    for (const [update, low, high] of ends) {
      const upright = [[x(update), y(low)], [x(update), y(high)]];
      drawLine(context, upright, { colour: colours.fidelity, width: WIDTH });
    }
    context.globalAlpha = 1;
    drawFidelity(context, fidelity, x, y, colours.fidelity);
    const i = fidelity.find(kept ?? Infinity);
    if (i < fidelity.length && fidelity.updates[i] === kept) {
      drawRings(context, [[x(kept), y(fidelity.values[i])]], KEPT, colours.fidelity);
    }
  }
  if (at !== null) {
    drawHairline(context, area, middleOf(area, at), colours.text);
  }
}

const updatesOf = (area, to) =>
  ticks(0, to, Math.max(2, (area.right - area.left) / TICK)).filter(Number.isInteger);

/** The pixel in the middle of a column. */
export const middleOf = (area, column) =>
  area.left + ((column + 0.5) / area.columns) * (area.right - area.left);

/** The lowest and the highest value that the right scale has to hold. */
function reachOf(fidelity, other, ends) {
  const curves = other?.length ? [fidelity, other] : [fidelity];
  return {
    low: Math.min(...curves.map((curve) => curve.low), ...ends.map((end) => end[1])),
    high: Math.max(...curves.map((curve) => curve.high), ...ends.map((end) => end[2])),
  };
}

function scaleOf(curve, area) {
  const scale = axis(curve.low, curve.high);
  return { scale, y: (value) => area.top + (area.bottom - area.top) * (1 - scale.at(value)) };
}

/** All between the lowest and the highest value of each column, faint, and the smooth line over it. */
function drawLoss(context, curve, area, y, colour) {
  const means = curve.smooth();
  const raw = [];
  const smooth = [];
  for (let i = 0; i < curve.columns; i++) {
    if (!curve.counts[i]) {
      continue;
    }
    const x = middleOf(area, i);
    raw.push([x, y(curve.lows[i])]);
    if (curve.counts[i] > 1) {
      raw.push([x, y(curve.highs[i])]);
    }
    smooth.push([x, y(means[i])]);
  }
  context.globalAlpha = RAW;
  drawLine(context, raw, { colour });
  context.globalAlpha = 1;
  drawLine(context, smooth, { colour, width: WIDTH });
}

/** Every point with a dot while they are few, else the lowest and the highest of each column. */
function drawFidelity(context, curve, x, y, colour) {
  const few = ROOM * curve.length <= curve.columns;
  const points = few ? pointsOf(curve, x, y) : extremesOf(curve, x, y);
  drawLine(context, points, { colour, width: WIDTH });
  if (few) {
    drawDots(context, points, DOT, colour);
  }
}

function pointsOf(curve, x, y) {
  return Array.from({ length: curve.length }, (_, i) => [x(curve.updates[i]), y(curve.values[i])]);
}

function extremesOf(curve, x, y) {
  const points = [];
  for (let i = 0; i < curve.columns; i++) {
    if (curve.counts[i]) {
      const at = x(((i + 0.5) / curve.columns) * curve.to);
      points.push([at, y(curve.lows[i])], [at, y(curve.highs[i])]);
    }
  }
  return points;
}
