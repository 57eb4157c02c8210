// Curves of any length, thinned to what a screen can show, and how they are drawn. Knows no DOM: a 2-d context is handed in.
//
// x is the training update, from 0 to `to`. A Curve keeps all its points and, for each pixel column of the present view, the lowest
// and the highest value, the sum and the count, so that a point more costs the same at 100 points and at 100,000.

import { axis, label, ticks } from "./axes.js";

const MARGIN = { left: 38, right: 38, top: 8, bottom: 18 };
const SMOOTHING = 1 / 20;         // half the window of the smooth line, of the filled width

export class Curve {
  constructor() {
    this.updates = new Float64Array(1024);
    this.values = new Float64Array(1024);
    this.length = 0;
    this.view(1, 1);
  }

  get last() {
    return this.length ? this.updates[this.length - 1] : 0;
  }

  /** points: [[update, value], ...]. An update that was there replaces what was from it on: a resumed run goes over it again. */
  append(points) {
    for (const [update, value] of points) {
      if (!Number.isFinite(update) || !Number.isFinite(value)) {
        continue;
      }
      if (this.length && update <= this.last) {
        this.cut(update);
      }
      if (this.length === this.values.length) {
        this.grow();
      }
      this.updates[this.length] = update;
      this.values[this.length] = value;
      this.count(this.length++);
    }
  }

  replace(points) {
    this.length = 0;
    this.rebuild();
    this.append(points);
  }

  /** Which updates are shown on how many pixel columns; counts anew only when that changed. */
  view(to, columns) {
    if (to === this.to && columns === this.columns) {
      return;
    }
    this.to = to;
    this.columns = columns;
    this.lows = new Float64Array(columns);
    this.highs = new Float64Array(columns);
    this.sums = new Float64Array(columns);
    this.counts = new Uint32Array(columns);
    this.rebuild();
  }

  column(update) {
    return Math.max(0, Math.min(this.columns - 1, Math.floor((update / this.to) * this.columns)));
  }

  /** Index of the first point at `update` or later. */
  find(update) {
    let [from, to] = [0, this.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.updates[middle] < update) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  }

  cut(update) {
    this.length = this.find(update);
    this.rebuild();
  }

  grow() {
    for (const name of ["updates", "values"]) {
      const larger = new Float64Array(2 * this[name].length);
      larger.set(this[name]);
      this[name] = larger;
    }
  }

  rebuild() {
    this.low = Infinity;
    this.high = -Infinity;
    this.lows.fill(Infinity);
    this.highs.fill(-Infinity);
    this.sums.fill(0);
    this.counts.fill(0);
    for (let i = 0; i < this.length; i++) {
      this.count(i);
    }
  }

  count(i) {
    const value = this.values[i];
    const column = this.column(this.updates[i]);
    if (value < this.lows[column]) {
      this.lows[column] = value;
    }
    if (value > this.highs[column]) {
      this.highs[column] = value;
    }
    if (value < this.low) {
      this.low = value;
    }
    if (value > this.high) {
      this.high = value;
    }
    this.sums[column] += value;
    this.counts[column]++;
  }

  /** The mean around each column: a window that fades to both sides, so that the line does not lag. */
  smooth() {
    const radius = Math.round(this.column(this.last) * SMOOTHING);
    const sums = box(box(this.sums, radius), radius);
    const counts = box(box(this.counts, radius), radius);
    return sums.map((sum, i) => Math.max(this.low, Math.min(this.high, sum / counts[i])));
  }
}

function box(values, radius) {
  const sums = new Float64Array(values.length);
  let sum = 0;
  for (let i = 0; i < Math.min(radius, values.length); i++) {
    sum += values[i];
  }
  for (let i = 0; i < values.length; i++) {
    if (i + radius < values.length) {
      sum += values[i + radius];
    }
    if (i > radius) {
      sum -= values[i - radius - 1];
    }
    sums[i] = sum;
  }
  return sums;
}

/** Up to which update to show: all that is planned, or a half, a quarter, ... of it while the run has not got there. */
export function reach(last, total, ended) {
  const end = Math.max(1, last);
  if (ended || !(total >= end)) {
    return end;
  }
  let to = total;
  while (to / 2 >= end) {
    to /= 2;
  }
  return to;
}

export function plotArea(width, height, ratio = 1) {
  const inner = Math.max(1, width - MARGIN.left - MARGIN.right);
  return { left: MARGIN.left, top: MARGIN.top, width: inner, height: Math.max(1, height - MARGIN.top - MARGIN.bottom),
    columns: Math.max(1, Math.round(inner * ratio)) };
}

