// "Use it": puts a run's LoRA with its sampler, schedule and CFG into the user's graph, in front of the node that samples.

import { t } from "../text.js";
import { add, change, dependants, drawn, setMuted, show, wire } from "./change.js";
import { chainTo, fedBy, isSampling, mainOf, selectedIn, slotOf, sourceOfModel, teacherOf, widgetOf, wiresOf } from "./find.js";
import { distilOf, tellLeftOut } from "./oneclick.js";
import { feed, isStock, isUsable, replace, sampleAnew } from "./samplers.js";

const LORA = "FewstepLoadLora";

/** Wires it all and goes there; nothing is queued. Answers the FewstepLoadLora node. Throws an Error to show. */
export async function useIt(app, api, run) {
  const source = sourceOfModel(app);
  if (!source) {
    throw new Error(t("graph.noModel"));
  }
  if (!run.lora) {
    throw new Error(t("graph.noLora"));
  }
  if (run.method === "restoration") {
    throw new Error(t("graph.restorer", { name: run.lora }));
  }
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);      // the file may be newer than the page
  const plan = planFor(app, source);
  const known = plan.chain.find(({ node }) => node.type === LORA)?.node;
  if (!isListed(known ?? LiteGraph.createNode(LORA), run.lora)) {
    throw new Error(t("graph.noFile", { name: run.lora }));
  }
  return change(app, plan.graph, () => (known ? exchange(app, known, run.lora) : build(app, plan, run.lora)));
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
  return { graph, wires, chain, sampling: main?.sampling, ...teacherOf(wires, chain) };
}

function isListed(node, name) {
  const values = widgetOf(node, "lora_name")?.options.values;
  return (typeof values === "function" ? values() : values ?? []).includes(name);
}

async function exchange(app, node, name) {
  const widget = widgetOf(node, "lora_name");
  widget.value = name;
  widget.callback?.(name);
  await show(app, [node]);
  return node;
}

async function build(app, plan, name) {
  const { graph, end, leftOut, sampling } = plan;
  const beside = sampling ?? end.node;
  const lora = add(graph, LORA, { pos: [...beside.pos], values: { lora_name: name } });
  wire(end, lora, "model");
  const make = !sampling ? sampleAnew : isStock(sampling) ? replace : feed;
  const { nodes, settle } = make(plan, lora);
  await drawn();
  settle();
  const muted = muteTraining(graph, end);
  await show(app, sampling && make === feed ? [sampling, lora, ...nodes] : [lora, ...nodes]);
  tellLeftOut(app, leftOut, t("graph.useIt"));
  if (muted) {
    app.extensionManager.toast.add({ severity: "info", summary: t("graph.useIt"), detail: t("graph.muted"), life: 10000 });
  }
  return lora;
}

/** Mutes a node that distils this model, if nothing but its previews hang on it: queueing is to sample now, not to train on. */
function muteTraining(graph, end) {
  const distil = distilOf(graph, end);
  const behind = distil ? dependants(distil) : [];
  if (!distil || distil.mode !== 0 || behind.some(isSampling)) {
    return false;
  }
  setMuted([distil, ...behind], true);
  return true;
}
