// "Use it": puts a run's LoRA with its sampler, schedule and CFG into the user's graph, in front of the node that samples; one that
// restores, with the node that does, behind a destroyed picture.

import { t } from "../text.js";
import { add, change, dependants, drawn, setMuted, show, wire } from "./change.js";
import { chainTo, fedBy, isSampling, mainOf, selectedIn, slotOf, sourceOfModel, teacherOf, widgetOf, wiresOf } from "./find.js";
import { distilOf, tellLeftOut } from "./oneclick.js";
import { restore, RESTORE, restorerOf, restoringPlan, unload } from "./restorers.js";
import { feed, isStock, isUsable, replace, sampleAnew } from "./samplers.js";

const LORA = "FewstepLoadLora";

/** Wires it all and goes there; nothing is queued. Answers the node that loads the LoRA. Throws an Error to show. */
export async function useIt(app, api, run) {
  if (!run.lora) {
    throw new Error(t("graph.noLora"));
  }
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);      // the file may be newer than the page
  const source = sourceOfModel(app);      // after that: the user may have gone to another graph
  if (!source) {
    throw new Error(t("graph.noModel"));
  }
  const restores = run.method === "restoration";
  const plan = planFor(app, source);
  const known = restores ? restorerOf(plan, selectedIn(app)) : plan.chain.find(({ node }) => node.type === LORA)?.node;
  if (!isListed(known ?? LiteGraph.createNode(restores ? RESTORE : LORA), run.lora)) {
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

/** What is wired to what; nothing is changed yet. A selected sampling node goes first, then one behind a selected source. */
function planFor(app, source) {
  const graph = source.graph;
  const wires = wiresOf(graph);
  const own = chainTo(wires, { node: source, slot: slotOf(source.outputs, "MODEL") });
  const found = fedBy(wires, own[0]).filter(({ sampling }) => isUsable(sampling));
  const selected = selectedIn(app);
  const main = found.find(({ sampling }) => selected.includes(sampling))
    ?? mainOf(wires, found.filter(({ chain }) => chain.some(({ node }) => node === source))) ?? mainOf(wires, found);
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

/** A FewstepLoadLora, and sampling with it: { node, nodes, shown, settle } as of samplers.js, `node` the loader. */
function sample(plan, name) {
  const { graph, end, sampling } = plan;
  const node = add(graph, LORA, { pos: [...(sampling ?? end.node).pos], values: { lora_name: name } });
  wire(end, node, "model");
  const make = !sampling ? sampleAnew : isStock(sampling) ? replace : feed;
  const { nodes, settle } = make(plan, node);
  const all = [node, ...nodes];
  return { node, nodes: all, shown: make === feed ? [sampling, ...all] : all, settle };
}

/** Says which nodes are passed by, and that others are muted. */
function tell(app, leftOut, muted) {
  tellLeftOut(app, leftOut, t("graph.useIt"));
  if (muted) {
    app.extensionManager.toast.add({ severity: "info", summary: t("graph.useIt"), detail: t("graph.muted"), life: 10000 });
  }
}

/** Mutes a node that distils this model, if nothing but its previews hang on it: queueing is to sample now, not to train on. */
function muteTraining({ distil }) {
  const behind = distil ? dependants(distil) : [];
  if (!distil || distil.mode !== 0 || behind.some((node) => isSampling(node) || node.type === RESTORE)) {
    return false;
  }
  setMuted([distil, ...behind], true);
  return true;
}
