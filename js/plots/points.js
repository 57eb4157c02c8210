// What Draw Schedule's editor does to a list of control points. Points are [share, time] as in
// maths/drawn.js, and every function answers a new list, which is a curve if the given one is.

import { MOST_POINTS, withEnds } from "../maths/drawn.js";

const CLOSEST = 0.01;      // that the editor leaves between neighbours; a curve may have them closer
const DIGITS = 1e4;        // points are kept to four decimals

const round = (value) => Math.round(value * DIGITS) / DIGITS;

/** The points with one moved, as far as its neighbours let it. */
export function movePoint(points, index, share, time) {
  const whole = withEnds(points);
  const [before, after] = [whole[index], whole[index + 2]];
  const moved = [
    within(share, before[0] + CLOSEST, after[0] - CLOSEST),
    within(time, after[1] + CLOSEST, before[1] - CLOSEST),
  ];
  return points.map((point, i) => (i === index ? moved : point));
}

/** The nearest value from low to high; their middle where there is no room. */
function within(value, low, high) {
  return round(low > high ? (low + high) / 2 : Math.min(Math.max(value, low), high));
}

/** { points, index } with a new one, or null where there is no room for it. */
export function addPoint(points, share, time) {
  const index = points.filter((point) => point[0] < share).length;
  const whole = withEnds(points);
  const [before, after] = [whole[index], whole[index + 1]];
  const room = after[0] - before[0] >= 2 * CLOSEST && before[1] - after[1] >= 2 * CLOSEST;
  if (points.length >= MOST_POINTS || !room) {
    return null;
  }
  const more = [...points.slice(0, index), [share, time], ...points.slice(index)];
  return { points: movePoint(more, index, share, time), index };
}

export function removePoint(points, index) {
  return points.filter((_, i) => i !== index);
}
