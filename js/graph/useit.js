// "Use it": puts a run's LoRA with its sampler, schedule and CFG into the user's graph, in front of the node
// that samples; one that restores, with the node that does, behind a destroyed picture.

import { LOAD_LORA, RESTORATION, RESTORE } from "../names.js";
import { t } from "../text.js";
import { add, change, drawn, setMuted, toast, wire } from "./change.js";
import { isSampling, mainOf, samplingBehind, selectedIn, sourceOfModel, teacherOf } from "./find.js";
import { ALWAYS, endOfType, widgetOf } from "./nodes.js";
import { distilOf, tellLeftOut } from "./oneclick.js";
import { show } from "./places.js";
import { restore, restorerOf, restoringPlan, unload } from "./restorers.js";
import { feed, isStock, isUsable, replace, sampleAnew } from "./samplers.js";
import { chainTo, dependants, wiresOf } from "./walk.js";

/**
 * Wires it all and goes there; nothing is queued. Answers
 * the node that loads the LoRA. Throws an Error to show.
 */
export async function useIt(app, api, run) {
  if (!run.lora) {
    throw new Error(t("graph.noLora"));
  }
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);      // the file may be newer than the page
  const source = sourceOfModel(app);      // after that: the user may have gone to another graph
  if (!source) {
    throw new Error(t("graph.noModel"));
  }
  const restores = run.method === RESTORATION;
  const plan = planFor(app, source);
  const loader = plan.chain.find(({ node }) => node.type === LOAD_LORA)?.node;
  const known = restores ? restorerOf(plan, selectedIn(app)) : loader;
  if (!isListed(known ?? LiteGraph.createNode(restores ? RESTORE : LOAD_LORA), run.lora)) {
    throw new Error(t("graph.noFile", { name: run.lora }));
  }
  const needs = restores && !known ? restoringPlan(plan, selectedIn(app)) : null;
  return change(app, plan.graph, async () => {
    if (known) {
      return exchange(app, plan, known, run.lora);
    }
    const made = needs ? restore(needs, run.lora) : sample(plan, run.lora);
    await drawn();
    made.settle();
    const muted = muteTraining(plan);
    await show(app, made.shown ?? made.nodes);
    tell(app, plan.leftOut, muted);
    return made.node;
  });
}

/**
 * What is wired to what; nothing is changed yet. A selected
 * sampling node goes first, then one behind a selected source.
 */
function planFor(app, source) {
  const graph = source.graph;
  const wires = wiresOf(graph);
  const own = chainTo(wires, endOfType(source, "MODEL"));
  const found = samplingBehind(wires, own[0]).filter(({ sampling }) => isUsable(sampling));
  const selected = selectedIn(app);
  const behind = found.filter((one) => one.chain.some(({ node }) => node === source));
  const main = found.find(({ sampling }) => selected.includes(sampling))
    ?? mainOf(wires, behind) ?? mainOf(wires, found);
  const chain = main?.chain ?? own;
  const teacher = teacherOf(wires, chain);
  return { graph, wires, chain, sampling: main?.sampling, ...teacher, distil: distilOf(graph, teacher.end) };
}

function isListed(node, name) {
  const values = widgetOf(node, "lora_name")?.options.values;
  return (typeof values === "function" ? values() : values ?? []).includes(name);
}

/** The file in a node that is there already. */
async function exchange(app, plan, node, name) {
  const leftOut = node.type === RESTORE ? unload(plan.wires, node) : [];
  const widget = widgetOf(node, "lora_name");
  widget.value = name;
  widget.callback?.(name);
  const muted = muteTraining(plan);
  await show(app, [node]);
  tell(app, leftOut, muted);
  return node;
}

/**
 * A FewstepLoadLora, and sampling with it: { node, nodes,
 * shown, settle } as of samplers.js, `node` the loader.
 */
function sample(plan, name) {
  const { graph, end, sampling } = plan;
  const node = add(graph, LOAD_LORA, { pos: [...(sampling ?? end.node).pos], values: { lora_name: name } });
  wire(end, node, "model");
  const make = wayToSample(sampling);
  const { nodes, settle } = make(plan, node);
  const all = [node, ...nodes];
  return { node, nodes: all, shown: make === feed ? [sampling, ...all] : all, settle };
}

function wayToSample(sampling) {
  if (!sampling) {
    return sampleAnew;
  }
  return isStock(sampling) ? replace : feed;
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
