// The prompts to train on: the sampler's text in a node of ours, with others beside it, through copies of the
// nodes that the sampler's positive conditioning goes through (guidance, frame rate, reference pictures).

import { DEMO } from "../names.js";
import { widgetOf } from "./nodes.js";
import { inputType, sourceOf, typesOf, wiredOf, worthOf } from "./queued.js";

// what begins a comment, and parts prompts of several lines
const MARK = /^([ \t]*)(\\*(?:#|-{3,}[ \t\r]*$))/gm;
const ENCODES = /^CLIPTextEncode/;
const GUIDANCE = "guidance";                 // of Flux, that some encoders hold
const LABELS = "all_labels";                 // output of our demo teacher

/** The node whose conditioning is a list: what it joins are prompts of their own. */
export const JOIN = "ConditioningCombine";

/** Types of inputs that bring no more than text and numbers. */
export const TEXT_ONLY = ["CONDITIONING", "CLIP", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"];


/**
 * How the positive conditioning can be made anew from a list of prompts; null
 * where it can't, and is best taken as it is:
 *   clip       the end that encodes
 *   text       the sampler's prompts, as our node takes them
 *   whole      whether that is all that the encoders are given; else the conditioning itself is a prompt too
 *   guidance   what the encoder itself holds
 *   encoders   ids of the nodes that make conditioning of text; way: those between them and the sampler
 *   pictures   whether more than text comes in on that way
 */
export function promptsOf({ queued, positive }) {
  const way = positive ? wayUp(queued, positive) : [];
  const encoders = way.filter((id) => wiredOf(queued, id, "CLIP").length);
  const between = way.filter((id) => !encoders.includes(id));
  const texts = encoders.map((id) => textOf(queued, id));
  const ends = between.filter((id) => !conditioningInto(queued, id).length);
  const joins = between.filter((id) => conditioningInto(queued, id).length > 1
    && queued.get(id).type !== JOIN);
  if (!encoders.length || !encoders.every((id) => isText(queued, id)) || ends.length || joins.length) {
    return null;
  }
  const clip = sourceOf(queued, encoders[0], wiredOf(queued, encoders[0], "CLIP")[0]);
  const guidance = worthOf(queued, encoders[0], GUIDANCE);
  const pictures = between.some((id) =>
    wiredOf(queued, id).some((name) => !TEXT_ONLY.includes(inputType(queued, id, name))));
  const whole = !texts.includes(undefined);
  return { clip, text: listOf(texts.filter(Boolean)), whole, guidance, encoders, pictures, way: between };
}

/** Whether the sampler's prompt is a label of our demo teacher, which has an output with all of them. */
export const labelsOf = ({ queued, positive }) => {
  const node = positive && queued.get(positive.id).node;
  const slot = node?.type === DEMO ? node.outputs.findIndex(({ name }) => name === LABELS) : -1;
  return slot < 0 ? null : { id: positive.id, slot };
};

/** Ids of the nodes that a conditioning comes through, the nearest first; encoders end it. */
function wayUp(queued, end) {
  const met = new Set();
  const open = [end];
  for (const { id, slot } of open) {      // grows while it is walked
    if (met.has(id)) {
      continue;
    }
    met.add(id);
    if (!wiredOf(queued, id, "CLIP").length) {
      const names = conditioningInto(queued, id, slot);
      open.push(...names.map((name) => sourceOf(queued, id, name)).filter(Boolean));
    }
  }
  return [...met];
}

/**
 * Names of the inputs whose conditioning a node hands on at an output: where it
 * passes several through, the one that belongs to it; without a slot those of the first.
 */
export function conditioningInto(queued, id, slot = undefined) {
  const { node } = queued.get(id);
  const names = wiredOf(queued, id, "CONDITIONING");
  const outputs = typesOf(queued, id).flatMap((type, i) => (type === "CONDITIONING" ? [i] : []));
  if (outputs.length < 2 || names.length < 2) {
    return names;
  }
  const at = slot ?? outputs[0];
  const same = names.find((name) => name === node.outputs[at].name);
  return [same ?? names[outputs.indexOf(at)] ?? names[0]];
}

/** Whether a node makes conditioning of text alone, as our list of prompts does. */
const isText = (queued, id) => ENCODES.test(queued.get(id).type)
  && wiredOf(queued, id).every((name) => TEXT_ONLY.includes(inputType(queued, id, name)));

/** The prompt that an encoder is given; undefined where it is given more, or only running tells what. */
function textOf(queued, id) {
  const own = Object.keys(queued.get(id).inputs).filter((name) =>
    name !== GUIDANCE && inputType(queued, id, name) !== "CLIP");
  const values = own.map((name) => (isChoice(queued, id, name) ? null : worthOf(queued, id, name)));
  const texts = new Set(values.map((value) => (typeof value === "string" ? value.trim() : null)));
  return texts.size === 1 && !texts.has(null) ? values[0] : undefined;
}

/** Whether an input is a list to choose from. */
const isChoice = (queued, id, name) => widgetOf(queued.get(id).node, name)?.type === "combo";

/**
 * As the node's text takes them: one a line, or a line of ---
 * after each; with a backslash before what is no mark of that.
 */
function listOf(texts) {
  const plain = texts.map((text) => text.trim()).filter(Boolean);
  const own = [...new Set(plain)].map((text) => text.replace(MARK, "$1\\$2"));
  const long = own.some((text) => text.includes("\n"));
  return own.map((text) => (long ? `${text}\n---` : text)).join("\n");
}

