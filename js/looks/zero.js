// What 0, or an empty text, stands for on a widget: the word is shown in the value's place by both renderers,
// and the value stays. nodes/zero.py says of which inputs: fewstep_zero in their options.
//
//   "auto · 6"     found by the node; the number where it is known (know)
//   "off", "all"   as they are

import { after } from "../graph/hooks.js";
import { allNodes, widgetOf } from "../graph/nodes.js";
import { isOurs } from "../names.js";
import { t } from "../text.js";

export const KEY = "fewstep_zero";
const known = new WeakMap();      // node: { input: number }
const marked = new WeakMap();     // node: { input: word }
let sheet = null;

/** Marks a new node's widgets. inputs: { name: options } as the server told. */
export function markZeros(app, node, inputs) {
  const words = {};
  for (const [name, options] of Object.entries(inputs)) {
    const widget = options[KEY] && widgetOf(node, name);
    if (widget) {
      words[name] = options[KEY];
      onCanvas(node, widget);
      stepOut(node, widget, options);
      if (typeof widget.value === "string") {
        widget.options.placeholder = t(`nodes.zero.${options[KEY]}`);      // Nodes 2.0's own
      }
    }
  }
  if (Object.keys(words).length) {
    marked.set(node, words);
    inNodes2(app);
  }
}

/** Tells which numbers "auto" stands for on a node at this moment: { input: number }. */
export function know(app, node, values) {
  if (JSON.stringify(known.get(node) ?? {}) !== JSON.stringify(values)) {
    known.set(node, values);
    node.setDirtyCanvas?.(true, true);
    inNodes2(app);
  }
}

/** The word in the place of an input's 0. */
export function zeroWord(node, name) {
  const word = t(`nodes.zero.${marked.get(node)[name]}`);
  const value = known.get(node)?.[name];
  return value === undefined ? word : `${word} · ${short(value)}`;
}

/** Three digits that mean something: 0.00005 as 5e-5. */
function short(value) {
  const text = String(Number(value.toPrecision(3)));
  return text.length > 5 ? Number(text).toExponential().replace("e+", "e") : text;
}

const isZero = (widget) => widget.value === "" || Number(widget.value) === 0;

/** The classic canvas draws what a widget says its value reads. */
function onCanvas(node, widget) {
  const own = readingOf(widget);
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get: () => (isZero(widget) && !widget.computedDisabled ? zeroWord(node, widget.name) : own()),
  });
}

function readingOf(widget) {
  for (let at = widget; at; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, "_displayValue");
    if (found?.get) {
      return () => found.get.call(widget);
    }
  }
  return () => String(widget.value);
}

/**
 * The first step up from "auto" is the number that it stood for, not 0.1 or a millionth. Whole numbers step
 * to 1: as good a value as any, which a step can't be told from.
 */
function stepOut(node, widget, { step = 1 }) {
  if (step >= 1) {
    return;
  }
  const before = widget.callback;
  let last = widget.value;
  after(node, "onConfigure", () => {
    last = widget.value;
  });
  widget.callback = function (value, ...others) {
    const start = known.get(node)?.[widget.name];
    if (start !== undefined && Number(last) === 0 && value > 0 && value <= step * 1.001) {
      widget.value = value = start;
    }
    last = value;
    return before?.call(this, value, ...others);
  };
}

/**
 * Nodes 2.0 draws numbers in fields of its own, which take no words: a style
 * sheet writes them over the fields that hold a 0, for the nodes of the graph that is shown.
 */
function inNodes2(app) {
  sheet ??= document.head.appendChild(document.createElement("style"));
  if (!sheet.pending) {
    sheet.pending = true;
    queueMicrotask(() => {
      sheet.pending = false;
      const text = rulesOf(app).join("\n");
      if (sheet.textContent !== text) {
        sheet.textContent = text;
      }
    });
  }
}

/** Of the graph that is shown; called again where another one is. */
export function showZeros(app) {
  if (sheet) {
    inNodes2(app);
  }
}

function rulesOf(app) {
  const shown = app.canvas?.graph ?? app.graph;
  const nodes = shown ? allNodes(shown).filter((node) => isOurs(node.type ?? "") && marked.has(node)) : [];
  return nodes.flatMap((node) => Object.keys(marked.get(node)).map((name) => {
    const field = `[data-node-id="${node.id}"] [aria-label="${name}"] `;
    const zero = '> input[aria-valuenow="0"]:not(:focus, :disabled)';
    const word = JSON.stringify(zeroWord(node, name));
    return `${field}:has(${zero}) ${zero} { color: transparent; }\n`
      + `${field}:has(${zero})::after { content: ${word}; position: absolute; inset: 0; padding: 0 4px; `
      + "display: flex; align-items: center; overflow: hidden; white-space: nowrap; pointer-events: none; }";
  }));
}
