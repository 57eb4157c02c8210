// Sums of plain numbers, as the host's Math Expression
// writes them: no names but those given, no calls but these.

const CALLS = {
  min: Math.min, max: Math.max, floor: Math.floor, ceil: Math.ceil, round, abs: Math.abs,
  int: Math.trunc, float: Number,
};
const LEVELS = [
  { "+": (a, b) => a + b, "-": (a, b) => a - b },
  {
    "*": (a, b) => a * b,
    "/": (a, b) => a / b,
    "//": (a, b) => Math.floor(a / b),
    "%": (a, b) => a - b * Math.floor(a / b),
  },
];

/** As Python rounds: halves to the even neighbour. */
function round(value, digits = 0) {
  const scale = 10 ** digits;
  const down = Math.floor(value * scale);
  const isHalf = value * scale - down === 0.5;
  return (isHalf ? down + Math.abs(down % 2) : Math.round(value * scale)) / scale;
}

/** The value of an expression; undefined where it holds anything else. values: { name: number } */
export function calculate(text, values) {
  const tokens = text.match(/\d+\.?\d*|\.\d+|\w+|\/\/|\S/g) ?? [];
  try {
    const value = level(tokens, values, 0);
    return tokens.length || !Number.isFinite(value) ? undefined : value;
  } catch {
    return undefined;
  }
}

function level(tokens, values, depth) {
  if (depth === LEVELS.length) {
    return single(tokens, values);
  }
  let value = level(tokens, values, depth + 1);
  while (tokens[0] in LEVELS[depth]) {
    const apply = LEVELS[depth][tokens.shift()];
    value = apply(value, level(tokens, values, depth + 1));
  }
  return value;
}

function single(tokens, values) {
  const token = tokens.shift();
  if (token === "-") {
    return -single(tokens, values);
  }
  if (token === "(") {
    const value = level(tokens, values, 0);
    expect(tokens, ")");
    return value;
  }
  if (Object.hasOwn(CALLS, token ?? "")) {
    expect(tokens, "(");
    const given = [level(tokens, values, 0)];
    while (tokens[0] === ",") {
      tokens.shift();
      given.push(level(tokens, values, 0));
    }
    expect(tokens, ")");
    return CALLS[token](...given);
  }
  const value = Object.hasOwn(values, token ?? "") ? values[token] : Number(token);
  if (typeof value !== "number" || Number.isNaN(value)) {
    throw new SyntaxError(token);
  }
  return value;
}

function expect(tokens, wanted) {
  if (tokens.shift() !== wanted) {
    throw new SyntaxError(wanted);
  }
}
