// What the plots say: numbers, noise levels, calls of the model and what the levels are taken from.

import { logSnr } from "../maths/paths.js";
import { timeOf } from "../maths/models.js";
import { t } from "../text.js";

/** Three digits that mean something, with signs as they are set in print. */
export function number(value) {
  if (!Number.isFinite(value)) {
    return value > 0 ? "∞" : "−∞";
  }
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** What is told of a noise level. */
export function levelLines(sigma, { path, sigmaOf }) {
  return [
    `σ ${number(sigma)}`,
    `λ ${number(logSnr(path, sigma))}`,
    t("plots.time", { time: number(timeOf(sigmaOf, sigma)) }),
  ];
}

/** Which call of the model number i of a grid is, or that it is the picture. */
export function callOf(i, calls) {
  return i < calls ? t("plots.call", { call: i + 1, of: calls }) : t("plots.picture");
}

/** The small print: what the levels are taken from. */
export function aboutModel({ about }) {
  return t(`plots.model.${about.name}`, about);
}
