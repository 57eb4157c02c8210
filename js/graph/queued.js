// The graph as the server would run it: what graphToPrompt gives, mapped back to the nodes on the canvas.
//
// There subgraphs are opened (node 5 in the subgraph of node 12 is "12:5"), values are those of the outermost
// widget or primitive, and nodes that don't run, reroutes and other packs' Set and Get nodes are gone. On top
// of that switches are followed as they stand, and values that plain nodes make are worked out.
//
//   queued  Map: id -> { id, type, inputs, node, graph, within }    inputs as the server gets them
//   end     { id, slot }    output number `slot` of one of them
//
// Its functions, which change nothing:
//
//   readQueued(app)                      the queued graph
//   sourceOf(queued, id, name)           the end that feeds an input, or null
//   worthOf(queued, id, name)            what an input is worth; undefined where only running tells
//   wiredOf(queued, id, ...types)        names of the inputs that nodes feed, those of these types
//   typeOf(queued, end)                  type of an output
//   goalsFrom(queued, id)                [{ slot, id, name }] that its outputs feed
//   aboveOf(queued, ids, types)          ids of these and those above along these types, the nearest first

import { calculate } from "./calculate.js";
import { allNodes, inputOf } from "./nodes.js";

const MOST = 1000;                            // switches in a row: they can be wired in a circle
const ANY = ["*", "", undefined, 0];
// what other packs call their nodes of one plain value
const CONSTANT = /constant|literal|multiline|^(easy )?(int|float|string|text|boolean)$/i;
const GOALS = new WeakMap();                  // queued -> its goals, worked out once

export async function readQueued(app) {
  const { output } = await app.graphToPrompt();
  const queued = new Map();
  for (const [id, { class_type: type, inputs }] of Object.entries(output)) {
    const place = type ? placeOf(app.graph, id) : null;
    if (place) {
      queued.set(id, { id, type, inputs, ...place });
    }
  }
  return queued;
}

function placeOf(root, id) {
  const parts = id.split(":");
  const last = parts.pop();
  const find = (graph, part) => allNodes(graph).find((node) => String(node.id) === part);
  const within = [];
  let graph = root;
  for (const part of parts) {
    const outer = find(graph, part);
    if (!outer?.subgraph) {
      return null;
    }
    within.push(outer);
    graph = outer.subgraph;
  }
  const node = find(graph, last);
  return node ? { node, graph, within } : null;
}

/** The id by which the server knows a node of the canvas, or null where it does not run. */
export function idOf(queued, node) {
  return [...queued.values()].find((one) => one.node === node)?.id ?? null;
}

const isLink = (queued, value) => Array.isArray(value) && value.length === 2 && queued.has(String(value[0]));

// ---- wires -----------------------------------------------------------------------------------------

export function sourceOf(queued, id, name) {
  let value = queued.get(id)?.inputs[name];
  for (let i = 0; isLink(queued, value) && i < MOST; i++) {
    const from = String(value[0]);
    const chosen = choiceOf(queued, from);
    if (chosen === undefined) {
      return { id: from, slot: value[1] };
    }
    value = queued.get(from).inputs[chosen];
  }
  return null;
}

/**
 * The input that a switch hands on, by its name; undefined for
 * what is none, or where only running the graph tells.
 */
function choiceOf(queued, id) {
  const { inputs, node } = queued.get(id);
  const has = (...names) => names.every((name) => name in inputs || inputOf(node, name) >= 0);
  if (has("on_true", "on_false")) {
    const turned = worthOf(queued, id, ["switch", "boolean", "value"].find((name) => name in inputs));
    return typeof turned === "boolean" ? `on_${turned}` : undefined;
  }
  if (has("select") && (has("input1") || has("input0"))) {
    const number = worthOf(queued, id, "select");
    return Number.isInteger(number) && `input${number}` in inputs ? `input${number}` : undefined;
  }
  const anyOf = Object.keys(inputs).filter((name) => /^any_?\d+$/.test(name));
  return anyOf.length && node.outputs?.length === 1 ? anyOf.find((name) => inputs[name] != null) : undefined;
}

