// Fit Few-Step Solver: error against model calls, of the fitted solver and of those that nothing was fitted to.

import { t } from "../text.js";
import { makeChart } from "./chart.js";
import { recall, remember } from "./results.js";
import { number } from "./schedule.js";

const told = (value) => (value === null ? "–" : number(value));

export function fitPlot(api, node) {
  const chart = makeChart();
  const above = node.onDrawBackground;      // draws the report on the classic canvas
  node.onDrawBackground = function (...values) {
    if (!node.hideOutputImages) {
      above?.apply(this, values);
    }
  };
  return {
    chart, element: chart.element, height: 200,
    read() {
      const pictures = node.graph && node.isInputConnected((node.inputs ?? []).findIndex((input) => input.name === "vae"));
      node.hideOutputImages = !pictures;      // then the report is this plot
      return { ran: recall(node)?.stamp };
    },
    draw() {
      const found = recall(node)?.data;
      chart.show(found?.rows?.length ? fitSpec(found) : { x: {}, label: t("plots.fit"), empty: t("plots.no_fit") });
    },
    onResult: (data) => remember(node, data),
  };
}

function fitSpec({ rows, chosen }) {
  const names = { fitted: t("plots.fitted"), auto: t("plots.auto"), classical: t("plots.classical") };
  const points = (key, some = rows) => some.filter((row) => row[key] > 0).map((row) => [row.steps, row[key]]);
  const kept = rows.filter((row) => !row.gained).map((row) => row.steps);
  const steps = rows.map((row) => row.steps);
  const room = Math.max(0.5, 0.04 * (Math.max(...steps) - Math.min(...steps)));
  return {
    label: t("plots.fit"),
    x: { from: Math.min(...steps) - room, to: Math.max(...steps) + room, ticks: steps.map((n) => ({ at: n, text: String(n) })) },
    series: [
      { name: names.classical, colour: 2, points: points("classical") },
      { name: names.auto, colour: 1, points: points("auto") },
      { name: names.fitted, colour: 0, points: points("fitted") },
      { colour: 0, kind: "rings", points: points("fitted", rows.filter((row) => row.steps === chosen)) },
    ],
    tips: rows.map((row) => ({
      x: row.steps,
      lines: [t("plots.calls", { calls: row.steps }), ...Object.keys(names).map((key) => `${names[key]} ${told(row[key])}`),
        ...(row.gained ? [] : [t("plots.no_gain")])],
    })),
    note: t("plots.fit_note", { chosen }) + (kept.length ? ` ${t("plots.kept", { steps: kept.join(", ") })}` : ""),
  };
}
