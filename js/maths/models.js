// What the times of a model are: sigmaOf, a rising function from time t in (0, 1] to sigma; sigmaOf(1) is the
// largest. Together with the path it is all that a step grid needs to know of a model.
//
// Port of the last part of diffusion/schedules/grids.py (flow_sigma, discrete_sigma, shifted, time_of), and
// of the tables of sigmas that are formulas. A model here is { path, sigmaOf }.

import { EXPLODING, FLOW } from "./paths.js";

const TOKENS = [256, 4096];      // of an image with the least and with the most shift
const PIXELS = 256;              // of a token

export function flowSigma(shift = 1) {
  return (t) => (shift * t) / (1 + (shift - 1) * t);
}

/**
 * t = (index + 1) / N into an ascending table, interpolated in
 * log sigma; below its first entry sigma falls to 0 with t.
 */
export function discreteSigma(sigmas) {
  const log = Array.from(sigmas, Math.log);
  return (t) => {
    const position = t * log.length;
    const index = Math.min(Math.max(position - 1, 0), log.length - 1);
    const [low, high] = [log[Math.floor(index)], log[Math.ceil(index)]];
    return Math.exp(low + (high - low) * (index - Math.floor(index))) * Math.min(position, 1);
  };
}

/**
 * From the server's description of a model: `times` in equal
 * steps from 0 to 1, log-linear between, linear down to 0.
 */
export function tableSigma(times, sigmas) {
  const last = times.length - 1;
  return (t) => {
    const low = Math.min(Math.max(Math.floor(t * last), 0), last - 1);
    const part = (t - times[low]) / (times[low + 1] - times[low]);
    const [a, b] = [sigmas[low], sigmas[low + 1]];
    return a > 0 ? a * (b / a) ** part : b * part;
  };
}

/** `sigmaOf` with more of its time near the start `top`. */
export function shifted(sigmaOf, shift, top = 1) {
  return shift === 1 ? sigmaOf : (t) => sigmaOf((shift * t) / (1 + ((shift - 1) * t) / top));
}

/** The time whose noise level is `sigma`, by bisection; 1 for levels above the largest. */
export function timeOf(sigmaOf, sigma) {
  if (!(sigma > 0)) {
    return 0;
  }
  let [low, high] = [0, 1];
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (sigmaOf(middle) < sigma) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return (low + high) / 2;
}

/**
 * The shift of a Flux model at a size in pixels, as ComfyUI's
 * ModelSamplingFlux has it: a line over the tokens.
 */
export function fluxShift(most, least, width, height) {
  const slope = (most - least) / (TOKENS[1] - TOKENS[0]);
  const tokens = (width * height) / PIXELS;
  return Number(Math.exp(tokens * slope + least - TOKENS[0] * slope).toPrecision(12));
}

// ---- tables that are formulas ----------------------------------------------------------------------

const range = (count, of) => Array.from({ length: count }, (_, i) => of(i));

/**
 * sigma/alpha of Stable Diffusion's 1000 steps (scaled linear betas);
 * `zeroSnr`: rescaled to end in pure noise (arXiv:2305.08891).
 */
export function stableDiffusion(zeroSnr = false) {
  const [first, last] = [Math.sqrt(0.00085), Math.sqrt(0.012)];
  let left = 1;
  const bar = range(1000, (i) => (left *= 1 - (first + ((last - first) * i) / 999) ** 2));
  if (!zeroSnr) {
    return bar.map((a) => Math.sqrt((1 - a) / a));
  }
  const [top, end] = [Math.sqrt(bar[0]), Math.sqrt(bar[999])];
  const scaled = bar.map((a) => (((Math.sqrt(a) - end) * top) / (top - end)) ** 2);
  scaled[999] = 4.8973451890853435e-8;      // what ComfyUI puts in the place of 0
  return scaled.map((a) => Math.sqrt((1 - a) / a));
}

/** The packaged epsilon teacher's: equal steps of the angle atan(sigma/alpha) between 1/40 and 40. */
export function demoTeacher() {
  const end = Math.atan(40);
  return range(1000, (i) => Math.tan(Math.PI / 2 - end + ((2 * end - Math.PI / 2) * i) / 999));
}

/** Equal steps of log sigma, as ComfyUI lists the levels of a continuous EDM model. */
export function continuous(low, high) {
  const [a, b] = [Math.log(low), Math.log(high)];
  return range(1000, (i) => Math.exp(a + ((b - a) * i) / 999));
}

// ---- models ----------------------------------------------------------------------------------------

const made = new Map();      // tables take a moment: kept by what they were made from

/** {path, sigmaOf} of {flow: shift}, {discrete: name, ...} or {table: {path, times, sigmas}}. */
export function modelFrom(spec) {
  if (spec.table) {
    return { path: spec.table.path, sigmaOf: tableSigma(spec.table.times, spec.table.sigmas) };
  }
  if (spec.flow !== undefined) {
    return { path: FLOW, sigmaOf: flowSigma(spec.flow) };
  }
  const key = [spec.discrete, spec.low, spec.high].join();
  if (!made.has(key)) {
    made.set(key, { path: EXPLODING, sigmaOf: discreteSigma(TABLES[spec.discrete](spec)) });
  }
  return made.get(key);
}

const TABLES = {
  "stable diffusion": () => stableDiffusion(),
  "zero snr": () => stableDiffusion(true),
  "demo teacher": () => demoTeacher(),
  continuous: ({ low, high }) => continuous(low, high),
};
