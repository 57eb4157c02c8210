// Reads the graph above a node, as it stands: which model feeds it and which schedule, past reroutes, bypassed nodes and the walls
// of subgraphs. Answers are small plain objects, so that a change of anything above shows as a change of their JSON.
//
//   modelAbove(api, node, input)   {flow: shift} | {discrete: name, ...} | {table: key}, with `about` for the small print
//   sigmasAbove(api, node, input)  {grid: name, steps, denoise, shift, options, model} | {points, ...} | null
//   tables                         descriptions of models, from the server or from nodes that have run, by key

import { linkInto, linkOf } from "../graph/find.js";
import { readPoints } from "./drawn.js";
import { modelFrom } from "./models.js";

const MUTED = 2;
const BYPASSED = 4;
const ASSUMED = { discrete: "stable diffusion" };
export const tables = new Map();

// ---- wires -----------------------------------------------------------------------------------------

const inputNamed = (node, name) => (node.inputs ?? []).findIndex((input) => input.name === name);
const inputTyped = (node, type) => (node.inputs ?? []).findIndex((input) => input.type === type);

/** {node, slot}: the output that feeds an input, or null. */
export function sourceOf(node, index, depth = 0) {
  const link = node ? linkInto(node, index) : null;
  return link && depth < 100 ? endOf(node.graph, link, depth) : null;
}

function endOf(graph, link, depth) {
  if (link.originIsIoNode) {      // the wall of a subgraph, seen from inside
    const outer = instanceOf(graph);
    const name = graph.inputs?.[link.origin_slot]?.name;
    return outer ? sourceOf(outer, inputNamed(outer, name), depth + 1) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) {
    return null;
  }
  const type = node.outputs?.[link.origin_slot]?.type;
  if (node.mode === BYPASSED) {
    const same = node.inputs?.[link.origin_slot]?.type === type ? link.origin_slot : inputTyped(node, type);
    return sourceOf(node, same, depth + 1);
  }
  if (node.subgraph) {
    const inner = node.subgraph.getLink(node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
    return inner ? endOf(node.subgraph, inner, depth + 1) : null;
  }
  if (node.isVirtualNode && node.inputs?.length) {
    return sourceOf(node, 0, depth + 1);
  }
  return { node, slot: link.origin_slot };
}

/** A node that stands for this subgraph in the graph around it. */
function instanceOf(subgraph) {
  const root = subgraph.rootGraph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes).find((node) => node.subgraph === subgraph) ?? null;
}

/** The nodes that an output feeds, past reroutes and the walls of subgraphs. */
export function fedBy(node, slot, depth = 0) {
  return (node.outputs?.[slot]?.links ?? []).flatMap((id) => goalsOf(node.graph, linkOf(node.graph, id), depth));
}

function goalsOf(graph, link, depth) {
  if (!link || depth > 100) {
    return [];
  }
  if (link.targetIsIoNode) {
    const outer = instanceOf(graph);
    return outer ? fedBy(outer, link.target_slot, depth + 1) : [];
  }
  const to = graph.getNodeById(link.target_id);
  if (!to || to.mode === MUTED) {
    return [];
  }
  if (to.subgraph) {
    const within = to.subgraph.inputs?.find((input) => input.name === to.inputs[link.target_slot]?.name);
    return (within?.linkIds ?? []).flatMap((id) => goalsOf(to.subgraph, linkOf(to.subgraph, id), depth + 1));
  }
  return to.isVirtualNode ? fedBy(to, 0, depth + 1) : [to];
}

/** A widget's value; that of the primitive which is wired to it, where one is. */
export function valueOf(node, name) {
  const widget = node.widgets?.find((one) => one.name === name);
  const above = sourceOf(node, inputNamed(node, name));
  const given = above?.node.widgets?.find((one) => one.name === "value") ?? (above ? above.node.widgets?.[0] : null);
  return given && typeof given.value === typeof widget?.value ? given.value : widget?.value;
}

// ---- models ----------------------------------------------------------------------------------------

const shiftOf = (node) => ({ flow: valueOf(node, "shift") });
const KNOWN = {      // nodes that decide how a model is sampled, by widgets alone
  FewstepLoadDemoTeacher: (node) => (valueOf(node, "teacher") === "epsilon" ? { discrete: "demo teacher" } : { flow: 1 }),
  ModelSamplingSD3: shiftOf,
  ModelSamplingAuraFlow: shiftOf,
  ModelSamplingFlux: (node) => {
    const [most, least, width, height] = ["max_shift", "base_shift", "width", "height"].map((name) => valueOf(node, name));
    const slope = (most - least) / (4096 - 256);
    return { flow: Number(Math.exp((width * height) / 256 * slope + least - 256 * slope).toPrecision(12)) };
  },
  ModelSamplingDiscrete: (node) => (["eps", "v_prediction", "x0"].includes(valueOf(node, "sampling")) ?
    { discrete: valueOf(node, "zsnr") ? "zero snr" : "stable diffusion" } : null),
  ModelSamplingContinuousEDM: (node) => (valueOf(node, "sampling") === "cosmos_rflow" ? null :
    { discrete: "continuous", low: valueOf(node, "sigma_min"), high: valueOf(node, "sigma_max") }),
};
const FILES = { ckpt_name: "checkpoint", unet_name: "unet" };

