// "Use it": puts a run's LoRA with its sampler, schedule and CFG into the user's graph, in front of the node
// that samples; one that restores, with the node that does, behind a destroyed picture.

import { DEMO, DISTIL, LOAD_LORA, RESTORATION, RESTORE } from "../names.js";
import { t } from "../text.js";
import { ask } from "./ask.js";
import { bareModel, isBareModel } from "./bare.js";
import { modelName } from "./build.js";
import { add, change, drawn, setMuted, toast, wire } from "./change.js";
import { isSampling, mainOf, samplingBehind, selectedIn, sourceOfModel, teacherOf } from "./find.js";
import { lacking, putIn, targetsOf, unfit } from "./intograph.js";
import { revert, set } from "./journal.js";
import { ALWAYS, endOfType, MUTED, widgetOf } from "./nodes.js";
import { distilOf, tellLeftOut } from "./oneclick.js";
import { show } from "./places.js";
import { idOf, readQueued, sameEnd, sourceOf, worthOf } from "./queued.js";
import { readGraph } from "./reading.js";
import { restore, restorerOf, restoringPlan, unload } from "./restorers.js";
import { sampleAnew } from "./samplers.js";
import { acceleratorOf, isLeftOut, nameOf } from "./suits.js";
import { chainTo, dependants, wiresOf } from "./walk.js";
import { begin, takeBack } from "./wiring.js";

const RECIPE = "fewstep.recipe";      // in the metadata of our LoRA files
const EXACT = ["WanAnimate2Cache"];      // caches that change no picture: only training can't have them
const WHOLE = { from_percent: 0, to_percent: 1 };

/**
 * Wires it all and goes there; nothing is queued. Answers the node that loads the LoRA, null where the user
 * was asked and wants none. Throws an Error to show, and leaves the graph as it was.
 */
export async function useIt(app, api, run) {
  if (!run.lora) {
    throw new Error(t("graph.noLora"));
  }
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);      // the file may be newer than the page
  if (run.method === RESTORATION) {
    return useRestorer(app, run.lora);
  }
  checkListed(LiteGraph.createNode(LOAD_LORA), run.lora);
  const recipe = await recipeIn(api, run.lora);
  const reading = await meantFor(app, run, recipe);
  if (reading === undefined) {
    return useAnew(app, run.lora);
  }
  return reading && useInto(app, reading, run.lora, recipe);
}

function checkListed(node, name) {
  const values = widgetOf(node, "lora_name")?.options.values;
  if (!(typeof values === "function" ? values() : values ?? []).includes(name)) {
    throw new Error(t("graph.noFile", { name }));
  }
}

// ---- which sampler ---------------------------------------------------------------------------------

/** The recipe in a LoRA file, as far as the part of the way goes that it is for. */
async function recipeIn(api, name) {
  const reply = await api.fetchApi(`/view_metadata/loras?filename=${encodeURIComponent(name)}`);
  const metadata = reply.ok ? await reply.json().catch(() => ({})) : {};
  try {
    return { ...WHOLE, ...JSON.parse(metadata[RECIPE] ?? "{}") };
  } catch {
    return WHOLE;
  }
}

/**
 * The reading of the sampler that is meant: a selected one, else of the model that the run was of, else
 * the main one; of two stages the one that the recipe is for, or that the user chooses. undefined where
 * nothing samples, null where the user wants none.
 */
async function meantFor(app, run, recipe) {
  const first = await readGraph(app);
  if (!first?.chain.length) {
    return undefined;
  }
  const { queued } = first;
  const selected = selectedIn(app);
  const picked = [first.sampler, first.guide].some((id) => selected.includes(queued.get(id).node));
  const loader = picked || !run.model ? null : loaderOf(queued, run.model);
  const reading = (loader && await readGraph(app, loader)) ?? first;
  return stageFor(reading, recipe, Boolean(picked || loader));
}

