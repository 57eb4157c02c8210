// "Make this model few-step": a group of nodes that distils the
// model a node gives, wired to the graph's own prompts, and queued.

import { DEMO, DISTIL, EMPTY_LATENT, FLUX_GUIDANCE, PREVIEW, PROMPTS } from "../names.js";
import { t } from "../text.js";
import { add, change, drawn, setMuted, toast, wire } from "./change.js";
import { emptyLatent, inputsOf, mainOf, samplingBehind, sourceOfModel, teacherOf, vaeOf } from "./find.js";
import { allNodes, ALWAYS, endOf, endOfType, gives, inputOf } from "./nodes.js";
import { arrange, boxOfAll, frame, show } from "./places.js";
import { promptsOf } from "./prompts.js";
import { queueNodes } from "./queue.js";
import { chainTo, dependants, origin, wiresOf } from "./walk.js";

const MODEL_FILE = /^(?:.*[\\/])?(.+)\.(safetensors|sft|ckpt|gguf|pth?|bin)$/i;
const LARGE = /xl|pony|illustrious|noob|animagine|sd3|flux|chroma|qwen|z[-_]?image|lumina|hidream/i;
const SIDES = { demo: 32, large: 1024, other: 512 };      // of the pictures that a model was made for
const SIZE = [380, 460];                                  // of the preview

/**
 * Adds the nodes, or takes those that are there for this model already, and queues them. Answers the
 * FewstepDistil node. Throws an Error to show where the graph lacks something.
 */
export async function makeFewStep(app, api, node) {
  const plan = planFor(node ?? sourceOfModel(app));
  const known = distilOf(plan.graph, plan.end);
  return change(app, plan.graph, async () => {
    const distil = known ?? await build(app, plan);
    if (known) {
      await wake(app, known);
    } else {
      tellLeftOut(app, plan.leftOut, t("graph.title"));
    }
    await queueNodes(app, [distil, ...dependants(distil).filter((one) => one.type === PREVIEW)]);
    return distil;
  });
}

/** Says which nodes of the user's chain the new ones pass by. */
export function tellLeftOut(app, nodes, summary) {
  if (nodes.length) {
    const names = nodes.map((node) => node.title).join(", ");
    toast(app, "warn", summary, t("graph.leftOut", { names }));
  }
}

/** What is wired to what; nothing is changed yet. */
function planFor(node) {
  if (!gives(node, "MODEL")) {
    throw new Error(t("graph.noModel"));
  }
  const graph = node.graph;
  const wires = wiresOf(graph);
  let chain = chainTo(wires, endOfType(node, "MODEL"));
  if (chain.length === 1) {
    chain = mainOf(wires, samplingBehind(wires, chain[0]))?.chain ?? chain;
  }
  const { end, leftOut } = teacherOf(wires, chain);
  const sampling = mainOf(wires, samplingBehind(wires, end))?.sampling;
  const loader = chain[0].node;
  const inputs = sampling && inputsOf(wires, sampling);
  const prompts = loader.type === DEMO ? demoPrompts(loader) : promptsOf(graph, wires, inputs, loader);
  if (!prompts.clip && !(prompts.positive && prompts.negative)) {
    throw new Error(t("graph.noPrompts"));
  }
  const latent = emptyLatent(graph, wires, sampling);
  return { graph, loader, end, leftOut, prompts, latent, vae: vaeOf(graph, wires, sampling, loader) };
}

function demoPrompts(loader) {
  return { clip: null, positive: endOf(loader, "all_labels"), negative: endOf(loader, "negative") };
}

/** The node that distils that very model already; one that the user has muted counts too. */
export function distilOf(graph, end) {
  return allNodes(graph).find((node) => {
    const from = node.type === DISTIL && origin(node, inputOf(node, "model"));
    return from && from.node === end.node && from.slot === end.slot;
  });
}

async function wake(app, distil) {
  setMuted(dependants(distil), false);
  distil.mode = ALWAYS;
  await show(app, [distil]);
}

async function build(app, plan) {
  const { graph, loader, end, prompts, vae } = plan;
  const place = beside(graph);
  const name = nameOf(loader);
  const distil = add(graph, DISTIL, { pos: place, values: { name: name && `${name}_fewstep` } });
  const columns = [[], [], [distil], []];
  const more = (column, type, values) => {
    const node = add(graph, type, { pos: place, values });
    columns[column].push(node);
    return node;
  };
  let { positive, negative, latent } = { ...prompts, latent: plan.latent };
  if (prompts.clip) {
    const node = more(0, PROMPTS, { text: prompts.text, negative: prompts.negativeText });
    wire(prompts.clip, node, "clip");
    positive = { node, slot: 0 };
    negative ??= { node, slot: 1 };
  }
  if (prompts.clip && prompts.guidance !== undefined) {
    const node = more(1, FLUX_GUIDANCE, { guidance: prompts.guidance });
    wire(positive, node, "conditioning");
    positive = { node, slot: 0 };
  }
  if (!latent) {
    const side = sideOf(loader, name);
    latent = { node: more(0, EMPTY_LATENT, { width: side, height: side }), slot: 0 };
  }
  for (const [input, from] of Object.entries({ model: end, positive, negative, latent, vae })) {
    wire(from, distil, input);
  }
  const preview = more(3, PREVIEW);
  preview.setSize([...SIZE]);
  wire(endOf(distil, "preview"), preview, "images");

  arrange(columns, place);
  await drawn();
  arrange(columns, place);
  frame(graph, t("graph.group", { model: name ?? loader.title }), columns.flat());
  await show(app, columns.flat());
  return distil;
}

/** Below a wide graph, to the right of a tall one. */
function beside(graph) {
  const [x, y, width, height] = boxOfAll(graph);
  return width > height ? [x + 20, y + height + 160] : [x + width + 120, y + 80];
}

/** The name of the file that a loader loads, without folder and ending; undefined where it shows none. */
function nameOf(loader) {
  const found = (loader.widgets ?? []).map((widget) => MODEL_FILE.exec(String(widget.value))).find(Boolean);
  return found?.[1].replace(/[^\p{L}\p{N}_-]+/gu, "_");
}

function sideOf(loader, name) {
  if (loader.type === DEMO) {
    return SIDES.demo;
  }
  return LARGE.test(name ?? "") ? SIDES.large : SIDES.other;
}
