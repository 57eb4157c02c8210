// "Make this model few-step": a group of nodes that distils the model that is
// sampled, wired to all that its sampler gets, and queued. What it reads is in reading.js.

import { DISTIL, FLUX_GUIDANCE, PREVIEW, PROMPTS } from "../names.js";
import { t } from "../text.js";
import { ask } from "./ask.js";
import { begin, copyNode, takeBack, wireEnd } from "./bring.js";
import { add, change, drawn, setMuted, toast } from "./change.js";
import { allNodes, ALWAYS, endOf, endOfType, gives, inputOf } from "./nodes.js";
import { arrange, boxOfAll, frame, show } from "./places.js";
import { conditioningInto, JOIN, labelsOf, promptsOf } from "./prompts.js";
import { queueNodes } from "./queue.js";
import { idOf, readQueued, sameEnd, sourceOf, typesOf, worthOf } from "./queued.js";
import { readGraph } from "./reading.js";
import { carriersOf, fewStepReason, guides, isLeftOut, refusalOf } from "./suits.js";
import { dependants, origin } from "./walk.js";

const MODEL_FILE = /^(?:.*[\\/])?(.+)\.(safetensors|sft|ckpt|gguf|pth?|bin)$/i;
const SIZE = [380, 460];                                  // of the preview
const TYPED = "typed only";                               // a source of our prompts' node
const GUIDER = "CFGGuider";

/**
 * Adds the nodes, or takes those that are there for this model already, and queues them. Answers the
 * FewstepDistil node; null where the user has chosen not to. Throws an Error to show where it can't be.
 */
