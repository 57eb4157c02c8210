// The one walker of the user's graph: what feeds what, through
// reroutes and bypassed nodes, and through the walls of subgraphs.
//
// Its data:
//
//   end     { node, slot, within }    output number `slot` of a node
//   goal    { node, into, within }    input number `into` of a node
//   wire    { from, to, into, type, within }    the end `from` feeds the goal { node: to, into, within }
//   chain   [end, ...]     a model's output, then those of the nodes that patch it, one after another
//   within  [node, ...]    the nodes of the subgraphs that a walk went into, the outermost first
//
// One subgraph can stand in a graph several times: `within` tells through
// which of its nodes a walk that goes on leaves it. Ends made by hand need
// none; a walk that starts inside a subgraph leaves it by the first node.
//
// Its functions, which change nothing:
//
//   origin(node, into, options)      up: the end that feeds an input, or null
//   goalsOf(node, slot, options)     down: the goals that an output feeds
//   wiresOf(graph, options)          every wire between nodes that take part when the graph runs
//   upstream(wires, nodes, types)    the nodes above these along wires of these types, the nearest first;
//   downstream(wires, nodes, types)  those below
//   chainTo(wires, end, type)        the chain that leads to an end
//   dependants(node)                 what can't run without a node, in its own graph
//   valueOf(node, name, within)      what a widget is worth
//   pathTo, graphsOf, isLoaded       where a node lies among the graphs
//
// Walls. Without `cross` a walk stays in one graph, as building needs it: new nodes have to lie in the graph
// of what they are wired to. It ends at the wall of the subgraph that it is in, and the node of a subgraph,
// which the host calls virtual, hands on what it gets like a reroute, whatever is inside. With `cross` it
// goes out of a subgraph to what feeds its node, and into one to what feeds its output, however deep. The
// node of a subgraph is never an end or a goal.
//
// What does not take part. A muted node gives nothing and takes nothing. A bypassed
// node hands on what it gets, see bypassedInput; with `bypassed` it is a goal itself.
// A virtual node, which only the page knows, hands on input number n as output number
// n (a reroute); one without inputs (a primitive) is an end only with `virtual`.

import { allNodes, BYPASSED, bypassedInput, inputOf, MUTED, widgetOf } from "./nodes.js";

const MOST_LINKS = 1000;      // in one walk: reroutes and bypassed nodes can be wired in a circle

// ---- links -----------------------------------------------------------------------------------------

/** The link of that number in a graph, or null. */
export function linkOf(graph, id) {
  const links = graph?.links ?? graph?._links;
  if (id == null || !links) {
    return null;
  }
  return (links instanceof Map ? links.get(id) : links[id]) ?? null;
}

/**
 * All links of a graph. Slots are found by these and never by their own `link` and `links`, which newer hosts
 * have deprecated; the host's getInputLink answers for the node of a subgraph what comes out of it.
 */
function linksOf(graph) {
  const links = graph?.links ?? graph?._links ?? [];
  return links instanceof Map ? [...links.values()] : Object.values(links);
}

/** The link into an input, or null. */
export function linkInto(node, into) {
  const isWanted = (link) => link?.target_id === node.id && link.target_slot === into;
  return linksOf(node.graph).find(isWanted) ?? null;
}

/** The links out of an output. */
export function linksFrom(node, slot) {
  return linksOf(node.graph).filter((link) => link?.origin_id === node.id && link.origin_slot === slot);
}

/** Whether a node hands on input number n as output number n. */
const handsOn = (node, cross) => node.isVirtualNode && !(cross && node.subgraph);

// ---- up --------------------------------------------------------------------------------------------

/** The end that feeds an input, or null. */
export function origin(node, into, { cross = false, virtual = false, within = [] } = {}) {
  let at = { graph: node.graph, link: linkInto(node, into), within };
  for (let i = 0; at?.link && i < MOST_LINKS; i++) {
    const from = at.graph.getNodeById(at.link.origin_id);
    const slot = at.link.origin_slot;
    if (!from) {
      at = cross ? outOf(at) : null;
    } else if (from.mode === MUTED) {
      return null;
    } else if (handsOn(from, cross) && !from.inputs?.length) {
      return virtual ? { node: from, slot, within: at.within } : null;
    } else if (handsOn(from, cross)) {
      at = { ...at, link: linkInto(from, slot) };
    } else if (from.mode === BYPASSED) {
      at = { ...at, link: linkInto(from, bypassedInput(from, slot)) };
    } else if (cross && from.subgraph) {
      at = outputOfSubgraph(from, slot, at.within);
    } else {
      return { node: from, slot, within: at.within };
    }
  }
  return null;
}

