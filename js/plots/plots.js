// Puts a plot on the nodes that have one: a DOM widget, which both renderers of the frontend show.

import { addStyles } from "../dom.js";
import { after } from "../graph/hooks.js";
import { isLoaded } from "../graph/walk.js";
import { COMPARE, CONSISTENCY_SAMPLER, DRAW_SCHEDULE, FIT, INSPECT, SAMPLER, SCHEDULE } from "../names.js";
import { comparePlot } from "./compare.js";
import { editorPlot } from "./editor.js";
import { fitPlot } from "./fit.js";
import { inspectPlot } from "./inspect.js";
import { samplerPlot } from "./sampler.js";
import { schedulePlot } from "./schedule.js";
import { watch } from "./watch.js";

const PLOTS = {
  [SCHEDULE]: schedulePlot,
  [DRAW_SCHEDULE]: editorPlot,
  [SAMPLER]: samplerPlot,
  [CONSISTENCY_SAMPLER]: samplerPlot,
  [INSPECT]: inspectPlot,
  [FIT]: fitPlot,
  [COMPARE]: comparePlot,
};

const WIDTH = 300;              // of a node with a plot, at least
const PADDING = 20;             // around a plot, in its node
const WIDGET = "fewstep_plot";

/**
 * For every node that is made. A plot is {element, chart, height, most, read(), draw(what was read),
 * onResult(data)}, made of the api, the node and what it calls when the user has changed something on it;
 * `most`: pixels that it grows to at most, where pictures are below it.
 */
export function plotOn(app, api, node) {
  const make = PLOTS[node.comfyClass ?? node.type];
  if (!make || typeof node.addDOMWidget !== "function") {
    return;
  }
  addStyles(new URL("./plots.css", import.meta.url).href);
  const plot = make(api, node, () => noted(app));
  // the classic canvas asks for the height, Nodes 2.0 goes by the style
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => plot.height + PADDING };
  if (plot.most) {
    options.getMaxHeight = () => plot.most + PADDING;
    plot.element.style.maxHeight = `${plot.most}px`;
  }
  const widget = node.addDOMWidget(WIDGET, WIDGET, plot.element, options);
  widget.serialize = false;
  plot.element.style.minHeight = `${plot.height}px`;
  passOn(app, plot.element);
  fit(node, WIDTH);

  let watching = null;
  const open = () => {
    if (watching) {
      return;
    }
    plot.chart.open();
    const read = () => {
      plot.chart.refresh();
      return plot.read();
    };
    watching = watch(plot.element, read, plot.draw, { exists: () => isLoaded(node), onGone: close });
  };
  const close = () => {
    watching?.close();
    plot.chart.close();
    watching = null;
  };
  plot.check = () => watching?.check();
  after(node, "onAdded", open);      // a node that becomes part of a subgraph is taken out and put in again
  after(node, "onRemoved", close);
  after(node, "onConfigure", () => fit(node));      // saved by a version without plots, or in Nodes 2.0
  after(node, "onExecuted", (output) => {
    const data = output?.fewstep?.[0];
    if (data) {
      plot.onResult?.(data);
    }
    plot.check();
  });
  if (node.graph) {
    open();
  }
}

/**
 * Makes a change a step of undo: the host looks when a mouse
 * button comes up, and misses clicks, drags and keys of ours.
 */
function noted(app) {
  app.canvas?.emitBeforeChange();
  app.canvas?.emitAfterChange();
}

/** The node at least as large as what is on it: the classic canvas leaves the size as it was. */
function fit(node, width = 0) {
  const least = node.computeSize();
  const size = [Math.max(node.size[0], least[0], width), Math.max(node.size[1], least[1])];
  if (size[0] > node.size[0] || size[1] > node.size[1]) {
    node.setSize(size);
  }
}

/**
 * On the classic canvas, what a plot has no use for: the wheel, the
 * middle button and a right click. Nodes 2.0 does it by itself.
 */
function passOn(app, element) {
  const classic = () => !element.closest(".lg-node-widget");
  const pass = (name, wanted, handler) => element.addEventListener(name, (event) => {
    if (!classic() || !wanted(event)) {
      return;
    }
    event.preventDefault();
    handler(event);
  }, { passive: false });
  pass("wheel", () => true, (event) => app.canvas.processMouseWheel(event));
  pass("pointerdown", (event) => event.button !== 0, (event) => app.canvas.processMouseDown(event));
  pass("pointermove", (event) => (event.buttons & ~1) !== 0, (event) => app.canvas.processMouseMove(event));
  pass("pointerup", (event) => event.button !== 0, (event) => app.canvas.processMouseUp(event));
  pass("contextmenu", () => true, () => {});
}