/** The node on the canvas that loads a model file. */
const loaderOf = (queued, file) =>
  [...queued.values()].find(({ inputs }) => Object.values(inputs).includes(file))?.node;

const isPart = ({ from_percent: from, to_percent: to }) => from > 0 || to < 1;

/** Whether a sampler takes the end of the way that a recipe is for. */
const isFor = (recipe, { from, to }) =>
  (from > 0) === (recipe.from_percent > 0) && (to < 1) === (recipe.to_percent < 1);

function stageFor(reading, recipe, known) {
  const { stages } = reading;
  if (isPart(recipe)) {
    const stage = [reading, ...stages].find((one) => isFor(recipe, one));
    if (!stage) {
      const [from, to] = [recipe.from_percent, recipe.to_percent].map((share) => Math.round(100 * share));
      throw new Error(t("graph.noStage", { from, to }));
    }
    return stage;
  }
  if (!stages.length || known) {
    return reading;
  }
  const label = ({ queued, chain, from, to }) => t("graph.stage", {
    model: modelName(queued, chain[0].id) ?? queued.get(chain[0].id).node.title,
    from: Math.round(100 * from), to: Math.round(100 * to),
  });
  return ask(t("graph.useIt"), [t("graph.useStage")], [
    ...stages.map((stage) => [label(stage), stage]), [t("graph.cancel"), null],
  ]);
}

// ---- into a graph that samples ---------------------------------------------------------------------

async function useInto(app, reading, name, recipe) {
  const { queued, chain, guide } = reading;
  const loader = chain.map(({ id }) => queued.get(id).node).find(({ type }) => type === LOAD_LORA);
  const reason = loader ? null : unfit(reading);
  if (reason) {
    throw new Error(reason);
  }
  const bare = bareModel(reading, (all, id) => isLeftOut(all, id) && !EXACT.includes(all.get(id).type));
  const { graph, within } = queued.get(guide);
  const targets = targetsOf(reading, { whole: !isPart(recipe) });
  const plan = { reading, targets, bare, place: { graph, within } };
  return change(app, graph, async () => {
    const [made, journal] = [begin(), []];
    try {
      const node = loader
        ? await otherFileWhole(app, loader, name, journal)
        : await putWhole(app, plan, name, made, journal);
      const muted = muteDistils(reading, journal);
      await show(app, loader ? [loader] : made.nodes);
      tellFast(app, reading);
      tell(app, loader ? [] : bare.leftOut.map((id) => queued.get(id).node), muted);
      return node;
    } catch (error) {
      revert(journal);
      takeBack(made);
      throw error;
    }
  });
}

/** Says that an accelerator of another's is in the chain still, as the LoRA may have been trained with it. */
function tellFast(app, reading) {
  const file = acceleratorOf(reading);
  if (file) {
    toast(app, "warn", t("graph.useIt"), t("graph.twoFast", { name: nameOf(file) }));
  }
}

/** Builds, and reads the graph again as it would run: it holds what was promised, or nothing stays. */
async function putWhole(app, plan, name, made, journal) {
  const way = putIn(plan, name, made, journal);
  await drawn();
  way.settle();
  const missing = lacking(plan.reading.queued, await readQueued(app), way, name);
  if (missing) {
    throw new Error(t("graph.notWhole", { input: missing }));
  }
  return way.loader;
}

/** Sets the file, and reads the graph again: a value from outside of the node's subgraph may go before. */
async function otherFileWhole(app, loader, name, journal) {
  otherFile(loader, name, journal);
  const queued = await readQueued(app);
  const id = idOf(queued, loader);
  if (id && worthOf(queued, id, "lora_name") !== name) {
    revert(journal);
    throw new Error(t("graph.notHere", { input: "lora_name", node: loader.title }));
  }
  return loader;
}

function otherFile(node, name, journal) {
  const widget = widgetOf(node, "lora_name");
  set(journal, widget, { value: name });
  widget.callback?.(name);
  return node;
}

/**
 * Mutes the nodes that distil this model, where nothing but their previews
 * hangs on them: queueing is to sample now, not to train on.
 */
