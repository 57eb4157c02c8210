// A curve of any length, thinned to what a screen can show.
//
// x is a whole number that rises, such as the training update, from 0 to `to`. A Curve keeps all its points
// and, for each pixel column of the present view, the lowest and the highest value, the sum and the count, so
// that a point more costs the same at 100 points and at 100,000.

const SMOOTHING = 1 / 20;         // half the window of the smooth line, of the filled width
const FIRST = 1024;               // points that there is room for at once

export class Curve {
  constructor() {
    this.updates = new Float64Array(FIRST);
    this.values = new Float64Array(FIRST);
    this.length = 0;
    this.view(1, 1);
  }

  get last() {
    return this.length ? this.updates[this.length - 1] : 0;
  }

  /**
   * points: [[update, value], ...]. An update that was there
   * replaces what was from it on: a resumed run goes over it again.
   */
  append(points) {
    for (const [update, value] of points) {
      if (!Number.isFinite(update) || !Number.isFinite(value)) {
        continue;
      }
      if (this.length && update <= this.last) {
        this.cut(update);
      }
      if (this.length === this.values.length) {
        this.grow();
      }
      this.updates[this.length] = update;
      this.values[this.length] = value;
      this.count(this.length++);
    }
  }

  replace(points) {
    this.length = 0;
    this.rebuild();
    this.append(points);
  }

  /** Which updates are shown on how many pixel columns; counts anew only when that changed. */
  view(to, columns) {
    if (to === this.to && columns === this.columns) {
      return;
    }
    this.to = to;
    this.columns = columns;
    this.lows = new Float64Array(columns);
    this.highs = new Float64Array(columns);
    this.sums = new Float64Array(columns);
    this.counts = new Uint32Array(columns);
    this.rebuild();
  }

  column(update) {
    return Math.max(0, Math.min(this.columns - 1, Math.floor((update / this.to) * this.columns)));
  }

  /** Index of the first point at `update` or later. */
  find(update) {
    let [from, to] = [0, this.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.updates[middle] < update) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  }

  cut(update) {
    this.length = this.find(update);
    this.rebuild();
  }

  grow() {
    for (const name of ["updates", "values"]) {
      const larger = new Float64Array(2 * this[name].length);
      larger.set(this[name]);
      this[name] = larger;
    }
  }

  rebuild() {
    this.low = Infinity;
    this.high = -Infinity;
    this.lows.fill(Infinity);
    this.highs.fill(-Infinity);
    this.sums.fill(0);
    this.counts.fill(0);
    for (let i = 0; i < this.length; i++) {
      this.count(i);
    }
  }

  count(i) {
    const value = this.values[i];
    const column = this.column(this.updates[i]);
    if (value < this.lows[column]) {
      this.lows[column] = value;
    }
    if (value > this.highs[column]) {
      this.highs[column] = value;
    }
    if (value < this.low) {
      this.low = value;
    }
    if (value > this.high) {
      this.high = value;
    }
    this.sums[column] += value;
    this.counts[column]++;
  }

  /** The mean around each column: a window that fades to both sides, so that the line does not lag. */
  smooth() {
    const radius = Math.round(this.column(this.last) * SMOOTHING);
    const sums = box(box(this.sums, radius), radius);
    const counts = box(box(this.counts, radius), radius);
    return sums.map((sum, i) => Math.max(this.low, Math.min(this.high, sum / counts[i])));
  }
}

function box(values, radius) {
  const sums = new Float64Array(values.length);
  let sum = 0;
  for (let i = 0; i < Math.min(radius, values.length); i++) {
    sum += values[i];
  }
  for (let i = 0; i < values.length; i++) {
    if (i + radius < values.length) {
      sum += values[i + radius];
    }
    if (i > radius) {
      sum -= values[i - radius - 1];
    }
    sums[i] = sum;
  }
  return sums;
}

/**
 * Up to which update to show: all that is planned, or a half,
 * a quarter, ... of it while the run has not got there.
 */
export function reach(last, total, ended) {
  const end = Math.max(1, last);
  if (ended || !(total >= end)) {
    return end;
  }
  let to = total;
  while (to / 2 >= end) {
    to /= 2;
  }
  return to;
}