export function wiredOf(queued, id, ...types) {
  const { inputs } = queued.get(id);
  const wired = Object.keys(inputs).filter((name) => isLink(queued, inputs[name]));
  return types.length ? wired.filter((name) => types.includes(inputType(queued, id, name))) : wired;
}

/** Type of an input; that of one which takes any type, from what feeds it. */
export function inputType(queued, id, name) {
  const { node } = queued.get(id);
  const own = node.inputs?.[inputOf(node, name)]?.type;
  if (!ANY.includes(own) && !String(own).startsWith("COMFY_")) {
    return own;
  }
  const end = sourceOf(queued, id, name);
  return end ? typeOf(queued, end) : own;
}

export function typeOf(queued, { id, slot }) {
  return queued.get(id).node.outputs?.[slot]?.type;
}

/** Types of all of a node's outputs. */
export const typesOf = (queued, id) => (queued.get(id).node.outputs ?? []).map(({ type }) => type);

export function goalsFrom(queued, id) {
  if (!GOALS.has(queued)) {
    GOALS.set(queued, allGoals(queued));
  }
  return GOALS.get(queued).get(id) ?? [];
}

function allGoals(queued) {
  const goals = new Map();
  for (const id of queued.keys()) {
    for (const name of choiceOf(queued, id) === undefined ? wiredOf(queued, id) : []) {
      const end = sourceOf(queued, id, name);
      if (end) {
        goals.set(end.id, [...(goals.get(end.id) ?? []), { slot: end.slot, id, name }]);
      }
    }
  }
  return goals;
}

export function aboveOf(queued, ids, types) {
  const met = new Set(ids);
  for (const id of met) {      // grows while it is walked
    for (const name of wiredOf(queued, id, ...types)) {
      const end = sourceOf(queued, id, name);
      if (end) {
        met.add(end.id);
      }
    }
  }
  return [...met];
}

export const sameEnd = (one, other) =>
  Boolean(one && other) && one.id === other.id && one.slot === other.slot;

// ---- values ----------------------------------------------------------------------------------------

export function worthOf(queued, id, name) {
  let value = queued.get(id)?.inputs[name];
  for (let i = 0; isLink(queued, value) && i < MOST; i++) {
    const from = String(value[0]);
    const chosen = choiceOf(queued, from);
    if (chosen === undefined) {
      return madeBy(queued, from, value[1]);
    }
    value = queued.get(from).inputs[chosen];
  }
  return Array.isArray(value) ? undefined : value;
}

/** What a node of plain values gives. */
function madeBy(queued, id, slot) {
  const { type, inputs } = queued.get(id);
  const worth = (name) => worthOf(queued, id, name);
  const texts = (...names) => {
    const values = names.map(worth);
    return values.every((value) => typeof value === "string") ? values : null;
  };
  if (type.startsWith("Primitive")) {
    return worth("value");
  }
  if (type === "CustomCombo") {
    return slot === 0 ? worth("choice") : undefined;
  }
  if (type === "ComfyNumberConvert") {
    const number = Number(worth("value"));
    return slot === 0 ? number : Math.trunc(number);
  }
  if (type === "StringConcatenate") {
    return texts("string_a", "string_b")?.join(worth("delimiter") ?? "");
  }
  if (type === "StringReplace") {
    const [whole, part, by] = texts("string", "find", "replace") ?? [];
    return whole?.replaceAll(part, by);
  }
  if (type === "ComfyMathExpression") {
    const names = Object.keys(inputs).filter((name) => name.startsWith("values."));
    const values = Object.fromEntries(names.map((name) => [name.slice("values.".length), worth(name)]));
    return calculate(String(worth("expression")), values);
  }
  const [own, ...others] = Object.values(inputs);
  return CONSTANT.test(type) && !others.length && !Array.isArray(own) ? own : undefined;
}
