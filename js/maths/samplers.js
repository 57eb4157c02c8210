// The moves of a first-order sampler with churn, with no model call. Port of diffusion/samplers.py at order
// 1; tcdShare is the port of tcd_share in nodes/sampling.py.
//
//   a move    { from, sigma, next, kappa }: noise up from `from` to `sigma`, predict, step down to `next`

import { timeOf } from "./models.js";
import { alpha, logSnr, sigmaAt } from "./paths.js";
import { freshShare, shareOf } from "./step.js";

/** The moves of a run; `kappa`, a number or a function (sigma, next) -> number, takes the place of churn. */
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
    const lifted = (move) => ({ ...move, sigma: raised(path, move, churn, sigmas[0]) });
    return moves.map((move, i) => (inside[i] ? lifted(move) : move));
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
  const extra = Array.from({ length: Math.floor(repeats) }, () => again).flat();
  return [...moves.slice(0, last), ...extra, ...moves.slice(last)];
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
