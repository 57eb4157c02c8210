// Schedule: the curve of a schedule as its widgets stand, before anything runs.

import { makeChart } from "../charts/chart.js";
import { wholeTicks } from "../charts/scale.js";
import { make, mark } from "../dom.js";
import { logSnr } from "../maths/paths.js";
import { t } from "../text.js";
import { learnModel, recallModel } from "./modelabove.js";
import { realise, scheduleOf } from "./scheduleabove.js";
import { aboutModel, callOf, levelLines } from "./words.js";

const VIEWS = ["snr", "sigma"];

export function schedulePlot(api, node, noted) {
  const chart = makeChart();
  const view = choice(node, "fewstep_view", VIEWS, t("plots.fewstep_view.label"), () => {
    plot.check();
    noted();
  });
  chart.head.append(view.element);
  const plot = {
    chart,
    element: chart.element,
    height: 190,
    read() {
      recallModel(node);
      return { schedule: scheduleOf(api, node), view: view.value() };
    },
    draw({ schedule, view: shown }) {
      view.show();
      chart.show(schedule ? scheduleSpec(schedule, shown) : nothing());
    },
    onResult: (data) => learnModel(api, node, data),
  };
  return plot;
}

const nothing = () => ({ x: {}, label: t("plots.schedule"), empty: t("plots.no_schedule") });

/**
 * Two or more buttons of which one is pressed: { element,
 * value(), show() }. The choice is kept in the node's properties.
 */
function choice(node, property, values, label, changed) {
  const kept = () => node.properties?.[property];
  const value = () => (values.includes(kept()) ? kept() : values[0]);
  const buttons = values.map((name) => make("button", "", {
    type: "button",
    textContent: t(`plots.${property}.${name}`),
    title: t(`plots.${property}.${name}_hint`),
    onclick: () => {
      (node.properties ??= {})[property] = name;
      changed();
    },
  }));
  const show = () => buttons.forEach((button, i) => mark(button, "aria-pressed", values[i] === value()));
  show();
  const element = make("span", "nodeplot-choice", { role: "group", "aria-label": label }, ...buttons);
  return { element, value, show };
}

function scheduleSpec(schedule, view) {
  const { sigmas, model } = realise(schedule);
  const value = view === "snr" ? (sigma) => logSnr(model.path, sigma) : (sigma) => sigma;
  const last = sigmas.length - 1;
  const name = t(`plots.fewstep_view.${view}_long`);
  return {
    label: t("plots.schedule"),
    x: { from: 0, to: last, ticks: wholeTicks(0, last) },
    y: { low: 0 },
    series: [{ name, points: sigmas.map((sigma, i) => [i, value(sigma)]) }],
    tips: sigmas.map((sigma, i) => ({ x: i, lines: [callOf(i, last), ...levelLines(sigma, model)] })),
    note: aboutModel(schedule.model),
  };
}
