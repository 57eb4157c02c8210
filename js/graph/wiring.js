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

/** The property of a copy that tells what of. */
export const COPY_OF = "fewstep_copy_of";

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
  const type = typeOf(queued, end);
  const { here, out, into } = wallsTo(queued, end, place);
  const outside = out.reduce((at, outer) => outward(at, outer, type, made), here);
  return into.reduce((at, outer) => inward(at, outer, type, made), outside);
}

/** How many slots the walls between an end and a place would get. */
export function slotsTo(queued, end, place) {
  const { here, out, into } = wallsTo(queued, end, place);
  let [at, count] = [here, 0];
  for (const outer of out) {
    const slot = at ? outputFor(at, outer) : -1;
    count += slot < 0;
    at = slot < 0 ? null : { node: outer, slot };
  }
  for (const outer of into) {
    const slot = at ? inputFor(at, outer) : -1;
    count += slot < 0;
    at = slot < 0 ? null : { wall: outer.subgraph, slot };
  }
  return count;
}

/** { here, out, into }: an end, and the nodes of the subgraphs to leave and then to enter from there. */
function wallsTo(queued, { id, slot }, place) {
  const { node, within } = queued.get(id);
  const apart = within.findIndex((outer, i) => outer !== place.within[i]);
  const common = apart < 0 ? Math.min(within.length, place.within.length) : apart;
  return { here: { node, slot }, out: within.slice(common).reverse(), into: place.within.slice(common) };
}

function connect(here, graph, to, name) {
  const into = inputOf(to, name);
  if (here.node) {
    here.node.connect(here.slot, to, into);
  } else {
    graph.inputNode.slots[here.slot].connect(to.inputs[into], to);
  }
}

/** The number of the output of a subgraph's node that gives what is inside already; -1 for none. */
const outputFor = ({ node, slot }, { subgraph }) => subgraph.outputs.findIndex(({ linkIds }) => {
  const link = linkOf(subgraph, linkIds?.[0]);
  return link && link.origin_slot === slot && subgraph.getNodeById(link.origin_id) === node;
});

/** The number of the input of a subgraph that gets what is outside already; -1 for none. */
function inputFor(here, outer) {
  const isSame = (link) => link && (here.node
    ? outer.graph.getNodeById(link.origin_id) === here.node && link.origin_slot === here.slot
    : link.originIsIoNode && link.origin_slot === here.slot);
  const fed = outer.inputs.filter((_, into) => isSame(linkInto(outer, into))).map(({ name }) => name);
  return outer.subgraph.inputs.findIndex(({ name }) => fed.includes(name));
}

/** From inside a subgraph to an output of its node: one that gives this already, else a new one. */
function outward(here, outer, type, made) {
  const { subgraph } = outer;
  const known = outputFor(here, outer);
  if (known >= 0) {
    return { node: outer, slot: known };
  }
  const output = subgraph.addOutput(freeName(subgraph.outputs, type), type);
  made.slots.push(() => subgraph.removeOutput(output));
  const slot = subgraph.outputs.indexOf(output);
  subgraph.outputNode.slots[slot].connect(here.node.outputs[here.slot], here.node);
  return { node: outer, slot };
}

/** From outside of a subgraph to an input of it: one that gets this already, else a new one. */
function inward(here, outer, type, made) {
  const { subgraph } = outer;
  const known = inputFor(here, outer);
  if (known >= 0) {
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
  const node = cloned(old, place.graph) ?? add(place.graph, type, { pos: [...old.pos] });
  made.nodes.push(node);
  node.properties = { ...node.properties, [COPY_OF]: id };
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

/** A copy by the host's own hand, with what other packs keep in their nodes; null where it makes none. */
function cloned(old, graph) {
  const node = old.clone?.() ?? null;
  if (node) {
    graph.add(node);
    node.pos = [...old.pos];
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

