// The prompts of the user's graph: their text where it can be read, and what makes conditioning of it.

import { encodersOf, inputOf, origin, outputOf, slotOf, widgetOf } from "./find.js";

/**
 * What to distil on: { clip, text, negativeText, positive, negative, guidance }. Where clip, an end, is null the ends `positive`
 * and `negative` are all there is; `negative` beside a clip is one that comes from no text of its own. guidance: a Flux model's.
 */
export function promptsOf(graph, wires, inputs, loader) {
  const encoders = encodersOf(wires, inputs?.positive);
  const others = encodersOf(wires, inputs?.negative).filter((node) => !encoders.includes(node));
  const clip = encoders.map((node) => origin(node, slotOf(node.inputs, "CLIP"))).find(Boolean) ?? outputOf(graph, "CLIP", loader);
  const zeroed = inputs?.negative && inputs.negative.node !== inputs.positive?.node && !others.length && encoders.length;
  return {
    clip,
    text: listOf(encoders.map(textOf)),
    negativeText: others.map(textOf).filter(Boolean).join(", "),
    positive: inputs?.positive ?? null,
    negative: clip && !zeroed ? null : inputs?.negative ?? null,
    guidance: guidanceOf(wires, inputs?.positive),
  };
}

/** As the node's text takes them: one a line, or a line of --- after each. */
function listOf(texts) {
  const own = [...new Set(texts.map((text) => text.trim()).filter(Boolean))];
  return own.some((text) => text.includes("\n")) ? own.map((text) => `${text}\n---`).join("\n") : own.join("\n");
}

/** The longest text of an encoder's widgets; where one is wired to a node with a single text, that. */
function textOf(node) {
  const texts = textWidgets(node).map((widget) => {
    const from = origin(node, inputOf(node, widget.name));
    const there = from ? textWidgets(from.node) : [widget];
    return there.length === 1 ? there[0].value : "";
  });
  return texts.reduce((longest, text) => (text.length > longest.length ? text : longest), "");
}

const textWidgets = (node) => (node.widgets ?? []).filter((widget) => typeof widget.value === "string"
  && !["combo", "button"].includes(widget.type));

function guidanceOf(wires, end) {
  let node = end?.node;
  for (let i = 0; node && i < 20; i++) {
    if (node.type === "FluxGuidance") {
      return widgetOf(node, "guidance")?.value;
    }
    const at = node;
    node = wires.find(({ to, type }) => to === at && type === "CONDITIONING")?.from.node;
  }
  return undefined;
}
