// Scales with round ticks: linear, or logarithmic when the values span more than a decade.

/** { log, from, to, ticks, at(value) -> 0..1, value(0..1) } for values from low to high. */
export function axis(low, high, count = 4) {
  if (low > 0 && high / low > 10) {
    return logarithmic(low, high, count);
  }
  const room = low === high ? Math.abs(low) / 2 || 1 : 0;
  const step = roundStep((high - low + 2 * room) / count);
  const from = Math.floor((low - room) / step + 1e-9) * step;
  const to = Math.ceil((high + room) / step - 1e-9) * step;
  return {
    log: false,
    from,
    to,
    ticks: ticks(from, to, count + 1),
    at: (value) => (value - from) / (to - from),
    value: (share) => from + share * (to - from),
  };
}

function logarithmic(low, high, count) {
  const [from, to] = [low / 1.15, high * 1.15];
  const decades = Math.log10(to / from);
  const every = Math.ceil(decades / count);
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++) {
    for (const digit of digitsOf(decades)) {
      const value = Number(`${digit}e${power}`);
      if (value >= from && value <= to && power % every === 0) {
        found.push(value);
      }
    }
  }
  return {
    log: true,
    from,
    to,
    ticks: found,
    at: (value) => Math.log(value / from) / Math.log(to / from),
    value: (share) => from * (to / from) ** share,
  };
}

/** Which digits have a tick in each decade. */
function digitsOf(decades) {
  if (decades < 2) {
    return [1, 2, 5];
  }
  return decades < 3 ? [1, 3] : [1];
}

/** Round numbers from..to, about `count` of them. */
export function ticks(from, to, count) {
  const step = roundStep((to - from) / count);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** The smallest of 1, 2, 5, 10, 20, ... that is not below `least`. */
function roundStep(least) {
  const unit = 10 ** Math.floor(Math.log10(least));
  return unit * ([1, 2, 5].find((step) => step * unit >= least * (1 - 1e-9)) ?? 10);
}

/** [{ at, text }] at whole numbers from..to; a chart leaves out those that it has no room for. */
export function wholeTicks(from, to) {
  return Array.from({ length: to - from + 1 }, (_, i) => ({ at: from + i, text: String(from + i) }));
}

/** What stands at a tick. */
export function label(value) {
  const size = Math.abs(value);
  if (size >= 1e6) {
    return `${Number((value / 1e6).toPrecision(3))}M`;
  }
  if (size >= 1e4) {
    return `${Number((value / 1e3).toPrecision(3))}k`;
  }
  if (size > 0 && size < 1e-3) {
    return value.toExponential(0).replace("e+", "e");
  }
  return String(Number(value.toPrecision(3)));
}
