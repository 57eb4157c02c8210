// Step grids: where between noise and data the model is asked. Port of diffusion/schedules/grids.py, held
// equal to it by tests/js/test_grids.py; the papers that each grid comes from are named there.
//
//   grid(name, steps, model, { denoise, shift, ...options })
//
// answers steps + 1 sigmas, strictly descending, the last one
// 0. model = { path, sigmaOf }, see paths.js and models.js.

import { automatic } from "./auto.js";
import { shifted, timeOf } from "./models.js";
import { AYS } from "./published.js";
import { alpha, largest, logSnr, sigmaAt } from "./paths.js";

const NEARLY_DATA = 0.02;
const SIGNAL = -4.6;         // lambda where levels begin on a path whose scale is infinite at the start
const APART = 1e-4;          // least relative distance of neighbours
const ROUNDING = 1e-6;
const VANISHED = 1e-30;      // of a noise level
const PUBLISHED = "AYS ";    // how the names of published tables begin

export const OPTIONS = {
  karras: { rho: 7 },
  polyexponential: { rho: 1 },
  beta: { alpha: 0.6, beta: 0.6 },
  "trailing anchors": { anchors: 50 },
  "phase edges": { phases: 4 },
};
export const NAMES = [
  "uniform", "log-SNR", "log sigma", "karras", "polyexponential", "beta", "cosine",
  "trailing anchors", "phase edges", ...Object.keys(AYS).map((name) => `${PUBLISHED}${name}`), "auto",
];

export function grid(name, steps, model, { denoise = 1, shift = 1, ...given } = {}) {
  if (!NAMES.includes(name)) {
    throw new Error(`schedule must be one of ${NAMES.join(", ")}, got ${name}.`);
  }
  const options = { ...OPTIONS[name], ...given };
  const { path, sigmaOf } = model;
  const start = sigmaOf(denoise);
  const moved = shifted(sigmaOf, shift, denoise);
  let sigmas;
  if (name in TIMED) {
    sigmas = TIMED[name](steps, options).map((time) => moved(denoise * time));
  } else {
    sigmas = spaced(name, steps, path, sigmaOf, denoise, options);
    if (shift !== 1) {
      sigmas = sigmas.map((sigma) => moved(Math.min(timeOf(sigmaOf, sigma), denoise)));
    }
  }
  sigmas[0] = start;
  return descending([...sigmas, 0]);
}

const indices = (count) => Array.from({ length: count }, (_, i) => i);

// ---- grids that are times --------------------------------------------------------------------------

const TIMED = {
  uniform: (steps) => indices(steps).map((i) => 1 - i / steps),
  beta: (steps, { alpha: a, beta: b }) => indices(steps).map((i) => betaQuantile(1 - i / steps, a, b)),
  "trailing anchors": (steps, { anchors }) => anchored(anchors, steps),
  "phase edges": (steps, { phases }) => anchored(phases, steps),
};

function anchored(count, steps) {
  if (steps <= count) {
    return indices(steps).map((i) => 1 - Math.floor((i * count) / steps) / count);
  }
  return indices(count).flatMap((j) => {
    const parts = Math.floor(steps / count) + (j < steps % count ? 1 : 0);
    return indices(parts).map((i) => 1 - (j + i / parts) / count);
  });
}

const quantiles = new Map();