function muteDistils(reading, journal) {
  const { queued, chain } = reading;
  const bare = bareModel(reading);
  const isOfIt = (end) => chain.some((one) => sameEnd(one, end)) || isBareModel(queued, reading, bare, end);
  const trains = ({ id, type }) => type === DISTIL && isOfIt(sourceOf(queued, id, "model"));
  const all = [...queued.values()].filter(trains).map(({ node }) => [node, ...dependants(node)])
    .filter((nodes) => !nodes.some((node) => isSampling(node) || node.type === RESTORE));
  all.flat().filter(({ mode }) => mode === ALWAYS).forEach((node) => set(journal, node, { mode: MUTED }));
  return all.length > 0;
}

// ---- where nothing samples, and to restore ---------------------------------------------------------

/** A sampler of its own, for a model that is trained in this very graph or is a demo: others may not draw. */
function useAnew(app, name) {
  const plan = planFor(app);
  if (!plan.distil && plan.chain[0].node.type !== DEMO) {
    throw new Error(t("graph.noPlace"));
  }
  return change(app, plan.graph, async () => {
    const node = add(plan.graph, LOAD_LORA, { pos: [...plan.end.node.pos], values: { lora_name: name } });
    wire(plan.end, node, "model");
    const { nodes, settle } = sampleAnew(plan, node);
    await drawn();
    settle();
    const muted = muteTraining(plan);
    await show(app, [node, ...nodes]);
    tell(app, plan.leftOut, muted);
    return node;
  });
}

async function useRestorer(app, name) {
  const plan = planFor(app);
  const known = restorerOf(plan, selectedIn(app));
  checkListed(known ?? LiteGraph.createNode(RESTORE), name);
  const needs = known ? null : restoringPlan(plan, selectedIn(app));
  return change(app, plan.graph, async () => {
    if (known) {
      await otherFileWhole(app, known, name, []);
      const leftOut = unload(plan.wires, known);
      const muted = muteTraining(plan);
      await show(app, [known]);
      tell(app, leftOut, muted);
      return known;
    }
    const made = restore(needs, name);
    await drawn();
    made.settle();
    const muted = muteTraining(plan);
    await show(app, made.nodes);
    tell(app, plan.leftOut, muted);
    return made.node;
  });
}

/**
 * What is wired to what; nothing is changed yet. A selected
 * sampling node goes first, then one behind a selected source.
 */
function planFor(app) {
  const source = sourceOfModel(app);
  if (!source) {
    throw new Error(t("graph.noModel"));
  }
  const graph = source.graph;
  const wires = wiresOf(graph);
  const own = chainTo(wires, endOfType(source, "MODEL"));
  const found = samplingBehind(wires, own[0]);
  const selected = selectedIn(app);
  const behind = found.filter((one) => one.chain.some(({ node }) => node === source));
  const main = found.find(({ sampling }) => selected.includes(sampling))
    ?? mainOf(wires, behind) ?? mainOf(wires, found);
  const chain = main?.chain ?? own;
  const teacher = teacherOf(wires, chain);
  return { graph, wires, chain, sampling: main?.sampling, ...teacher, distil: distilOf(graph, teacher.end) };
}

/** Says which nodes are passed by, and that others are muted. */
function tell(app, leftOut, muted) {
  tellLeftOut(app, leftOut, t("graph.useIt"));
  if (muted) {
    toast(app, "info", t("graph.useIt"), t("graph.muted"));
  }
}

/**
 * Mutes a node that distils this model, if nothing but its
 * previews hang on it: queueing is to sample now, not to train on.
 */
function muteTraining({ distil }) {
  const behind = distil ? dependants(distil) : [];
  const uses = (node) => isSampling(node) || node.type === RESTORE;
  if (!distil || distil.mode !== ALWAYS || behind.some(uses)) {
    return false;
  }
  setMuted([distil, ...behind], true);
  return true;
}
