// Fit Few-Step Solver: error against model calls, of the
// fitted solver and of those that nothing was fitted to.

import { makeChart } from "../charts/chart.js";
import { inputOf } from "../graph/nodes.js";
import { t } from "../text.js";
import { recall, remember } from "./results.js";
import { number } from "./words.js";

const BESIDE = [0.5, 0.04];      // of the first and the last step count: at least, and of the span

const amount = (value) => (value == null ? "–" : number(value));

export function fitPlot(api, node) {
  const chart = makeChart();
  const above = node.onDrawBackground;      // draws the report on the classic canvas
  node.onDrawBackground = function (...values) {
    if (!node.hideOutputImages) {
      above?.apply(this, values);
    }
  };
  return {
    chart,
    element: chart.element,
    height: 200,
    read() {
      const pictures = node.graph && node.isInputConnected(inputOf(node, "vae"));
      node.hideOutputImages = !pictures;      // then the report is this plot
      return { ran: recall(node)?.stamp };
    },
    draw() {
      const found = recall(node)?.data;
      chart.show(found?.rows?.length ? fitSpec(found) : nothing());
    },
    onResult: (data) => remember(node, data),
  };
}

const nothing = () => ({ x: {}, label: t("plots.fit"), empty: t("plots.no_fit") });

function fitSpec({ rows, chosen }) {
  const names = { fitted: t("plots.fitted"), auto: t("plots.auto"), median: t("plots.median") };
  const told = (row) => Object.keys(names).map((key) => `${names[key]} ${amount(row[key])}`);
  const points = (key, some = rows, at = "count") =>
    some.filter((row) => row[key] > 0).map((row) => [row[at] ?? row.count, row[key]]);
  const kept = rows.filter((row) => !row.gained).map((row) => row.count);
  const counts = rows.map((row) => row.count);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const room = Math.max(BESIDE[0], BESIDE[1] * (most - least));
  const also = kept.length ? ` ${t("plots.kept", { steps: kept.join(", ") })}` : "";
  return {
    label: t("plots.fit"),
    x: { from: least - room, to: most + room, ticks: counts.map((n) => ({ at: n, text: String(n) })) },
    series: [
      { name: names.median, colour: 2, points: points("median") },
      { name: names.auto, colour: 1, points: points("auto", rows, "auto_at") },
      { name: names.fitted, colour: 0, points: points("fitted") },
      { colour: 0, kind: "rings", points: points("fitted", rows.filter((row) => row.count === chosen)) },
    ],
    tips: rows.map((row) => ({
      x: row.count,
      lines: [
        t("plots.fit_calls", { steps: row.steps, calls: row.calls ?? "–" }),
        ...told(row),
        ...(row.high > 0 ? [t("plots.new_noise", { low: number(row.low), high: number(row.high) })] : []),
        ...(row.gained ? [] : [t(row.cut_short ? "plots.cut_short" : "plots.no_gain")]),
      ],
    })),
    note: t("plots.fit_note", { chosen }) + also,
  };
}
