// The curve of Draw Schedule: the model's time over the share of the steps, a monotone cubic through control
// points. Port of diffusion/schedules/drawn.py.
//
// Points are [share, time]; the two ends [0, 1] and [1, 0] are not among them.

import { descending } from "./grids.js";

export const MOST_POINTS = 64;
const CLOSEST = 1e-4;             // between neighbours, in share and in time

/** The control points of a widget's text without the ends, or null where it is no curve. */
export function readPoints(text) {
  let points;
  try {
    points = JSON.parse(text);
  } catch {
    return null;
  }
  if (!Array.isArray(points) || points.length > MOST_POINTS || !points.every(isPair)) {
    return null;
  }
  if (points.length && points[0][0] === 0 && points[0][1] === 1) {
    points = points.slice(1);
  }
  if (points.length && points.at(-1)[0] === 1 && points.at(-1)[1] === 0) {
    points = points.slice(0, -1);
  }
  return falls(withEnds(points)) ? points : null;
}

function isPair(point) {
  return Array.isArray(point) && point.length === 2 && point.every(Number.isFinite);
}

/** Whether shares rise and times fall from each point to the next. */
function falls(points) {
  return points.slice(1).every(([share, time], i) => {
    const before = points[i];
    return share - before[0] >= CLOSEST && before[1] - time >= CLOSEST;
  });
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
    const left = (1 + 2 * s) * y[i] + s * h * m[i];
    const right = (1 + 2 * rest) * y[i + 1] - rest * h * m[i + 1];
    return rest * rest * left + s * s * right;
  };
}

/** The slope at each point, such that the cubic between two of them is monotone. */
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
