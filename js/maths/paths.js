// Paths: how much signal is left at a noise level. Port of
// diffusion/paths.py, for numbers in place of tensors.
//
// name                  alpha              largest sigma
// variance exploding    1                  unbounded
// flow                  1 - sigma          1
// variance preserving   sqrt(1-sigma^2)    1

export const FLOW = "flow";
export const EXPLODING = "variance exploding";
export const PRESERVING = "variance preserving";

export function largest(path) {
  return path === EXPLODING ? Infinity : 1;
}

export function alpha(path, sigma) {
  if (path === FLOW) {
    return 1 - sigma;
  }
  return path === PRESERVING ? Math.sqrt(Math.max(0, 1 - sigma * sigma)) : 1;
}

/** lambda = log(alpha / sigma); -Infinity at pure noise, Infinity at data. */
export function logSnr(path, sigma) {
  return Math.log(alpha(path, sigma)) - Math.log(sigma);
}

/** The noise level of a given lambda: inverse of `logSnr`. */
export function sigmaAt(path, lambda) {
  if (path === FLOW) {
    return 1 / (1 + Math.exp(lambda));
  }
  return path === PRESERVING ? Math.sqrt(1 / (1 + Math.exp(2 * lambda))) : Math.exp(-lambda);
}

/** sigma / (alpha + sigma), the time of the flow path (shift 1) at the same lambda. */
export function flowTime(path, sigma) {
  return sigma / (alpha(path, sigma) + sigma);
}

export function atFlowTime(path, time) {
  return sigmaAt(path, Math.log(1 - time) - Math.log(time));
}
