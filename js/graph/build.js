// The group of nodes of "Make this model few-step": what distils, with all that the sampler gets wired to it.
//
//   plan   { reading, place, first, latent, model, again, guided, prompts }, see oneclick.js

import { DISTIL, FLUX_GUIDANCE, isOurs, PREVIEW, PROMPTS } from "../names.js";
import { t } from "../text.js";
import { copyPatches } from "./bare.js";
import { add, drawn } from "./change.js";
import { endOf } from "./nodes.js";
import { arrange, boxOfAll, frame } from "./places.js";
import { conditioningInto, JOIN, labelsOf, promptsOf } from "./prompts.js";
import { sameEnd, sourceOf, typesOf } from "./queued.js";
import { copyNode, wireEnd } from "./wiring.js";

const MODEL_FILE = /^(?:.*[\\/])?(.+)\.(safetensors|sft|ckpt|gguf|pth?|bin)$/i;
const SIZE = [380, 460];                                  // of the preview
const TYPED = "typed only";                               // a source of our prompts' node
const GUIDER = "CFGGuider";

/** The new nodes, in a frame; made: takes note of them. Answers the one that distils. */
export async function build(plan, made) {
  const { place, latent, reading: { queued, chain, vae } } = plan;
  const corner = beside(place.graph);
  const name = modelName(queued, chain[0].id);
  const distil = add(place.graph, DISTIL, { pos: corner, values: valuesOf(plan.reading, name) });
  const preview = add(place.graph, PREVIEW, { pos: corner });
  preview.setSize([...SIZE]);
  const wireIt = (end, input) => end && wireEnd(queued, end, place, made, { to: distil, name: input });
  wireIt(copyPatches(plan.reading, plan, place, made), "model");
  const { positive, negative, first } = promptsFor(plan, made);
  Object.entries({ positive, negative, latent, vae }).forEach(([input, end]) => wireIt(end, input));
  wireGuidance(plan, made, wireIt);
  wireStage(plan, made, wireIt);
  wireEnd(queued, endOf(distil, "preview"), place, made, { to: preview, name: "images" });

  const columns = [first, made.nodes.filter((node) => !first.includes(node)), [distil], [preview]];
  made.nodes.push(distil, preview);
  arrange(columns, corner);
  await drawn();
  arrange(columns, corner);
  const title = t("graph.group", { model: name ?? queued.get(chain[0].id).node.title });
  made.group = frame(place.graph, title, made.nodes);
  return distil;
}

function valuesOf({ cfg, from, to, stages }, name) {
  const part = stages.length ? { from_percent: from, to_percent: to } : {};
  return { name: name && `${name}_fewstep`, cfg: cfg === undefined ? cfg : Math.max(1, cfg), ...part };
}

/**
 * { positive, negative, first }: the sampler's own conditioning, the positive one
 * made anew from a list of prompts where it can be; first: the nodes of that list.
 */
function promptsFor({ reading, prompts, place }, made) {
  const { queued, positive, negative } = reading;
  const labels = labelsOf(reading);
  if (!prompts) {
    return { positive: labels ?? positive, negative: negative ?? positive, first: [] };
  }
  const { text, pictures, clip, guidance } = prompts;
  const list = add(place.graph, PROMPTS, { values: { text, ...(pictures ? { source: TYPED } : {}) } });
  made.nodes.push(list);
  wireEnd(queued, clip, place, made, { to: list, name: "clip" });
  let start = { node: list, slot: 0 };
  if (guidance !== undefined) {
    const node = add(place.graph, FLUX_GUIDANCE, { values: { guidance } });
    made.nodes.push(node);
    wireEnd(queued, start, place, made, { to: node, name: "conditioning" });
    start = { node, slot: 0 };
  }
  let anew = conditioningAnew(queued, positive, { ...prompts, start, place, made });
  if (!prompts.whole) {
    const join = add(place.graph, JOIN);
    made.nodes.push(join);
    wireEnd(queued, positive, place, made, { to: join, name: "conditioning_1" });
    wireEnd(queued, anew, place, made, { to: join, name: "conditioning_2" });
    anew = { node: join, slot: 0 };
  }
  return { positive: anew, negative: negative ?? { node: list, slot: 1 }, first: [list] };
}

/** The end of a copy of the way from text to an end; `start` stands for the text. */
function conditioningAnew(queued, end, way) {
  if (way.encoders.includes(end.id)) {
    return way.start;
  }
  const names = conditioningInto(queued, end.id, end.slot);
  const before = conditioningAnew(queued, sourceOf(queued, end.id, names[0]), way);
  if (names.length > 1) {
    return before;      // joined prompts: all of them are in the list
  }
  const node = copyNode(queued, end.id, way.place, way.made, { [names[0]]: before });
  return { node, slot: end.slot };
}

/**
 * Guidance that is more than a CFG is the teacher's own: its guider, or
 * one made of what the sampler gets. A CFG that only running tells is wired.
 */
function wireGuidance({ reading, guided, place }, made, wireIt) {
  const { queued, sampler, guide, chain, positive, negative, cfg } = reading;
  if (guided && guide !== sampler) {
    wireIt({ id: guide, slot: typesOf(queued, guide).indexOf("GUIDER") }, "guider");
  } else if (guided) {
    const guider = add(place.graph, GUIDER, { values: { cfg } });
    made.nodes.push(guider);
    for (const [name, end] of Object.entries({ model: chain.at(-1), positive, negative })) {
      wireEnd(queued, end, place, made, { to: guider, name });
    }
    wireIt({ node: guider, slot: 0 }, "guider");
  } else if (cfg === undefined && !isOurs(queued.get(sourceOf(queued, guide, "cfg")?.id)?.type ?? "")) {
    wireIt(sourceOf(queued, guide, "cfg"), "cfg");
  }
}

/** The first of two models, which draws what the second begins with, from the same prompts. */
function wireStage({ reading, prompts, place, first }, made, wireIt) {
  if (!first) {
    return;
  }
  wireIt(first.chain.at(-1), "first_stage");
  if (sameEnd(first.positive, reading.positive)) {
    return;
  }
  const its = { reading: first, prompts: prompts && promptsOf(first), place };
  const { positive, negative } = promptsFor(its, made);
  wireIt(positive, "first_positive");
  wireIt(negative, "first_negative");
}

/** Below a wide graph, to the right of a tall one. */
function beside(graph) {
  const [x, y, width, height] = boxOfAll(graph);
  return width > height ? [x + 20, y + height + 160] : [x + width + 120, y + 80];
}

/** The name of the file that a loader loads, without folder and ending; undefined where it shows none. */
export function modelName(queued, id) {
  const values = Object.values(queued.get(id).inputs);
  const found = values.map((value) => MODEL_FILE.exec(String(value))).find(Boolean);
  return found?.[1].replace(/[^\p{L}\p{N}_-]+/gu, "_");
}
