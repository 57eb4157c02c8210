// The automatic step grid: uniform in flow time, moved
// towards the noise. Port of diffusion/schedules/auto.py.

import { FLOW, alpha, atFlowTime, flowTime } from "./paths.js";

const LARGEST = 5;                                                  // shift of all pictures
const POWERS = [[5, 1], [10, 1.25], [Infinity, 1.5]];               // [up to that many steps, power]

/**
 * `steps` sigmas from `top` on; half: the model's sigma at
 * half its time; dimension: how many numbers a sample has.
 */
export function automatic(path, steps, top, half, dimension) {
  const own = path === FLOW ? half / alpha(path, half) : 1;         // the shift of a flow model
  const known = dimension !== undefined;
  const shift = known ? Math.min(LARGEST, 0.45 * dimension ** 0.35) : Math.max(LARGEST, own);
  const power = POWERS.find(([most]) => steps <= most)[1];
  const levels = [top];
  for (let i = 1; i < steps; i++) {
    const time = (1 - i / steps) ** power;
    const moved = (shift * time) / (1 + (shift - 1) * time);
    levels.push(atFlowTime(path, moved * flowTime(path, top)));
  }
  return levels;
}
