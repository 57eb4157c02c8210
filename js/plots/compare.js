// Compare Few-Step: what it found in a few sentences, and distance over model calls, a line for each sampler,
// against the tolerance.

import { makeChart } from "../charts/chart.js";
import { wholeTicks } from "../charts/scale.js";
import { make } from "../dom.js";
import { t } from "../text.js";
import { recall, remember } from "./results.js";
import { number } from "./words.js";

const BESIDE = 0.05;         // of the calls that it spans, before the first and after the last

export function comparePlot(api, node) {
  const chart = makeChart();
  const verdict = make("div", "nodeplot-verdict", { role: "status" });
  chart.element.prepend(verdict);
  return {
    chart,
    element: chart.element,
    height: 230,
    most: 260,
    read: () => ({ ran: recall(node)?.stamp }),
    draw() {
      const found = recall(node)?.data;
      const known = found?.rows?.length > 0;
      const [answer, ...remarks] = known ? found.verdict ?? [] : [];
      verdict.replaceChildren(...(answer ? [make("strong", "", {}, answer)] : []),
        ...remarks.map((remark) => make("p", "", {}, remark)));
      verdict.classList.toggle("fewstep-nodeplot-enough", known && found.enough === true);
      verdict.hidden = !answer;
      chart.show(known ? compareSpec(found) : nothing());
    },
    onResult: (data) => remember(node, data),
  };
}

const nothing = () => ({ x: {}, label: t("plots.compare"), empty: t("plots.no_compare") });

function compareSpec({ rows, tolerance, reference }) {
  const calls = [...new Set(rows.map((row) => row.nfe))].sort((a, b) => a - b);
  const names = [...new Set(rows.map((row) => row.name))];
  const room = Math.max(0.5, BESIDE * (calls.at(-1) - calls[0]));
  const [from, to] = [calls[0] - room, calls.at(-1) + room];
  const points = (some) => some.filter((row) => row.distance > 0).map((row) => [row.nfe, row.distance]);
  const told = ({ name, steps, distance, seconds }) => [
    t("plots.setting", { name, steps }),
    distance === null ? t("plots.endless") : number(distance),
    t("plots.seconds", { seconds: number(seconds) }),
  ].join("   ");
  const named = (name) => rows.filter((row) => row.name === name);
  const within = t("plots.within", { tolerance: number(tolerance) });
  return {
    label: t("plots.compare"),
    x: { from, to, ticks: wholeTicks(Math.ceil(from), Math.floor(to)) },
    series: [
      ...names.map((name, colour) => ({ name, colour, points: points(named(name)) })),
      { name: within, kind: "level", points: [[from, tolerance], [to, tolerance]] },
      ...names.map((name, colour) => ({
        colour, kind: "rings", points: points(named(name).filter((row) => row.chosen)),
      })),
    ],
    tips: calls.map((x) => ({
      x,
      lines: [t("plots.calls", { calls: number(x) }), ...rows.filter((row) => row.nfe === x).map(told)],
    })),
    note: t("plots.compare_note", { steps: reference.steps }),
  };
}
