// Advanced inputs on the classic canvas, which shows them all: hidden until "More settings" is pressed. Nodes
// 2.0 has a button of its own for the same; both keep the choice as the node's showAdvanced, which is saved.

import { after, whenSet } from "../graph/hooks.js";
import { t } from "../text.js";

const MORE = "fewstep_more";
const ROW = 24;      // pixels of a widget and its margin

/** Hides a new node's advanced widgets where the classic canvas draws it. */
export function foldAdvanced(app, node) {
  const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!folded.length) {
    return;
  }
  node.showAdvanced ??= false;      // saved from now on: a graph without it shows them all, and is as tall
  const button = node.addWidget("button", MORE, "", () => press(), { serialize: false, canvasOnly: true });
  button.serialize = false;
  let [drawn, height] = [null, null];

  function apply() {
    const open = node.showAdvanced || isNodes2();
    folded.forEach((widget) => hide(widget, !open && !isWired(node, widget)));
    button.label = t(node.showAdvanced ? "nodes.less" : "nodes.more");
    drawn = isNodes2();
    node.setDirtyCanvas?.(true, true);
  }

  function press() {
    app.canvas.emitBeforeChange();
    node.showAdvanced = !node.showAdvanced;
    app.canvas.emitAfterChange();
  }

  function changed() {
    const before = hiddenOf(folded);
    const was = node.size[1];
    apply();
    if (!isNodes2()) {
      grow(node, before - hiddenOf(folded));
    } else if (node.showAdvanced) {
      height = was;
    } else if (height !== null) {
      afterDrawing(() => node.setSize([node.size[0], height]));      // it stays as tall as it was by itself
    }
  }

  whenSet(node, "showAdvanced", changed);
  after(node, "onConfigure", (saved) => {
    apply();
    if (saved?.showAdvanced === undefined) {
      grow(node, -folded.length);
    }
  });
  after(node, "onConnectionsChange", apply);
  after(node, "onAdded", apply);
  const whole = node.computeSize;
  node.computeSize = function (...values) {
    const size = whole.apply(this, values);
    if (isNodes2() && !node.showAdvanced) {
      size[1] -= ROW * (folded.length - hiddenOf(folded));      // which Nodes 2.0 has folded by itself
    }
    return size;
  };
  const again = () => drawn !== isNodes2() && apply();      // the renderer was exchanged
  after(node, "onResize", again);
  after(node, "onDrawForeground", again);
  apply();
  node.setSize([node.size[0], node.computeSize()[1]]);
}

const isNodes2 = () => Boolean(globalThis.LiteGraph?.vueNodesMode);

const hiddenOf = (widgets) => widgets.filter((widget) => widget.hidden).length;

function isWired(node, widget) {
  const slot = (node.inputs ?? []).findIndex((input) => input.widget?.name === widget.name);
  return slot >= 0 && node.isInputConnected(slot);
}

function hide(widget, wanted) {
  if (Boolean(widget.hidden) !== wanted) {
    widget.hidden = wanted;
  }
}

/** By that many rows, never below what is on the node. */
function grow(node, rows) {
  const [width, height] = node.size;
  node.setSize([width, Math.max(node.computeSize()[1], height + ROW * rows)]);
}

const afterDrawing = (then) => requestAnimationFrame(() => requestAnimationFrame(then));
