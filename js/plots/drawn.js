// The curve of Draw Schedule: the model's time over the share of the steps, a monotone cubic through control points. The port of
// diffusion/drawn.py, and the moves of the editor on a list of points. Points are [share, time], the ends not among them.

import { descending } from "./grids.js";

export const CLOSEST = 0.01;      // that the editor leaves between neighbours; the node takes 1e-4
const LIMIT = 1e-4;
const MOST = 64;
const round = (value) => Math.round(value * 1e4) / 1e4;

/** The control points of a widget's text without the ends, or null where it is no curve. */
export function readPoints(text) {
  let points;
  try {
    points = JSON.parse(text);
  } catch {
    return null;
  }
  if (!Array.isArray(points) || points.length > MOST || !points.every((p) => Array.isArray(p) && p.length === 2
    && p.every(Number.isFinite))) {
    return null;
  }
  if (points.length && points[0][0] === 0 && points[0][1] === 1) {
    points = points.slice(1);
  }
  if (points.length && points.at(-1)[0] === 1 && points.at(-1)[1] === 0) {
    points = points.slice(0, -1);
  }
  const whole = withEnds(points);
  const falls = whole.every(([share, time], i) => !i || (share - whole[i - 1][0] >= LIMIT && whole[i - 1][1] - time >= LIMIT));
  return falls ? points : null;
}

export function writePoints(points) {
  return JSON.stringify(points);
}

export function withEnds(points) {
  return [[0, 1], ...points, [1, 0]];
}

/** time(share) of the curve through the points. */
export function curve(points) {
  const [x, y] = [0, 1].map((k) => withEnds(points).map((point) => point[k]));
  const m = slopes(x, y);
  return (share) => {
    let i = x.findIndex((value) => value > share) - 1;
    if (i < 0) {
      i = share < x[0] ? 0 : x.length - 2;
    }
    const h = x[i + 1] - x[i];
    const s = (share - x[i]) / h;
    const rest = 1 - s;
    return rest * rest * ((1 + 2 * s) * y[i] + s * h * m[i]) + s * s * ((1 + 2 * rest) * y[i + 1] - rest * h * m[i + 1]);
  };
}

function slopes(x, y) {
  const h = x.slice(1).map((value, i) => value - x[i]);
  const d = h.map((width, i) => (y[i + 1] - y[i]) / width);
  if (d.length === 1) {
    return [d[0], d[0]];
  }
  const inner = d.slice(1).map((d1, i) =>
    (3 * (h[i] + h[i + 1])) / ((h[i] + 2 * h[i + 1]) / d[i] + (2 * h[i] + h[i + 1]) / d1));
  const end = (h0, h1, d0, d1) => Math.min(0, ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1));
  return [end(h[0], h[1], d[0], d[1]), ...inner, end(h.at(-1), h.at(-2), d.at(-1), d.at(-2))];
}

/** steps + 1 sigmas of a model along the curve, from sigmaOf(denoise) to 0. */
export function drawnGrid(points, steps, { sigmaOf }, denoise = 1) {
  const time = curve(points);
  return descending([...Array.from({ length: steps }, (_, i) => sigmaOf(denoise * time(i / steps))), 0]);
}

// ---- editing ---------------------------------------------------------------------------------------

/** The points with one moved, as far as its neighbours let it. */
export function movePoint(points, index, share, time) {
  const whole = withEnds(points);
  const [before, after] = [whole[index], whole[index + 2]];
  const between = (value, low, high) => round(low > high ? (low + high) / 2 : Math.min(Math.max(value, low), high));
  const moved = [between(share, before[0] + CLOSEST, after[0] - CLOSEST), between(time, after[1] + CLOSEST, before[1] - CLOSEST)];
  return points.map((point, i) => (i === index ? moved : point));
}

/** {points, index} with a new one, or null where there is no room for it. */
export function addPoint(points, share, time) {
  const index = points.filter((point) => point[0] < share).length;
  const whole = withEnds(points);
  const [before, after] = [whole[index], whole[index + 1]];
  const room = after[0] - before[0] >= 2 * CLOSEST && before[1] - after[1] >= 2 * CLOSEST;
  if (points.length >= MOST || !room) {
    return null;
  }
  return { points: movePoint([...points.slice(0, index), [share, time], ...points.slice(index)], index, share, time), index };
}

export function removePoint(points, index) {
  return points.filter((_, i) => i !== index);
}
