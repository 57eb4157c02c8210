// The curve of a schedule as its widgets stand, before anything runs; and what other plots need to draw on a schedule.

import { t } from "../text.js";
import { make, mark } from "../panel/dom.js";
import { makeChart } from "./chart.js";
import { drawnGrid } from "./drawn.js";
import { grid } from "./grids.js";
import { modelFrom, timeOf } from "./models.js";
import { logSnr } from "./paths.js";
import { recall, remember } from "./results.js";
import { isTable, modelAbove, scheduleOf, tables } from "./upstream.js";

const VIEWS = ["snr", "sigma"];

/** {sigmas, model} of what `upstream` found. */
export function realise(schedule) {
  const { table } = schedule.model;
  const model = modelFrom(table ? { table: tables.get(table) } : schedule.model);
  const { steps, denoise, shift, options } = schedule;
  const sigmas = schedule.points ? drawnGrid(schedule.points, steps, model, denoise)
    : grid(schedule.grid, steps, model, { denoise, shift, ...options });
  return { sigmas, model };
}

/** The small print: what the levels are taken from. */
export function aboutModel({ about }) {
  return t(`plots.model.${about.name}`, about);
}

export function number(value) {
  if (!Number.isFinite(value)) {
    return value > 0 ? "∞" : "−∞";
  }
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** Ticks at whole numbers from..to; a chart leaves out those that it has no room for. */
export function wholeTicks(from, to) {
  return Array.from({ length: to - from + 1 }, (_, i) => ({ at: from + i, text: String(from + i) }));
}

/** What is told of a noise level. */
export function levelLines(sigma, { path, sigmaOf }) {
  return [`σ ${number(sigma)}`, `λ ${number(logSnr(path, sigma))}`, t("plots.time", { time: number(timeOf(sigmaOf, sigma)) })];
}

/** Two or more buttons of which one is pressed; {element, value()}. The choice is kept in the node's properties. */
export function choice(node, property, values, label, changed) {
  const value = () => (values.includes(node.properties?.[property]) ? node.properties[property] : values[0]);
  const buttons = values.map((name) => make("button", "", {
    type: "button", textContent: t(`plots.${property}.${name}`), title: t(`plots.${property}.${name}_hint`),
    onclick: () => {
      (node.properties ??= {})[property] = name;
      changed();
    },
  }));
  const show = () => buttons.forEach((button, i) => mark(button, "aria-pressed", values[i] === value()));
  show();
  return { element: make("span", "nodeplot-choice", { role: "group", "aria-label": label }, ...buttons), value, show };
}

/** What a schedule's run tells of the model that feeds it, for every plot with the same nodes above. */
export function learnModel(api, node, data) {
  const { key } = modelAbove(api, node);
  if (isTable(data?.model)) {
    tables.set(key, data.model);
    remember(node, { key, model: data.model });
  }
}

export function recallModel(node) {
  const { key, model } = recall(node)?.data ?? {};
  if (key && isTable(model) && !tables.get(key)) {
    tables.set(key, model);
  }
}

export function schedulePlot(api, node, noted) {
  const chart = makeChart();
  const view = choice(node, "fewstep_view", VIEWS, t("plots.fewstep_view.label"), () => {
    plot.check();
    noted();
  });
  chart.head.append(view.element);
  const plot = {
    chart, element: chart.element, height: 190,
    read() {
      recallModel(node);
      return { schedule: scheduleOf(api, node), view: view.value() };
    },
    draw({ schedule, view: shown }) {
      view.show();
      chart.show(schedule ? scheduleSpec(schedule, shown) : { x: {}, label: t("plots.schedule"), empty: t("plots.no_schedule") });
    },
    onResult: (data) => learnModel(api, node, data),
  };
  return plot;
}

function scheduleSpec(schedule, view) {
  const { sigmas, model } = realise(schedule);
  const value = view === "snr" ? (sigma) => logSnr(model.path, sigma) : (sigma) => sigma;
  const last = sigmas.length - 1;
  return {
    label: t("plots.schedule"),
    x: { from: 0, to: last, ticks: wholeTicks(0, last) },
    y: { low: 0 },
    series: [{ name: t(`plots.fewstep_view.${view}_long`), points: sigmas.map((sigma, i) => [i, value(sigma)]) }],
    tips: sigmas.map((sigma, i) => ({ x: i, lines: [placeOf(i, last), ...levelLines(sigma, model)] })),
    note: aboutModel(schedule.model),
  };
}

function placeOf(i, last) {
  return i < last ? t("plots.call", { call: i + 1, of: last }) : t("plots.picture");
}