/** What a column tells who points at it: {column, update, loss: {mean, low, high, count}, fidelity: {update, value}}. */
export function lookUp({ loss, fidelity }, column) {
  const nearest = nearestColumn(loss, column);
  const update = nearest === null ? ((column + 0.5) / loss.columns) * loss.to : ((nearest + 0.5) / loss.columns) * loss.to;
  const found = { column: nearest ?? column, update: Math.round(update), loss: null, fidelity: null };
  if (nearest !== null) {
    const count = loss.counts[nearest];
    found.loss = { mean: loss.sums[nearest] / count, low: loss.lows[nearest], high: loss.highs[nearest], count };
    if (count === 1) {
      found.update = loss.updates[loss.find((nearest / loss.columns) * loss.to)] ?? found.update;
    }
  }
  if (fidelity.length) {
    let i = Math.min(fidelity.length - 1, fidelity.find(found.update));
    if (i > 0 && found.update - fidelity.updates[i - 1] < fidelity.updates[i] - found.update) {
      i--;
    }
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

/** colours: {loss, fidelity, grid, text}; at: the column that is pointed at; shown: the update whose picture is shown. */
export function drawCurves(context, area, { loss, fidelity, to, colours, at = null, shown = null }) {
  const x = (update) => area.left + (update / to) * area.width;
  const middle = (column) => area.left + ((column + 0.5) / area.columns) * area.width;
  loss.view(to, area.columns);
  fidelity.view(to, area.columns);
  context.font = "10px sans-serif";
  context.lineJoin = "bevel";
  drawUpdates(context, area, x, to, colours);
  if (shown !== null) {
    vertical(context, area, x(shown), colours.grid, [2, 3]);
  }
  const height = (scale) => (value) => area.top + area.height * (1 - scale.at(value));
  if (loss.length) {
    const scale = axis(loss.low, loss.high);
    drawValues(context, area, scale, height(scale), colours, true);
    drawLoss(context, loss, middle, height(scale), colours.loss);
  }
  if (fidelity.length) {
    const scale = axis(fidelity.low, fidelity.high);
    drawValues(context, area, scale, height(scale), colours, false);
    drawFidelity(context, fidelity, x, height(scale), colours.fidelity);
  }
  if (at !== null) {
    vertical(context, area, middle(at), colours.text, []);
  }
}

function drawUpdates(context, area, x, to, colours) {
  context.fillStyle = colours.text;
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const update of ticks(0, to, Math.max(2, area.width / 70))) {
    if (Number.isInteger(update)) {
      context.fillText(label(update), x(update), area.top + area.height + 5);
    }
  }
}

function drawValues(context, area, scale, y, colours, left) {
  context.textAlign = left ? "right" : "left";
  context.textBaseline = "middle";
  context.strokeStyle = colours.grid;
  context.lineWidth = 1;
  context.fillStyle = left ? colours.loss : colours.fidelity;
  for (const value of scale.ticks) {
    const at = Math.round(y(value)) + 0.5;
    context.fillText(label(value), left ? area.left - 5 : area.left + area.width + 5, at);
    if (left) {
      line(context, [[area.left, at], [area.left + area.width, at]]);
    }
  }
}

function drawLoss(context, curve, x, y, colour) {
  const means = curve.smooth();
  const raw = [];
  const smooth = [];
  for (let i = 0; i < curve.columns; i++) {
    if (!curve.counts[i]) {
      continue;
    }
    raw.push([x(i), y(curve.lows[i])]);
    if (curve.counts[i] > 1) {
      raw.push([x(i), y(curve.highs[i])]);
    }
    smooth.push([x(i), y(means[i])]);
  }
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.globalAlpha = 0.35;
  line(context, raw);
  context.globalAlpha = 1;
  context.lineWidth = 1.5;
  line(context, smooth);
}

function drawFidelity(context, curve, x, y, colour) {
  const points = [];
  const few = 6 * curve.length <= curve.columns;
  if (few) {
    for (let i = 0; i < curve.length; i++) {
      points.push([x(curve.updates[i]), y(curve.values[i])]);
    }
  } else {
    for (let i = 0; i < curve.columns; i++) {
      const at = x(((i + 0.5) / curve.columns) * curve.to);
      if (curve.counts[i]) {
        points.push([at, y(curve.lows[i])], [at, y(curve.highs[i])]);
      }
    }
  }
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1.5;
  line(context, points);
  if (!few) {
    return;
  }
  for (const [across, down] of points) {
    context.beginPath();
    context.arc(across, down, 2.5, 0, 2 * Math.PI);
    context.fill();
  }
}

function vertical(context, area, at, colour, dash) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash(dash);
  line(context, [[at, area.top], [at, area.top + area.height]]);
  context.setLineDash([]);
}

function line(context, points) {
  context.beginPath();
  for (const [x, y] of points) {
    context.lineTo(x, y);
  }
  context.stroke();
}
