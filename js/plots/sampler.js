// What a sampler's noise does over the steps: how much of
// it is fresh after each, and how much is still the seed's.

import { makeChart } from "../charts/chart.js";
import { wholeTicks } from "../charts/scale.js";
import { inputOf } from "../graph/nodes.js";
import { goalsOf, valueOf } from "../graph/walk.js";
import { noising } from "../maths/probe.js";
import { plan, tcdShare } from "../maths/samplers.js";
import { SAMPLER } from "../names.js";
import { t } from "../text.js";
import { realise, sigmasAbove } from "./scheduleabove.js";
import { aboutModel, number } from "./words.js";

export function samplerPlot(api, node) {
  const chart = makeChart();
  return {
    chart,
    element: chart.element,
    height: 170,
    read() {
      const along = samplingWith(node);
      return { noise: noiseOf(node), schedule: sigmasAbove(api, along.node, along.within) };
    },
    draw: ({ noise, schedule }) => chart.show(samplerSpec(noise, schedule)),
  };
}

/** The goal that samples with this sampler along a schedule, bypassed or not; the node itself for none. */
function samplingWith(node) {
  const goals = goalsOf(node, 0, { cross: true, bypassed: true });
  return goals.find((goal) => inputOf(goal.node, "sigmas") >= 0) ?? { node };
}

/** What the widgets of FewstepSampler or FewstepConsistencySampler ask of `plan`. */
function noiseOf(node) {
  const value = (name, usual) => valueOf(node, name) ?? usual;
  if (node.type === SAMPLER) {
    return {
      churn: value("churn", 0),
      mode: value("mode", "each step"),
      start: value("start", 0),
      end: value("end", 1),
    };
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
  const points = (some, key) => some.map((step, i) => [i + 1, step[key]]);
  const shares = ({ fresh, left }) =>
    [`${t("plots.fresh")} ${percent(fresh)}`, `${t("plots.seed_left")} ${percent(left)}`];
  const where = t(schedule.guessed ? "plots.on_uniform" : "plots.on_wired", { steps: sigmas.length - 1 });
  return {
    label: t("plots.noise"),
    x: { from: 0.4, to: steps.length + 0.6, ticks: wholeTicks(1, steps.length) },
    y: { low: 0, high: 1 },
    series: [
      { name: t("plots.fresh"), colour: 0, kind: "bars", points: points(steps, "fresh") },
      { name: t("plots.seed_left"), colour: 1, points: points(steps.slice(0, -1), "left") },
    ],
    tips: steps.map((step, i) => ({
      x: i + 1,
      lines: [
        `${t("plots.step", { step: i + 1 })}   σ ${number(step.sigma)} → ${number(step.next)}`,
        ...(step.next > 0 ? shares(step) : [t("plots.picture")]),
      ],
    })),
    note: `${where} · ${aboutModel(schedule.model)}`,
  };
}
