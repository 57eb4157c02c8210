// Draw Schedule's editor: the curve of the model's time over the steps, whose points are dragged. The value
// is the text widget's, which is hidden and saved with the workflow.
//
// Drag a point, or move the focused one by the arrow keys;
// double-click adds one, Delete or a right click removes it.

import { makeChart } from "../charts/chart.js";
import { make, mark } from "../dom.js";
import { valueOf } from "../graph/walk.js";
import { curve, readPoints, writePoints } from "../maths/drawn.js";
import { t } from "../text.js";
import { learnModel, recallModel } from "./modelabove.js";
import { addPoint, movePoint, removePoint } from "./points.js";
import { realise, scheduleOf } from "./scheduleabove.js";
import { aboutModel, callOf, levelLines, number } from "./words.js";

const START = "[[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]";      // as in nodes/draw.py
const FINE = 0.01;
const COARSE = 0.05;
const SMOOTH = 120;       // pieces that the curve is drawn in
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export function editorPlot(api, node, noted) {
  const chart = makeChart();
  const widget = node.widgets.find((one) => one.name === "points");
  widget.hidden = true;                      // on the classic canvas
  (widget.options ??= {}).hidden = true;     // in Nodes 2.0
  const reset = make("button", "", {
    type: "button",
    textContent: t("plots.reset"),
    title: t("plots.reset_hint"),
    onclick: () => set(readPoints(START)),
  });
  const layer = make("div", "", { role: "group", "aria-label": t("plots.editor") });
  chart.head.append(reset);
  chart.place.append(layer);
  chart.onDrawn = settle;
  let points = [];

  const wired = () => valueOf(node, "points") !== widget.value;

  function write(next) {
    if (wired()) {
      return;
    }
    widget.value = writePoints(next);
    widget.callback?.(widget.value);
    node.setDirtyCanvas?.(true, true);
    plot.check();
  }

  function set(next) {
    write(next);
    noted();
  }

  /** As many buttons as points, each on its own; the focus stays where it is. */
  function settle() {
    while (layer.children.length > points.length) {
      layer.lastChild.remove();
    }
    while (layer.children.length < points.length) {
      layer.append(handle(layer.children.length));
    }
    points.forEach(([share, time], i) => {
      const at = chart.pixels(share, time);
      const button = layer.children[i];
      button.hidden = !at;
      if (!at) {
        return;
      }
      button.style.left = `${at[0]}px`;
      button.style.top = `${at[1]}px`;
      mark(button, "aria-label", t("plots.point", { share: number(100 * share), time: number(time) }));
    });
  }

  function handle(index) {
    const button = make("button", "nodeplot-point", { type: "button" });
    let held = null;
    button.addEventListener("pointerdown", (event) => {
      if (event.button === 2) {
        event.stopPropagation();      // it removes the point, see below
      }
      if (event.button !== 0) {
        return;
      }
      event.preventDefault();
      button.focus();
      button.setPointerCapture(event.pointerId);
      const at = chart.values(event.clientX, event.clientY);
      held = at && [points[index][0] - at[0], points[index][1] - at[1]];      // from where it was taken
    });
    button.addEventListener("pointermove", (event) => {
      const at = held && chart.values(event.clientX, event.clientY);
      if (at) {
        write(movePoint(points, index, at[0] + held[0], at[1] + held[1]));
      }
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(name, () => {
        if (held) {
          noted();
        }
        held = null;
      });
    }
    button.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
      remove(index);
    });
    button.addEventListener("dblclick", (event) => event.stopPropagation());
    button.addEventListener("keydown", (event) => onKey(event, index));
    return button;
  }

  function remove(index) {
    set(removePoint(points, index));
    (layer.children[Math.min(index, points.length - 1)] ?? reset).focus();
  }

  function onKey(event, index) {
    const by = KEYS[event.key];
    if (by) {
      const step = event.shiftKey ? COARSE : FINE;
      set(movePoint(points, index, points[index][0] + step * by[0], points[index][1] + step * by[1]));
    } else if (event.key === "Delete" || event.key === "Backspace") {
      remove(index);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();      // Delete would remove the node
  }

  chart.place.addEventListener("dblclick", (event) => {
    const at = chart.values(event.clientX, event.clientY);
    const added = at && addPoint(points, at[0], at[1]);
    event.stopPropagation();      // a double click on the canvas opens the search for nodes
    if (!added) {
      return;
    }
    set(added.points);
    requestAnimationFrame(() => layer.children[added.index]?.focus());
  });

  const plot = {
    chart,
    element: chart.element,
    height: 240,
    read() {
      recallModel(node);
      return scheduleOf(api, node);
    },
    draw(schedule) {
      points = schedule?.points ?? [];
      chart.show(schedule ? editorSpec(schedule) : nothing());
    },
    onResult: (data) => learnModel(api, node, data),
  };
  return plot;
}

const nothing = () => ({ x: {}, label: t("plots.editor"), empty: t("plots.bad_points") });

function editorSpec(schedule) {
  const { sigmas, model } = realise(schedule);
  const time = curve(schedule.points);
  const { steps } = schedule;
  const dots = sigmas.map((sigma, i) => [i / steps, i < steps ? time(i / steps) : 0]);
  const line = Array.from({ length: SMOOTH + 1 }, (_, i) => [i / SMOOTH, time(i / SMOOTH)]);
  return {
    label: t("plots.editor"),
    x: { from: 0, to: 1, ticks: dots.map(([at], i) => ({ at, text: String(i) })) },
    y: { low: 0, high: 1 },
    series: [{ name: t("plots.drawn_time"), points: line, kind: "line" }, { points: dots, kind: "dots" }],
    tips: dots.map(([x], i) => ({ x, lines: [callOf(i, steps), ...levelLines(sigmas[i], model)] })),
    note: `${t("plots.editor_hint")} · ${aboutModel(schedule.model)}`,
  };
}
