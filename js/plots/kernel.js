// The kernel of diffusion/samplers.py at order 1, for numbers: what a sampler with churn weighs, with no model call.
//
//   x_s = a x_t + b x0 + k z      the one step (diffusion/step.py)
//   plan -> moves                 {from, sigma, next, kappa}: noise up from `from` to `sigma`, predict, step to `next`
//   weights(moves, path)          each prediction's weight in the picture, and the seed's survival (diffusion/probe.py)
//   noising(moves, path)          where fresh noise comes in, and how much of the noise is still the seed's

import { timeOf } from "./models.js";
import { alpha, flowTime, logSnr, sigmaAt } from "./paths.js";

/** kappa = sqrt(1 - e^(-2 c h)), the share of fresh noise of a step; none into data, and from pure noise only where all is. */
export function freshShare(churn, path, sigma, next) {
  if (!(next > 0) || churn === 0) {
    return 0;
  }
  if (churn === Infinity) {
    return 1;
  }
  if (!(alpha(path, sigma) > 0)) {
    return 0;
  }
  const squared = -Math.expm1(-2 * churn * (logSnr(path, next) - logSnr(path, sigma)));
  return Math.sqrt(Math.min(Math.max(squared, 0), 1));
}

/** kappa of a step that goes down to `reached` and is noised back up to `next`. */
export function shareOf(path, reached, next) {
  const kept = (alpha(path, next) * reached) / (alpha(path, reached) * next);
  return Math.sqrt(Math.min(Math.max(1 - kept * kept, 0), 1));
}

/** TCD's share of fresh noise (sigma, next) -> kappa: down to (1 - gamma) of the next time, and back. */
export function tcdShare(gamma, { path, sigmaOf }) {
  return (sigma, next) => {
    if (!(next > 0) || gamma === 0) {
      return 0;
    }
    return shareOf(path, gamma < 1 ? sigmaOf((1 - gamma) * timeOf(sigmaOf, next)) : 0, next);
  };
}

/** [a, b, k] of the step. */
export function stepWeights(path, sigma, next, kappa = 0) {
  const a = (next * Math.sqrt(Math.max(1 - kappa * kappa, 0))) / sigma;
  return [a, alpha(path, next) - a * alpha(path, sigma), next * kappa];
}

/** The moves of a run; `kappa`, a number or a function (sigma, next) -> number, in the place of churn. */
export function plan(sigmas, path, { churn = 0, kappa = null, mode = "each step", start = 0, end = 1 } = {}) {
  const steps = sigmas.length - 1;
  const inside = sigmas.map((_, i) => start <= i / steps && i / steps < end);
  const share = (t, s) => {
    if (kappa === null) {
      return freshShare(churn, path, t, s);
    }
    if (!(s > 0)) {
      return 0;
    }
    return typeof kappa === "function" ? kappa(t, s) : kappa;
  };
  const moves = sigmas.slice(0, -1).map((t, i) => ({ from: t, sigma: t, next: sigmas[i + 1], kappa: 0 }));
  if (kappa !== null || mode === "each step") {
    return moves.map((move, i) => ({ ...move, kappa: inside[i] ? share(move.sigma, move.next) : 0 }));
  }
  if (mode === "raise first") {
    return moves.map((move, i) => (inside[i] ? { ...move, sigma: raised(path, move, churn, sigmas[0]) } : move));
  }
  return restarts(moves, inside, churn);
}

/** The level whose lambda is below the step's by churn times its lambda-length, at most `highest`. */
function raised(path, { sigma, next }, churn, highest) {
  if (!(next > 0) || !(alpha(path, sigma) > 0) || churn === 0) {
    return sigma;
  }
  const here = logSnr(path, sigma);
  return Math.min(sigmaAt(path, here - churn * (logSnr(path, next) - here)), highest);
}

function restarts(moves, inside, repeats) {
  const chosen = moves.flatMap((move, i) => (inside[i] && move.next > 0 ? [i] : []));
  if (!repeats || !chosen.length) {
    return moves;
  }
  const [first, last] = [chosen[0], chosen[chosen.length - 1] + 1];
  const again = [{ ...moves[first], from: moves[last].from }, ...moves.slice(first + 1, last)];
  return [...moves.slice(0, last), ...Array.from({ length: Math.floor(repeats) }, () => again).flat(), ...moves.slice(last)];
}

/** What noising up to the move's level leaves of the state: its scale. */
function lift(path, move) {
  return move.sigma > move.from ? alpha(path, move.sigma) / alpha(path, move.from) : 1;
}

/**
 * {weights, survival} by carrying the state's share of the seed and of every velocity u_n through the run:
 * x0 = (x - sigma u) / (alpha + sigma), result = survival tau_1 eps - tau_1 sum of weight_n u_n.
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

/** [{sigma, next, fresh, left}] by move: the share of the noise that it renews, and the seed's share of the noise after it. */
export function noising(moves, path) {
  let left = 1;
  return moves.map((move) => {
    const kept = ((lift(path, move) * move.from) / move.sigma) * Math.sqrt(1 - move.kappa * move.kappa);
    left *= kept;
    return { sigma: move.sigma, next: move.next, fresh: Math.sqrt(Math.max(1 - kept * kept, 0)), left };
  });
}
