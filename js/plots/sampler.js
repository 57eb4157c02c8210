// What a sampler's noise does over the steps: how much of it is fresh after each, and how much is still the seed's.

import { t } from "../text.js";
import { makeChart } from "./chart.js";
import { noising, plan, tcdShare } from "./kernel.js";
import { aboutModel, number, realise, wholeTicks } from "./schedule.js";
import { fedBy, sigmasAbove, valueOf } from "./upstream.js";

export function samplerPlot(api, node) {
  const chart = makeChart();
  return {
    chart, element: chart.element, height: 170,
    read: () => ({ noise: noiseOf(node), schedule: sigmasAbove(api, samplingWith(node)) }),
    draw: ({ noise, schedule }) => chart.show(samplerSpec(noise, schedule)),
  };
}

/** The node that samples with this sampler along a schedule; itself where there is none yet. */
function samplingWith(node) {
  return fedBy(node, 0).find((to) => to.inputs?.some((input) => input.name === "sigmas")) ?? node;
}

/** What the widgets of FewstepSampler or FewstepConsistencySampler ask of `plan`. */
function noiseOf(node) {
  const value = (name, usual) => valueOf(node, name) ?? usual;
  if (node.type === "FewstepSampler") {
    return { churn: value("churn", 0), mode: value("mode", "each step"), start: value("start", 0), end: value("end", 1) };
  }
  const method = value("method", "consistency");
  if (method === "TCD") {
    return { gamma: value("method.gamma", 0.3) };
  }
  return { kappa: method === "consistency" ? value("method.fresh_noise", 1) : 0 };
}

function samplerSpec({ gamma, ...options }, schedule) {
  const { sigmas, model } = realise(schedule);
  if (gamma !== undefined) {
    options.kappa = tcdShare(gamma, model);
  }
  const steps = noising(plan(sigmas, model.path, options), model.path);
  const percent = (share) => `${number(100 * share)} %`;
  const where = t(schedule.guessed ? "plots.on_uniform" : "plots.on_wired", { steps: sigmas.length - 1 });
  return {
    label: t("plots.noise"),
    x: { from: 0.4, to: steps.length + 0.6, ticks: wholeTicks(1, steps.length) },
    y: { low: 0, high: 1 },
    series: [
      { name: t("plots.fresh"), colour: 0, kind: "bars", points: steps.map((step, i) => [i + 1, step.fresh]) },
      { name: t("plots.seed_left"), colour: 1, points: steps.slice(0, -1).map((step, i) => [i + 1, step.left]) },
    ],
    tips: steps.map((step, i) => ({
      x: i + 1,
      lines: [`${t("plots.step", { step: i + 1 })}   σ ${number(step.sigma)} → ${number(step.next)}`,
        ...(step.next > 0 ? [`${t("plots.fresh")} ${percent(step.fresh)}`, `${t("plots.seed_left")} ${percent(step.left)}`]
          : [t("plots.picture")])],
    })),
    note: `${where} · ${aboutModel(schedule.model)}`,
  };
}