export async function makeFewStep(app, api, node) {
  const reading = await meantBy(app, node);
  if (!reading || !(await isWanted(app, api, reading))) {
    return null;
  }
  const plan = planFor(reading);
  const known = distilOf(plan.graph, canvasEnd(reading, plan.model));
  return change(app, plan.graph, async () => {
    const distil = known ?? await buildWhole(app, plan);
    if (known) {
      await wake(app, known);
    } else {
      tellParts(app, plan);
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

/** Says what is passed by, what the teacher alone has, and what a model of edits is trained together with. */
function tellParts(app, { reading, guided, leftOut }) {
  const title = t("graph.title");
  const names = carriersOf(reading).map((id) => reading.queued.get(id).node.title).join(", ");
  if (guided && leftOut.length) {
    toast(app, "info", title, t("graph.teacherOnly", { names: leftOut.map((node) => node.title).join(", ") }));
  } else {
    tellLeftOut(app, leftOut, title);
  }
  if (names) {
    toast(app, "info", title, t("graph.keeps", { names }));
  }
}

// ---- before anything is changed --------------------------------------------------------------------

/** The reading that is meant, refused where it must be; null where the user was asked and wants none. */
async function meantBy(app, node) {
  if (node && !gives(node, "MODEL")) {
    throw new Error(t("graph.noModel"));
  }
  const reading = await readGraph(app, node);
  if (!reading?.chain.length) {
    throw new Error(t(node ? "graph.notSampled" : "graph.noSampler"));
  }
  const refusal = refusalOf(reading);
  if (refusal) {
    throw new Error(refusal);
  }
  return reading.stages.length ? stageOf(reading) : reading;
}

/** The stage that the user chooses where several models share one way. */
function stageOf({ queued, stages }) {
  const label = ({ chain, from, to }) => t("graph.stage", {
    model: modelName(queued, chain[0].id) ?? queued.get(chain[0].id).node.title,
    from: Math.round(100 * from),
    to: Math.round(100 * to),
  });
  const answers = stages.map((stage) => [label(stage), Object.freeze({ ...stage, stages })]);
  return ask(t("graph.title"), [t("graph.whichStage")], [...answers, [t("graph.cancel"), null]]);
}

/** Whether the user wants it of a model that is few-step already; true without a question for others. */
async function isWanted(app, api, reading) {
  const reason = await fewStepReason(app, api, reading);
  return !reason || ask(
    t("graph.title"), [reason, t("graph.fewAdvice")], [[t("graph.anyway"), true], [t("graph.cancel"), false]],
  );
}

/** What is wired to what; nothing is changed yet. */
function planFor(reading) {
  const { queued, chain, cfg, plain, stages, sampler } = reading;
  const ids = chain.map(({ id }) => id);
  const cut = ids.findIndex((id, i) => i && isLeftOut(queued, id));
  const rest = cut < 0 ? [] : ids.slice(cut);
  const leftOut = rest.filter((id) => isLeftOut(queued, id));
  const first = stages[stages.findIndex((stage) => stage.sampler === sampler) - 1] ?? null;
  const prompts = promptsOf(reading);
  const paired = !first || promptsOf(first)?.whole === prompts?.whole;
  return {
    reading,
    first,
    graph: reading.graph,
    place: { graph: reading.graph, within: reading.within },
    model: chain[cut < 0 ? chain.length - 1 : cut - 1],
    again: rest.filter((id) => !isLeftOut(queued, id)),
    leftOut: leftOut.map((id) => queued.get(id).node),
    guided: !plain || (cfg > 1 && leftOut.length > 0 && leftOut.every((id) => guides(queued, id))),
    prompts: paired ? prompts : null,
  };
}

const canvasEnd = ({ queued }, { id, slot }) => ({ node: queued.get(id).node, slot });

/** The node that distils that very model already; one that the user has muted counts too. */
export function distilOf(graph, end) {
  return allNodes(graph).find((node) => {
    const from = node.type === DISTIL && origin(node, inputOf(node, "model"), { cross: true });
    return from && from.node === end.node && from.slot === end.slot;
  });
}

async function wake(app, distil) {
  setMuted(dependants(distil), false);
  distil.mode = ALWAYS;
  await show(app, [distil]);
}

// ---- building --------------------------------------------------------------------------------------

/** The new group, read again as the server would run it: it holds what was promised, or nothing is left. */
async function buildWhole(app, plan) {
  const made = begin();
  try {
    const distil = await build(plan, made);
    const missing = lacking(await readQueued(app), plan, distil);
    if (missing) {
      throw new Error(t("graph.notWhole", { input: missing }));
    }
    await show(app, made.nodes);
    return distil;
  } catch (error) {
    takeBack(made);
    throw error;
  }
}

/** The first input of the new node that would not get what it was to; null where all do. */
function lacking(queued, { reading, model, again }, distil) {
  const id = idOf(queued, distil);
  if (!id) {
    return "model";
  }
  const wanted = { latent: reading.latent, vae: reading.vae, ...(again.length ? {} : { model }) };
  const lost = Object.keys(wanted).find((name) => wanted[name] && !sameEnd(sourceOf(queued, id, name), wanted[name]));
  const needed = ["model", "positive", "negative", "latent"].find((name) => !sourceOf(queued, id, name));
  const cfg = reading.plain && reading.cfg !== undefined && worthOf(queued, id, "cfg") !== Math.max(1, reading.cfg);
  return lost ?? needed ?? (cfg ? "cfg" : null);
}

async function build(plan, made) {
  const { graph, place, reading: { queued, chain, latent, vae } } = plan;
  const corner = beside(graph);
  const name = modelName(queued, chain[0].id);
  const distil = add(graph, DISTIL, { pos: corner, values: valuesOf(plan.reading, name) });
  const preview = add(graph, PREVIEW, { pos: corner });
  preview.setSize([...SIZE]);
  const wireIt = (end, input) => end && wireEnd(queued, end, place, made, { to: distil, name: input });
  wireIt(modelFor(plan, made), "model");
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
  made.group = frame(graph, title, made.nodes);
  return distil;
}

function valuesOf({ cfg, from, to, stages }, name) {
  const part = stages.length ? { from_percent: from, to_percent: to } : {};
  return { name: name && `${name}_fewstep`, cfg: Math.max(1, cfg ?? 1), ...part };
}

/** The model without what is left out: what patches it after that is added once more. */
function modelFor({ reading: { queued, chain }, model, again, place }, made) {
  let end = model;
  for (const id of again) {
    const before = chain[chain.findIndex((one) => one.id === id) - 1];
    const input = Object.keys(queued.get(id).inputs).find((name) => sameEnd(sourceOf(queued, id, name), before));
    end = endOfType(copyNode(queued, id, place, made, { [input]: end }), "MODEL");
  }
  return end;
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
  } else if (cfg === undefined) {
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
  const { positive, negative } = promptsFor({ reading: first, prompts: prompts && promptsOf(first), place }, made);
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
  const found = Object.values(queued.get(id).inputs).map((value) => MODEL_FILE.exec(String(value))).find(Boolean);
  return found?.[1].replace(/[^\p{L}\p{N}_-]+/gu, "_");
}
