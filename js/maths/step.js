// The one step x_s = a x_t + b x0 + k z, and how much of its
// noise is fresh. Port of diffusion/step.py, for numbers.
//
// sigma is the level x_t is at, next the level x_s is at,
// kappa the share of fresh noise, churn c what sets it.

import { alpha, logSnr } from "./paths.js";

/**
 * kappa = sqrt(1 - e^(-2 c h)), the share of fresh noise of a step;
 * none into data, and from pure noise only where all of it is fresh.
 */
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

/** [a, b, k] of the step. */
export function stepWeights(path, sigma, next, kappa = 0) {
  const a = (next * Math.sqrt(Math.max(1 - kappa * kappa, 0))) / sigma;
  return [a, alpha(path, next) - a * alpha(path, sigma), next * kappa];
}