/** Quantile of Beta(a, b) at q, from a table of 20,000 midpoints in the angle asin(sqrt(x)). */
export function betaQuantile(q, a, b) {
  const key = `${a} ${b}`;
  if (!quantiles.has(key)) {
    if (quantiles.size > 20) {
      quantiles.clear();
    }
    quantiles.set(key, betaTable(a, b));
  }
  const { edges, total } = quantiles.get(key);
  let [low, high] = [0, total.length - 1];      // the first entry that is not below q
  while (low < high) {
    const middle = (low + high) >> 1;
    if (total[middle] < q) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const i = Math.max(low, 1);
  const part = (q - total[i - 1]) / Math.max(total[i] - total[i - 1], 1e-300);
  return Math.sin(edges[i - 1] + part * (edges[i] - edges[i - 1])) ** 2;
}

function betaTable(a, b) {
  const count = 20000;
  const edges = Float64Array.from({ length: count + 1 }, (_, i) => {
    const w = i / count;
    return (Math.PI / 2) * w * w * (3 - 2 * w);
  });
  const total = new Float64Array(count + 1);
  for (let i = 0; i < count; i++) {
    const middle = (edges[i] + edges[i + 1]) / 2;
    const density = Math.sin(middle) ** (2 * a - 1) * Math.cos(middle) ** (2 * b - 1);
    total[i + 1] = total[i] + density * (edges[i + 1] - edges[i]);
  }
  return { edges, total: total.map((value) => value / total[count]) };
}

// ---- grids that are noise levels -------------------------------------------------------------------

function spaced(name, steps, path, sigmaOf, denoise, options) {
  const share = indices(steps).map((i) => (steps > 1 ? i / (steps - 1) : 0));
  const [top, bottom] = [denoise, Math.min(NEARLY_DATA, denoise / 2)].map(sigmaOf);
  if (name === "auto") {
    return automatic(path, steps, top, sigmaOf(0.5), options.dimension);
  }
  if (name.startsWith(PUBLISHED)) {
    return published(AYS[name.slice(PUBLISHED.length)], steps, top, path);
  }
  if (name === "log sigma") {
    return share.map((s) => Math.exp(Math.log(top) + s * (Math.log(bottom) - Math.log(top))));
  }
  if (name === "cosine") {
    const high = Math.atan2(top, alpha(path, top));
    return indices(steps).map((i) => sigmaAt(path, -Math.log(Math.tan(high - (i / steps) * high))));
  }
  const most = largest(path) === 1 ? sigmaAt(path, SIGNAL) : Infinity;
  const [first, last] = [top, bottom].map((sigma) => logSnr(path, Math.min(sigma, most)));
  if (name === "karras") {
    const [high, low] = [first, last].map((snr) => Math.exp(-snr / options.rho));
    const root = (s) => Math.max(high + s * (low - high), low * (1 - ROUNDING));
    return share.map((s) => sigmaAt(path, -options.rho * Math.log(root(s))));
  }
  const rho = options.rho ?? 1;
  return share.map((s) => sigmaAt(path, last + (1 - s) ** rho * (first - last)));
}

/** A published table of sigma/alpha at equal places, log-linear between, from below `top`. */
function published(table, steps, top, path) {
  const known = table.map((level) => -Math.log(level));
  let snr = indices(steps).map((i) => {
    const place = (i * (known.length - 1)) / steps;
    const low = Math.min(Math.floor(place), known.length - 2);
    return known[low] + (place - low) * (known[low + 1] - known[low]);
  });
  const first = logSnr(path, top);
  if (first > snr[Math.min(1, steps - 1)]) {
    const end = known[known.length - 1];
    const scale = Math.max(end - first, 1e-3) / (end - snr[0]);
    snr = snr.map((value) => end - (end - value) * scale);
  }
  return snr.map((value) => sigmaAt(path, value));
}

/**
 * Equal or rising neighbours pulled apart by a relative 1e-4, and what vanished spread evenly down to the
 * last entry; the first and the last stay.
 */
export function descending(sigmas) {
  const out = [...sigmas];
  const last = out.length - 1;
  for (let i = 1; i < last; i++) {
    out[i] = Math.min(out[i], out[i - 1] * (1 - APART));
  }
  const least = Math.max(out[last] * (1 + ROUNDING), VANISHED);
  const lost = out.findIndex((level, i) => i > 0 && i < last && !(level > least));
  return lost > 0 ? spread(out, lost - 1) : out;
}

/** Equal steps from entry `start`, or from one before it that leaves room, to the last. */
function spread(levels, start) {
  const last = levels.length - 1;
  const step = (i) => (levels[i] - levels[last]) / (last - i);
  while (start > 0 && step(start) < ROUNDING * levels[start]) {
    start -= 1;
  }
  return levels.map((level, i) => (i > start && i < last ? levels[last] + step(start) * (last - i) : level));
}
