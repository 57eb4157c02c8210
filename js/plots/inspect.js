// Inspect Sampler: how much each prediction weighs in the picture and how much of the seed survives, as bars;
// beside them those of a first-order sampler at the churn of a slider, on the same noise levels: churn moves
// weight from early to late predictions.

import { makeChart } from "../charts/chart.js";
import { wholeTicks } from "../charts/scale.js";
import { make, say } from "../dom.js";
import { logSnr } from "../maths/paths.js";
import { TOLERANCE, weights } from "../maths/probe.js";
import { plan } from "../maths/samplers.js";
import { t } from "../text.js";
import { recall, remember } from "./results.js";
import { realise, sigmasAbove } from "./scheduleabove.js";
import { number } from "./words.js";

const MOST = 100;            // the slider's end: all noise is fresh
const START = 50;            // churn 1, which is DDPM
const EDGE = 0.6;            // beside the first and the last bar
const WIDE = [0.6, 0.38];    // of a bar that is alone, and of one of two
const SHIFT = 0.21;          // of each of two from their place

export function inspectPlot(api, node, noted) {
  const chart = makeChart();
  const hint = t("plots.slider_hint");
  const slider = make("input", "", { type: "range", min: 0, max: MOST, step: 1, "aria-label": hint });
  const shown = make("output", "", {});
  const row = make("label", "nodeplot-row", { title: hint }, t("plots.slider"), slider, shown);
  chart.element.insertBefore(row, chart.note);
  const place = () => Math.min(Math.max(Number(node.properties?.fewstep_churn ?? START), 0), MOST);
  slider.addEventListener("input", () => {
    (node.properties ??= {}).fewstep_churn = Number(slider.value);
    plot.check();
  });
  slider.addEventListener("change", noted);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  // the plot below says what the picture does, which this hides
  // in Nodes 2.0, and the next line on the classic canvas
  node.hideOutputImages = true;
  node.onDrawBackground = () => {};
  const plot = {
    chart,
    element: chart.element,
    height: 240,
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
  const calls = found ? found.sigmas : sigmas.slice(0, -1);
  const theirs = found?.linear ? [found.survival, ...found.weights] : null;
  const ours = placed(weights(plan(sigmas, path, { churn }), path), sigmas, calls);
  const names = { theirs: t("plots.inspected"), ours: t("plots.first_order", { churn: number(churn) }) };
  const told = (i) => [
    ...(theirs ? [`${names.theirs}: ${number(theirs[i])}`] : []),
    ...(ours[i] === null ? [] : [`${names.ours}: ${number(ours[i])}`]),
  ];
  const level = (sigma, i) => [
    t("plots.call", { call: i + 1, of: calls.length }),
    `σ ${number(sigma)}`,
    `λ ${number(logSnr(path, sigma))}`,
  ].join("   ");
  return {
    label: t("plots.weights"),
    x: {
      from: -EDGE,
      to: calls.length + EDGE,
      ticks: [{ at: 0, text: t("plots.seed") }, ...wholeTicks(1, calls.length)],
    },
    y: { low: 0 },
    series: theirs ? [
      { name: names.theirs, colour: 0, shift: -SHIFT, ...bars(theirs, WIDE[1]) },
      { name: names.ours, colour: 1, shift: SHIFT, ...bars(ours, WIDE[1]) },
    ] : [{ name: names.ours, colour: 1, ...bars(ours, WIDE[0]) }],
    tips: [
      { x: 0, lines: [t("plots.survival"), ...told(0)] },
      ...calls.map((sigma, i) => ({ x: i + 1, lines: [level(sigma, i), ...told(i + 1)] })),
    ],
    note: found ? verdict(found) : t("plots.not_run"),
  };
}

/** A bar for each value that there is, at its number. */
function bars(values, wide) {
  const points = values.map((value, i) => [i, value]).filter((point) => point[1] !== null);
  return { kind: "bars", wide, points };
}

function levelsOf(schedule) {
  const { sigmas, model } = realise(schedule);
  return { path: model.path, sigmas };
}

/**
 * [survival, weight or null by call]: a sampler of several
 * calls a step has more of them than our one has predictions.
 */
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
