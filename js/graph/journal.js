// Changes to nodes that are there already, each noted so that all can be taken back: what wiring.js adds is
// taken back by `takeBack`, what is changed by the functions here.
//
//   journal   [undo, ...]

import { takeOver } from "./change.js";
import { inputOf } from "./nodes.js";
import { linkInto, linksFrom } from "./walk.js";

/** Takes everything back that was noted, the last first; then nothing is noted any more. */
export function revert(journal) {
  journal.splice(0).reverse().forEach((undo) => undo());
}

/** Notes what a named input is wired to now. */
export function keepInput(journal, node, name) {
  const into = inputOf(node, name);
  const link = into < 0 ? null : linkInto(node, into);
  journal.push(() => (link ? relink(node.graph, link, node, into) : into >= 0 && node.disconnectInput(into)));
}

function relink(graph, link, node, into) {
  const from = graph.getNodeById(link.origin_id);
  if (from) {
    from.connect(link.origin_slot, node, into, link.parentId);
  } else {
    graph.inputNode.slots[link.origin_slot].connect(node.inputs[into], node, link.parentId);
  }
}

/** Sets properties of a node: mode, pos, widgets' values. */
export function set(journal, object, values) {
  for (const [name, value] of Object.entries(values)) {
    const before = name === "pos" ? [...object[name]] : object[name];      // the host moves it in place
    journal.push(() => {
      object[name] = before;
    });
    object[name] = value;
  }
}

/** Folds a node. */
export function fold(journal, node) {
  const before = node.flags.collapsed;
  if (!before) {
    node.collapse();
    journal.push(() => {
      node.collapse();
      if (before === undefined) {
        delete node.flags.collapsed;
      }
    });
  }
}

/** Hands what an output feeds to another node's output. */
export function handOver(journal, old, oldSlot, node, slot) {
  if (linksFrom(old, oldSlot).length) {
    takeOver(old, oldSlot, node, slot);
    journal.push(() => takeOver(node, slot, old, oldSlot));
  }
}
