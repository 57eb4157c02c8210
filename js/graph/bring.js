// Wires what the server runs to new nodes of one graph, wherever it lies: through the walls of subgraphs too.
//
//   place   { graph, within }    where the new nodes lie, and the nodes of the subgraphs around it
//   made    { nodes, slots, group }    what was added, for taking it back
//   here    what can be wired in the place: { node, slot }, or { wall, slot } for an input of its subgraph
//
// Ends are those of queued.js; the output of a new node is { node, slot }.

import { add } from "./change.js";
import { inputOf, widgetOf } from "./nodes.js";
import { sourceOf, typeOf, worthOf } from "./queued.js";
import { linkInto, linkOf } from "./walk.js";

/** Something new to fill: what is added to the graph of a place. */
export const begin = () => ({ nodes: [], slots: [], group: null });

/** Takes back all that was added. */
export function takeBack({ nodes, slots, group }) {
  nodes.forEach((node) => node.graph?.remove(node));
  slots.reverse().forEach((remove) => remove());
  group?.graph?.remove(group);
}

/** Wires an end of the queued graph, or an output of a new node, to the named input of a new node. */
export function wireEnd(queued, end, place, made, { to, name }) {
  connect(end.node ? end : reach(queued, end, place, made), place.graph, to, name);
}

/** What gives an end in the place. */
function reach(queued, end, place, made) {
  const { node, within } = queued.get(end.id);
  const type = typeOf(queued, end);
  const apart = within.findIndex((outer, i) => outer !== place.within[i]);
  const common = apart < 0 ? Math.min(within.length, place.within.length) : apart;
  let here = { node, slot: end.slot };
  for (const outer of within.slice(common).reverse()) {
    here = outward(here, outer, type, made);
  }
  for (const outer of place.within.slice(common)) {
    here = inward(here, outer, type, made);
  }
  return here;
}

function connect(here, graph, to, name) {
  const into = inputOf(to, name);
  if (here.node) {
    here.node.connect(here.slot, to, into);
  } else {
    graph.inputNode.slots[here.slot].connect(to.inputs[into], to);
  }
}

/** From inside a subgraph to an output of its node: one that gives this already, else a new one. */
function outward({ node, slot }, outer, type, made) {
  const { subgraph } = outer;
  const known = subgraph.outputs.findIndex(({ linkIds }) => {
    const link = linkOf(subgraph, linkIds?.[0]);
    return link && link.origin_slot === slot && subgraph.getNodeById(link.origin_id) === node;
  });
  if (known >= 0) {
    return { node: outer, slot: known };
  }
  const output = subgraph.addOutput(freeName(subgraph.outputs, type), type);
  made.slots.push(() => subgraph.removeOutput(output));
  subgraph.outputNode.slots[subgraph.outputs.length - 1].connect(node.outputs[slot], node);
  return { node: outer, slot: subgraph.outputs.indexOf(output) };
}

/** From outside of a subgraph to an input of it: one that gets this already, else a new one. */
function inward(here, outer, type, made) {
  const { subgraph } = outer;
  const isSame = (link) => link && (here.node
    ? outer.graph.getNodeById(link.origin_id) === here.node && link.origin_slot === here.slot
    : link.originIsIoNode && link.origin_slot === here.slot);
  const fed = outer.inputs.findIndex((_, into) => isSame(linkInto(outer, into)));
  const known = subgraph.inputs.findIndex(({ name }) => name === outer.inputs[fed]?.name);
  if (fed >= 0 && known >= 0) {
    return { wall: subgraph, slot: known };
  }
  const input = subgraph.addInput(freeName(subgraph.inputs, type), type);
  made.slots.push(() => subgraph.removeInput(input));
  connect(here, outer.graph, outer, input.name);
  return { wall: subgraph, slot: subgraph.inputs.indexOf(input) };
}

function freeName(slots, type) {
  const plain = String(type).toLowerCase();
  const taken = slots.map(({ name }) => name);
  let name = plain;
  for (let i = 2; taken.includes(name); i++) {
    name = `${plain}_${i}`;
  }
  return name;
}

/**
 * A copy of a queued node in the place: with its values, and wired
 * as it is but for `instead`, { input name: what wireEnd takes }.
 */
export function copyNode(queued, id, place, made, instead = {}) {
  const { node: old, type, inputs } = queued.get(id);
  const node = add(place.graph, type, { pos: [...old.pos] });
  made.nodes.push(node);
  grow(node, old);
  for (const name of Object.keys(inputs)) {
    const value = worthOf(queued, id, name);
    const end = instead[name] ?? sourceOf(queued, id, name);
    if (widgetOf(node, name) && value !== undefined) {
      widgetOf(node, name).value = value;
    } else if (end) {
      wireEnd(queued, end, place, made, { to: node, name });
    }
  }
  return node;
}

/** Gives a new node the inputs that the old one has grown. */
function grow(node, old) {
  for (const input of old.inputs ?? []) {
    if (inputOf(node, input.name) < 0 && !input.widget) {
      node.addInput(input.name, input.type);
    }
  }
}

