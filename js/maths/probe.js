// What a sampler does with its predictions and its noise, worked out from its moves. Port of what
// diffusion/probe.py finds by running a sampler: the two agree for the first-order samplers of samplers.js.

import { alpha, flowTime } from "./paths.js";
import { stepWeights } from "./step.js";

export const TOLERANCE = 0.03;      // of signal and noise, before the verdict calls a sampler wrong

/**
 * { weights, survival }: each prediction's weight in the picture and how much of the seed survives, by
 * carrying the state's share of the seed and of every velocity u_n through the run: x0 = (x - sigma u) /
 * (alpha + sigma), result = survival tau_1 eps - tau_1 sum of weight_n u_n.
 */
export function weights(moves, path) {
  const first = moves[0].sigma;
  let seed = first;
  let told = [];
  moves.forEach((move, n) => {
    const scale = lift(path, move);
    const [a, b] = stepWeights(path, move.sigma, move.next, move.kappa);
    const total = alpha(path, move.sigma) + move.sigma;
    const kept = scale * (a + b / total);
    seed *= kept;
    told = told.map((weight) => weight * kept);
    told[n] = (-b * move.sigma) / total;
  });
  const tau = flowTime(path, first);
  return { weights: told.map((weight) => -weight / tau), survival: seed / tau };
}

/**
 * [{ sigma, next, fresh, left }] by move: the share of the noise
 * that it renews, and the seed's share of the noise after it.
 */
export function noising(moves, path) {
  let left = 1;
  return moves.map((move) => {
    const kept = ((lift(path, move) * move.from) / move.sigma) * Math.sqrt(1 - move.kappa * move.kappa);
    left *= kept;
    return { sigma: move.sigma, next: move.next, fresh: Math.sqrt(Math.max(1 - kept * kept, 0)), left };
  });
}

/** What noising up to the move's level leaves of the state: its scale. */
function lift(path, move) {
  return move.sigma > move.from ? alpha(path, move.sigma) / alpha(path, move.from) : 1;
}