/** What is known of the model that feeds an input; `key` tells the nodes above that decide it from others. */
export function modelAbove(api, node, input = "model") {
  const named = inputNamed(node, input);
  let above = sourceOf(node, named < 0 ? inputTyped(node, "MODEL") : named);
  const chain = [];
  let [found, sure] = [null, true];
  while (above && !found && chain.length < 100) {
    const from = above.node;
    chain.push([from.type, from.widgets?.filter((widget) => widget.serialize !== false).map((widget) => widget.value)]);
    const decides = from.type in KNOWN;
    if (decides && sure) {
      found = knownOf(from);
    }
    sure &&= !decides;
    const next = inputTyped(from, "MODEL");
    if (next < 0 && sure) {
      found = fileOf(api, from);
    }
    above = next < 0 ? null : sourceOf(from, next);
  }
  const key = JSON.stringify(chain);
  const learned = tables.get(key);
  if (learned && !(found && agrees(found, learned))) {
    return { table: key, key, about: { name: "run" } };
  }
  return { ...(found ?? { ...ASSUMED, about: { name: "assumed" } }), key };
}

/** The formula of a node that decides how its model is sampled, or null where it has none. */
function knownOf(node) {
  const known = KNOWN[node.type](node);
  if (!known || Object.values(known).includes(undefined)) {
    return null;
  }
  const { flow, discrete } = known;
  if (flow !== undefined) {
    return { flow, about: { name: "flow", shift: Number(flow.toPrecision(4)) } };
  }
  return { ...known, about: { name: discrete === "demo teacher" ? "demo" : discrete === "continuous" ? "edm" : "sd" } };
}

/** Whether a formula gives what a run has told: a node between may have changed it. */
function agrees(found, learned) {
  const { path, sigmaOf } = modelFrom(found.table ? { table: tables.get(found.table) } : found);
  return path === learned.path && [0.25, 0.5, 1].every((share) => {
    const i = Math.round(share * (learned.times.length - 1));
    return Math.abs(sigmaOf(learned.times[i]) / learned.sigmas[i] - 1) < 0.01;
  });
}

/** What the server says of a loader's file, asked once; null until then, and where it can't tell. */
function fileOf(api, loader) {
  const widget = loader.widgets?.find((one) => one.name in FILES && /\.(safetensors|sft)$/.test(one.value));
  if (!widget) {
    return null;
  }
  const query = `${FILES[widget.name]}=${encodeURIComponent(widget.value)}`;
  if (tables.get(query)) {
    return { table: query, about: { name: "file", file: widget.value } };
  }
  if (!tables.has(query)) {
    tables.set(query, null);
    api.fetchApi(`/fewstep/model?${query}`).then((reply) => (reply.ok ? reply.json() : null))
      .then((told) => tables.set(query, isTable(told) ? told : null), () => tables.delete(query));
  }
  return null;
}

/** Whether a description can be drawn from. */
export function isTable(told) {
  return Array.isArray(told?.times) && told.times.length > 1 && told.times.length === told.sigmas?.length
    && ["flow", "variance exploding"].includes(told.path);
}

// ---- schedules -------------------------------------------------------------------------------------

/** A number of steps; of a list of them, which Compare and Fit take, the most. */
const count = (value) => Math.min(Math.max(Math.round(Math.max(...String(value).split(",").map(Number))) || 1, 1), 1000);

/** The schedule that the widgets of a FewstepSchedule or FewstepDrawSchedule ask for; null for other nodes. */
export function scheduleOf(api, node) {
  const shared = { steps: count(valueOf(node, "steps")), denoise: Number(valueOf(node, "denoise") ?? 1) };
  if (node.type === "FewstepDrawSchedule") {
    const points = readPoints(valueOf(node, "points"));
    return points ? { ...shared, points, model: modelAbove(api, node) } : null;
  }
  if (node.type !== "FewstepSchedule") {
    return null;
  }
  const options = Object.fromEntries((node.widgets ?? []).filter((widget) => widget.name.startsWith("schedule."))
    .map((widget) => [widget.name.slice("schedule.".length), valueOf(node, widget.name)]));
  return { ...shared, grid: valueOf(node, "schedule"), shift: Number(valueOf(node, "shift") ?? 1), options,
    model: modelAbove(api, node) };
}

/** The schedule that feeds an input: one of ours as it is, of another node the uniform one of as many steps (`guessed`). */
export function sigmasAbove(api, node, input = "sigmas") {
  const above = sourceOf(node, inputNamed(node, input));
  const ours = above ? scheduleOf(api, above.node) : null;
  if (ours) {
    return ours;
  }
  const guider = sourceOf(node, inputNamed(node, "guider"))?.node;
  return { grid: "uniform", steps: count((above && valueOf(above.node, "steps")) ?? 8), denoise: 1, shift: 1, options: {},
    model: modelAbove(api, guider ?? node), guessed: true };
}
