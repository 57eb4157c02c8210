// "Make this model few-step": a group of nodes that distils the model that is
// sampled, wired to all that its sampler gets, and queued. What it reads is in reading.js.

import { DISTIL, PREVIEW } from "../names.js";
import { t } from "../text.js";
import { ask } from "./ask.js";
import { bareModel, isBareModel } from "./bare.js";
import { build, modelName } from "./build.js";
import { change, setMuted, toast } from "./change.js";
import { allNodes, ALWAYS, gives, inputOf } from "./nodes.js";
import { show } from "./places.js";
import { labelsOf, promptsOf } from "./prompts.js";
import { executionId, queueNodes } from "./queue.js";
import { idOf, readQueued, sameEnd, sourceOf, wiredOf, worthOf } from "./queued.js";
import { readGraph } from "./reading.js";
import { carriersOf, fewStepReason, guides, refusalOf } from "./suits.js";
import { dependants, origin } from "./walk.js";
import { begin, slotsTo, takeBack } from "./wiring.js";

/**
 * Adds the nodes, or takes those that are there for this model already, and queues them. Answers the
 * FewstepDistil node; null where the user has chosen not to. Throws an Error to show where it can't be.
 */
export async function makeFewStep(app, api, node) {
  const reading = await meantBy(app, node);
  if (!reading) {
    return null;
  }
  const plan = planFor(reading);
  const known = distilFor(plan);
  if (!known && !(await isWanted(app, api, reading))) {
    return null;
  }
  return change(app, plan.place.graph, async () => {
    const distil = known ?? await buildWhole(app, plan);
    if (known) {
      await wake(app, known);
    } else {
      tellParts(app, plan);
    }
    const previews = dependants(distil).filter((one) => one.type === PREVIEW);
    await queueNodes(app, [distil, ...previews], plan.place.within);
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
    const guiding = leftOut.map((node) => node.title).join(", ");
    toast(app, "info", title, t("graph.teacherOnly", { names: guiding }));
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
  const { queued, cfg, plain, stages, sampler } = reading;
  const { model, again, leftOut } = bareModel(reading);
  const first = stages[stages.findIndex((stage) => stage.sampler === sampler) - 1] ?? null;
  const prompts = promptsOf(reading);
  const paired = !first || promptsOf(first)?.whole === prompts?.whole;
  return {
    reading,
    first,
    latent: stages[0]?.latent ?? reading.latent,      // only its size counts: nothing is to be sampled for it
    place: placeFor(reading, paired ? prompts : null),
    model,
    again,
    leftOut: leftOut.map((id) => queued.get(id).node),
    guided: !plain || (cfg > 1 && leftOut.length > 0 && leftOut.every((id) => guides(queued, id))),
    prompts: paired ? prompts : null,
  };
}

/**
 * Where the new nodes lie: in the sampler's graph or in one around it,
 * where the walls of subgraphs need the fewest new slots; the outermost of those.
 */
function placeFor(reading, prompts) {
  const { queued, chain, positive, negative, latent, vae, within, graph } = reading;
  const sources = (id) => wiredOf(queued, id).map((name) => sourceOf(queued, id, name)).filter(Boolean);
  const between = (prompts?.way ?? []).flatMap(sources).filter(({ id }) => !prompts.way.includes(id));
  const spoken = prompts ? [prompts.clip, ...between] : [labelsOf(reading) ?? positive];
  const ends = [chain.at(-1), negative, latent, vae, ...spoken].filter(Boolean);
  const around = within.map((outer, i) => ({ graph: outer.graph, within: within.slice(0, i) }));
  const places = [...around, { graph, within }];
  const costs = places.map((place) => ends.reduce((sum, end) => sum + slotsTo(queued, end, place), 0));
  return places[costs.indexOf(Math.min(...costs))];
}

/** The node that distils that very model already, or copies of it; one that the user has muted counts too. */
const distilFor = (plan) => allNodes(plan.place.graph).find((node) => node.type === DISTIL
  && isBareModel(plan.reading.queued, plan.reading, plan, modelEndOf(plan.reading.queued, node)));

/** The end that a node gets its model from, also of one that is muted; null for none. */
function modelEndOf(queued, distil) {
  const known = idOf(queued, distil);
  if (known) {
    return sourceOf(queued, known, "model");
  }
  const from = origin(distil, inputOf(distil, "model"), { cross: true });
  const id = from && idOf(queued, from.node);
  return id ? { id, slot: from.slot } : null;
}

/** The node that distils the model of that end. */
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
function lacking(queued, plan, distil) {
  const { reading, place, latent } = plan;
  const id = executionId([...place.within, distil]);
  if (!queued.has(id)) {
    return "model";
  }
  const wanted = { latent, vae: reading.vae };
  const source = (name) => sourceOf(queued, id, name);
  if (!isBareModel(queued, reading, plan, source("model"))) {
    return "model";
  }
  const lost = Object.keys(wanted).find((name) => wanted[name] && !sameEnd(source(name), wanted[name]));
  const needed = ["model", "positive", "negative", "latent"].find((name) => !source(name));
  const told = reading.plain && reading.cfg !== undefined;
  const other = told && worthOf(queued, id, "cfg") !== Math.max(1, reading.cfg);
  return lost ?? needed ?? (other ? "cfg" : null);
}
