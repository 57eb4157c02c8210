// What the server expects of a node before it is queued: what its automatic settings stand for, memory and
// time (nodes/forecast.py). Asked again when anything changes that it depends on; the same question once.

import { inputOf, slotOf, widgetOf } from "../graph/nodes.js";
import { origin, valueOf } from "../graph/walk.js";
import { DEMO, DISTIL, PAIRS, RESTORE, ROUTE, TRAIN_ON_PAIRS } from "../names.js";

const SETTINGS = [
  "steps", "cfg", "quality", "updates", "batch", "rank", "learning_rate", "phases", "layers", "memory",
  "residency", "optimizer",
];
const METHOD = "method", PROCESS = "process";       // a process that is wired chooses the method
const FILES = { ckpt_name: "checkpoint", unet_name: "unet" };     // a loader's widget: its name at the server
const SIZES = ["width", "height", "length"];
const UP = { cross: true };
const MOST = 50;      // questions that are remembered
const NOTHING = { values: {}, lines: [] };
const answers = new Map();

/** The query that asks for a node's forecast; "" for a node of which there is none. */
export function questionOf(node, type) {
  if (![DISTIL, PAIRS, TRAIN_ON_PAIRS].includes(type) || !node.graph) {
    return "";
  }
  const model = modelOf(node);
  if (!model) {
    return "";
  }
  const settings = origin(node, inputOf(node, PROCESS), UP) ? SETTINGS : [...SETTINGS, METHOD];
  const values = settings.map((name) => [name, widgetOf(node, name) && valueOf(node, name)]);
  const above = origin(node, inputOf(node, "latent"), UP)?.node;
  const sizes = SIZES.map((name) => [name, above && widgetOf(above, name) && valueOf(above, name)]);
  const known = [...values, ...sizes].filter(([, value]) => value !== undefined && value !== null);
  return String(new URLSearchParams({ node: type, ...model, ...Object.fromEntries(known) }));
}

/** The file, or the demo teacher, that a node's model is loaded from, past what patches it. */
function modelOf(node) {
  let at = origin(node, inputOf(node, "model"), UP);
  for (let i = 0; at && i < MOST; i++) {
    const { node: from, within } = at;
    if (from.type === DEMO) {
      return { demo: valueOf(from, "teacher", within) };
    }
    const name = Object.keys(FILES).find((one) => widgetOf(from, one));
    if (name) {
      return { [FILES[name]]: valueOf(from, name, within) };
    }
    at = origin(from, slotOf(from.inputs, "MODEL"), { ...UP, within });
  }
  return null;
}

/** The question of a Restore node: its LoRA. */
export const loraQuestion = (node) =>
  String(new URLSearchParams({ node: RESTORE, lora_name: widgetOf(node, "lora_name")?.value ?? "" }));

/** { values, lines } of a question; nothing where there is no answer. */
export async function expect(api, question) {
  if (!question) {
    return NOTHING;
  }
  if (!answers.has(question)) {
    const asked = api.fetchApi(`${ROUTE}/forecast?${question}`)
      .then((reply) => (reply.ok ? reply.json() : NOTHING), () => NOTHING);
    answers.set(question, asked);
    if (answers.size > MOST) {
      answers.delete(answers.keys().next().value);
    }
  }
  return answers.get(question);
}

/** Forgets what was answered: a run that ended tells more. */
export function forget() {
  answers.clear();
}
