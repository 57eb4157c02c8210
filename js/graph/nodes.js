// What a node is and has: its mode, slots and widgets.
// Slots are told by their number, -1 where there is none.

export const ALWAYS = 0;        // values of a node's `mode`: takes part,
export const MUTED = 2;         // gives nothing, and nothing that needs it runs,
export const BYPASSED = 4;      // hands what it gets to the outputs of the same type

/** The first slot of a type among a node's inputs or outputs. */
export const slotOf = (slots, type) => (slots ?? []).findIndex((slot) => slot.type === type);

export const inputOf = (node, name) => (node.inputs ?? []).findIndex((slot) => slot.name === name);

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a node has an output of a type, and whether an input. */
export const gives = (node, type) => slotOf(node?.outputs, type) >= 0;
export const takes = (node, type) => slotOf(node?.inputs, type) >= 0;

/** The end of a node's first output of a type. */
export const endOfType = (node, type) => ({ node, slot: slotOf(node.outputs, type) });

/** The end of an output by its name. */
export const endOf = (node, name) => ({ node, slot: node.outputs.findIndex((slot) => slot.name === name) });

/** All the nodes of a graph, as older and as newer frontends name them. */
export const allNodes = (graph) => graph.nodes ?? graph._nodes;

/** The nodes of a graph that take part when it runs; bypassed ones count. */
export function nodesOf(graph) {
  return allNodes(graph).filter((node) => node.mode !== MUTED && !node.isVirtualNode);
}

/**
 * The input that a bypassed node hands to an output: the one
 * beside it if of the same type, else the first that is.
 */
export function bypassedInput(node, slot) {
  const type = node.outputs?.[slot]?.type;
  return node.inputs?.[slot]?.type === type ? slot : slotOf(node.inputs, type);
}
