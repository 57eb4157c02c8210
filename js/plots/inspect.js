// Inspect Sampler: how much each prediction weighs in the picture and how much of the seed survives, as bars; beside them those of
// a first-order sampler at the churn of a slider, on the same noise levels: churn moves weight from early to late predictions.

import { t } from "../text.js";
import { make, say } from "../panel/dom.js";
import { makeChart } from "./chart.js";
import { plan, weights } from "./kernel.js";
import { logSnr } from "./paths.js";
import { recall, remember } from "./results.js";
import { number, realise, wholeTicks } from "./schedule.js";
import { sigmasAbove } from "./upstream.js";

const TOLERANCE = 0.03;      // of signal and noise, as diffusion/probe.py
const MOST = 100;            // the slider's end: all noise is fresh
const START = 50;            // churn 1, which is DDPM

export function inspectPlot(api, node, noted) {
  const chart = makeChart();
  const slider = make("input", "", { type: "range", min: 0, max: MOST, step: 1, "aria-label": t("plots.slider_hint") });
  const shown = make("output", "", {});
  const row = make("label", "nodeplot-row", { title: t("plots.slider_hint") }, t("plots.slider"), slider, shown);
  chart.element.insertBefore(row, chart.note);
  const place = () => Math.min(Math.max(Number(node.properties?.fewstep_churn ?? START), 0), MOST);
  slider.addEventListener("input", () => {
    (node.properties ??= {}).fewstep_churn = Number(slider.value);
    plot.check();
  });
  slider.addEventListener("change", noted);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  node.hideOutputImages = true;      // the plot below says the same; this in Nodes 2.0, the next line on the classic canvas
  node.onDrawBackground = () => {};
  const plot = {
    chart, element: chart.element, height: 240,
    read() {
      const result = recall(node);
      return { place: place(), ran: result?.stamp, schedule: result ? null : sigmasAbove(api, node) };
    },
    draw({ place: at, schedule }) {
      const churn = at >= MOST ? Infinity : at / (MOST - at);
      if (Number(slider.value) !== at) {
        slider.value = at;
      }
      say(shown, number(churn));
      chart.show(inspectSpec(recall(node)?.data, schedule, churn));
    },
    onResult: (data) => remember(node, data),
  };
  return plot;
}

function inspectSpec(found, schedule, churn) {
  const { path, sigmas } = found ? { path: found.path, sigmas: found.schedule } : levelsOf(schedule);
  const own = weights(plan(sigmas, path, { churn }), path);
  const calls = found ? found.sigmas : sigmas.slice(0, -1);
  const theirs = found?.linear ? [found.survival, ...found.weights] : null;
  const ours = placed(own, sigmas, calls);
  const wide = theirs ? 0.38 : 0.6;
  const bars = (values, colour, name, shift) => ({ name, colour, kind: "bars", wide, shift,
    points: values.map((value, i) => [i, value]).filter((point) => point[1] !== null) });
  const named = { theirs: t("plots.inspected"), ours: t("plots.first_order", { churn: number(churn) }) };
  const told = (i) => [...(theirs ? [`${named.theirs}: ${number(theirs[i])}`] : []),
    ...(ours[i] === null ? [] : [`${named.ours}: ${number(ours[i])}`])];
  return {
    label: t("plots.weights"),
    x: { from: -0.6, to: calls.length + 0.6, ticks: [{ at: 0, text: t("plots.seed") }, ...wholeTicks(1, calls.length)] },
    y: { low: 0 },
    series: [...(theirs ? [bars(theirs, 0, named.theirs, -0.21)] : []), bars(ours, 1, named.ours, theirs ? 0.21 : 0)],
    tips: [{ x: 0, lines: [t("plots.survival"), ...told(0)] }, ...calls.map((sigma, i) => ({
      x: i + 1,
      lines: [`${t("plots.call", { call: i + 1, of: calls.length })}   σ ${number(sigma)}   λ ${number(logSnr(path, sigma))}`,
        ...told(i + 1)],
    }))],
    note: found ? verdict(found) : t("plots.not_run"),
  };
}

function levelsOf(schedule) {
  const { sigmas, model } = realise(schedule);
  return { path: model.path, sigmas };
}

/** [survival, weight or null by call]: a sampler of several calls a step has more of them than our one has predictions. */
function placed({ weights: values, survival }, sigmas, calls) {
  const out = [survival, ...calls.map(() => null)];
  let call = 0;
  values.forEach((value, i) => {
    while (call < calls.length - 1 && calls[call] > sigmas[i] * (1 + 1e-5)) {
      call++;
    }
    if (out[call + 1] === null) {
      out[call + 1] = value;
    }
  });
  return out;
}

function verdict({ linear, right, signal, noise }) {
  const parts = linear ? [] : [t("plots.not_linear")];
  if (right) {
    return [...parts, t("plots.right")].join(" ");
  }
  const faults = [["signal", signal], ["noise", noise]].flatMap(([name, shares]) => {
    const off = shares.map((share) => (share === null ? Infinity : Math.abs(share - 1)));
    const worst = off.indexOf(Math.max(...off));
    if (!(off[worst] > TOLERANCE)) {
      return [];
    }
    if (off[worst] === Infinity) {
      return [t("plots.not_finite", { call: worst + 1 })];
    }
    const kind = `plots.${name}_${shares[worst] > 1 ? "strong" : "weak"}`;
    return [t(kind, { percent: Math.round(100 * off[worst]), call: worst + 1 })];
  });
  return [...parts, t("plots.wrong"), ...(faults.length ? faults : [t("plots.wrong_end")])].join(" ");
}