/** From a link that comes in through the wall of its subgraph: the link outside that leads there, or null. */
function outOf({ graph, link, within }) {
  const outer = link.originIsIoNode ? instanceOf(graph, within) : null;
  if (!outer) {
    return null;
  }
  const into = inputOf(outer, graph.inputs?.[link.origin_slot]?.name);
  return { graph: outer.graph, link: linkInto(outer, into), within: within.slice(0, -1) };
}

/** The link inside a subgraph that leads to an output of its node. */
function outputOfSubgraph(node, slot, within) {
  const graph = node.subgraph;
  return { graph, link: linkOf(graph, graph.outputs?.[slot]?.linkIds?.[0]), within: [...within, node] };
}

// ---- down ------------------------------------------------------------------------------------------

/** The goals that an output feeds. */
export function goalsOf(node, slot, { cross = false, bypassed = false, within = [] } = {}) {
  const found = [];
  const open = placesFrom(node, slot, within);
  for (let i = 0; open.length && i < MOST_LINKS; i++) {
    const at = open.shift();
    const to = at.graph.getNodeById(at.link.target_id);
    const into = at.link.target_slot;
    if (!to) {
      open.unshift(...(cross ? outThrough(at) : []));
    } else if (to.mode === MUTED) {
      continue;
    } else if (handsOn(to, cross)) {
      open.unshift(...placesFrom(to, into, at.within));
    } else if (to.mode === BYPASSED && !bypassed) {
      open.unshift(...bypassedOutputs(to, into).flatMap((output) => placesFrom(to, output, at.within)));
    } else if (cross && to.subgraph) {
      open.unshift(...inputOfSubgraph(to, into, at.within));
    } else {
      found.push({ node: to, into, within: at.within });
    }
  }
  return found;
}

const placesFrom = (node, slot, within) =>
  linksFrom(node, slot).map((link) => ({ graph: node.graph, link, within }));

/** The outputs that a bypassed node hands an input to. */
function bypassedOutputs(node, into) {
  return (node.outputs ?? []).map((_, slot) => slot).filter((slot) => bypassedInput(node, slot) === into);
}

/** From a link that goes out through the wall of its subgraph: the links outside that go on from there. */
function outThrough({ graph, link, within }) {
  const outer = link.targetIsIoNode ? instanceOf(graph, within) : null;
  return outer ? placesFrom(outer, link.target_slot, within.slice(0, -1)) : [];
}

/** The links inside a subgraph that go on from an input of its node. */
function inputOfSubgraph(node, into, within) {
  const graph = node.subgraph;
  const inner = graph.inputs?.find((input) => input.name === node.inputs[into]?.name);
  const links = (inner?.linkIds ?? []).map((id) => linkOf(graph, id)).filter(Boolean);
  return links.map((link) => ({ graph, link, within: [...within, node] }));
}

// ---- wires -----------------------------------------------------------------------------------------

/**
 * Every wire of a graph; with `cross` also those of the subgraphs in it, each as often as it stands there.
 */
export function wiresOf(graph, { cross = false } = {}) {
  const wires = [];
  for (const { node: to, within } of runningIn(graph, cross)) {
    (to.inputs ?? []).forEach((input, into) => {
      const from = origin(to, into, { cross, within });
      if (from) {
        wires.push({ from, to, into, type: input.type, within });
      }
    });
  }
  return wires;
}

/** [{ node, within }]: the nodes that run, those in subgraphs too with `cross`. */
function runningIn(graph, cross, within = []) {
  const runs = ({ mode }) => mode !== MUTED && mode !== BYPASSED;
  return allNodes(graph).filter((node) => runs(node) && !handsOn(node, cross)).flatMap((node) =>
    (cross && node.subgraph ? runningIn(node.subgraph, cross, [...within, node]) : [{ node, within }]));
}

