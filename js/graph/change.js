// Changes the user's graph: each change is one step of undo. Where new nodes go is in places.js.

import { t } from "../text.js";
import { graphOf } from "./find.js";
import { ALWAYS, inputOf, MUTED } from "./nodes.js";
import { linkInto, linksFrom } from "./walk.js";

const TOAST = 10000;      // milliseconds

/** Shows the graph and calls work() in one step of undo; answers what it answers. */
export async function change(app, graph, work) {
  if (graphOf(app) !== graph) {
    app.canvas.setGraph(graph);
  }
  app.canvas.emitBeforeChange();
  try {
    return await work();
  } finally {
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
  }
}

/** When new nodes have been drawn, and so have their sizes. */
export function drawn() {
  const nextFrame = () => new Promise((resolve) => {
    requestAnimationFrame(resolve);
    setTimeout(resolve, 100);       // a hidden page draws no frames
  });
  return nextFrame().then(nextFrame).then(nextFrame);
}

/** A new node of that type at a position, with those widgets' values where they are not undefined. */
export function add(graph, type, { pos = [0, 0], values = {} } = {}) {
  const node = LiteGraph.createNode(type);
  if (!node) {
    throw new Error(t("graph.noNode", { type }));
  }
  const usual = (node.widgets ?? []).map((widget) => widget.value);
  node.pos = pos;
  graph.add(node);
  // set all: after an undo the host gives a new node the widgets' values of an old one that had its number
  (node.widgets ?? []).forEach((widget, i) => {
    widget.value = values[widget.name] ?? usual[i];
  });
  return node;
}

/** Wires an end, or nothing, to the named input. */
export function wire(end, to, name) {
  const into = inputOf(to, name);
  if (end && into >= 0) {
    end.node.connect(end.slot, to, into);
  }
}

/**
 * Wires the named input to what another node's input is wired to, also where that lies outside of a subgraph.
 */
export function wireLike(other, otherName, to, name) {
  const graph = to.graph;
  const into = inputOf(to, name);
  const link = linkInto(other, inputOf(other, otherName));
  if (!link || into < 0) {
    return;
  }
  const from = graph.getNodeById(link.origin_id);
  if (from) {
    from.connect(link.origin_slot, to, into, link.parentId);
  } else {
    graph.inputNode?.slots[link.origin_slot]?.connect(to.inputs[into], to, link.parentId);
  }
}

/** Hands what an output feeds to another node's output. */
export function takeOver(old, oldSlot, node, slot) {
  const graph = node.graph;
  for (const link of linksFrom(old, oldSlot)) {
    const to = graph.getNodeById(link.target_id);
    if (to) {
      node.connect(slot, to, link.target_slot, link.parentId);
    } else {
      graph.outputNode?.slots[link.target_slot]?.connect(node.outputs[slot], node, link.parentId);
    }
  }
}

/** Mutes nodes, or takes the muting off; bypassed ones stay what they are. */
export function setMuted(nodes, muted) {
  for (const node of nodes.filter((one) => one.mode === (muted ? ALWAYS : MUTED))) {
    node.mode = muted ? MUTED : ALWAYS;
  }
}

/**
 * Says something to the user for ten seconds. severity: "info", "warn" or "error", as the host names them.
 */
export function toast(app, severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: TOAST });
}
