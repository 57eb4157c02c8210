// The prompts of the user's graph: their text where it can be read, and what makes conditioning of it.

import { FLUX_GUIDANCE } from "../names.js";
import { encodersOf, outputOf } from "./find.js";
import { inputOf, slotOf, widgetOf } from "./nodes.js";
import { chainTo, origin } from "./walk.js";

/**
 * What to distil on: { clip, text, negativeText, positive, negative, guidance }. Where clip, an end, is null
 * the ends `positive` and `negative` are all there is; `negative` beside a clip is one that comes from no
 * text of its own. guidance: a Flux model's.
 */
export function promptsOf(graph, wires, inputs, loader) {
  const encoders = encodersOf(wires, inputs?.positive);
  const others = encodersOf(wires, inputs?.negative).filter((node) => !encoders.includes(node));
  const wired = encoders.map((node) => origin(node, slotOf(node.inputs, "CLIP"))).find(Boolean);
  const clip = wired ?? outputOf(graph, "CLIP", loader);
  const apart = inputs?.negative && inputs.negative.node !== inputs.positive?.node;
  const zeroed = apart && !others.length && encoders.length;
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
  const long = own.some((text) => text.includes("\n"));
  return own.map((text) => (long ? `${text}\n---` : text)).join("\n");
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

/** The guidance of a Flux model that is the nearest before a prompt's end; undefined where there is none. */
function guidanceOf(wires, end) {
  const chain = end ? chainTo(wires, end, "CONDITIONING") : [];
  const nearest = chain.findLast(({ node }) => node.type === FLUX_GUIDANCE)?.node;
  return nearest && widgetOf(nearest, "guidance")?.value;
}