/**
 * These nodes and then those above them along wires of these types, the nearest first, each once, wherever
 * its subgraph stands. Nothing is looked for above a node that `stops`.
 */
export function upstream(wires, nodes, types, stops = () => false) {
  return spread(nodes, stops, (node) =>
    wires.filter(({ to, type }) => to === node && types.includes(type)).map(({ from }) => from.node));
}

/** The same downwards. */
export function downstream(wires, nodes, types, stops = () => false) {
  return spread(nodes, stops, (node) =>
    wires.filter(({ from, type }) => from.node === node && types.includes(type)).map(({ to }) => to));
}

function spread(nodes, stops, next) {
  const met = new Set(nodes);
  for (const node of met) {      // grows while it is walked
    if (!stops(node)) {
      next(node).forEach((one) => met.add(one));
    }
  }
  return [...met];
}

/**
 * The chain that leads to an end along inputs of a type: the first input counts, as a merge's first model.
 */
export function chainTo(wires, end, type = "MODEL") {
  const chain = [end];
  for (;;) {
    const wire = wires.find((one) => one.type === type && isAt(chain[0], one.to, one.within));
    if (!wire || chain.some((one) => isAt(one, wire.from.node, wire.from.within))) {
      return chain;
    }
    chain.unshift(wire.from);
  }
}

/** Whether an end is of a node, and in that one of the places where its subgraph stands. */
function isAt(end, node, within = []) {
  const own = end.within ?? [];
  return end.node === node && own.length === within.length && own.every((one, i) => one === within[i]);
}

/** The nodes of its graph that can't run without a node, muted and bypassed ones too. */
export function dependants(node) {
  const next = (one) => (one.outputs ?? []).flatMap((_, slot) => linksFrom(one, slot))
    .map((link) => node.graph.getNodeById(link.target_id)).filter(Boolean);
  return spread([node], () => false, next).slice(1);
}

// ---- values ----------------------------------------------------------------------------------------

/** A widget's value; that of the primitive which is wired to it, where one is, also outside of a subgraph. */
export function valueOf(node, name, within = []) {
  const own = widgetOf(node, name)?.value;
  const above = origin(node, inputOf(node, name), { cross: true, virtual: true, within })?.node;
  const given = above && (widgetOf(above, "value") ?? above.widgets?.[0]);
  return given && typeof given.value === typeof own ? given.value : own;
}

// ---- graphs ----------------------------------------------------------------------------------------

/** A graph and all the subgraphs that are defined in it, whether they are used or not. */
export const graphsOf = (graph) => [graph, ...(graph?.subgraphs?.values() ?? [])];

const rootOf = (graph) => graph?.rootGraph ?? graph;

/**
 * The node that a walk went into this subgraph by, else the first that stands for it in a graph around it.
 */
function instanceOf(subgraph, within) {
  if (within.at(-1)?.subgraph === subgraph) {
    return within.at(-1);
  }
  const graphs = subgraph.rootGraph ? graphsOf(subgraph.rootGraph) : [];
  return graphs.flatMap(allNodes).find((node) => node.subgraph === subgraph) ?? null;
}

/**
 * [node of a subgraph, ..., node]: the way to a node that
 * lies in a graph, however deep; null where it does not.
 */
export function pathTo(graph, node) {
  if (node.graph === graph) {
    return [node];
  }
  for (const outer of allNodes(graph).filter((one) => one.subgraph)) {
    const path = pathTo(outer.subgraph, node);
    if (path) {
      return [outer, ...path];
    }
  }
  return null;
}

/** All the nodes of a graph and of the subgraphs in it. */
export function nodesWithin(graph) {
  return allNodes(graph).flatMap((node) => [node, ...(node.subgraph ? nodesWithin(node.subgraph) : [])]);
}

/** Whether a node is in a graph that is still loaded: those in subgraphs are not told when another one is. */
export function isLoaded({ graph }) {
  const root = rootOf(graph);
  return Boolean(graph) && (graph === root || root.subgraphs?.get(graph.id) === graph);
}
