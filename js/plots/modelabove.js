// Which model feeds a node, read from the graph above it as it stands, past
// reroutes, bypassed nodes and the walls of subgraphs. Answers are small plain
// objects, so that a change of anything above shows as a change of their JSON:
//
//   modelAbove(api, node, within)    { flow: shift } | { discrete: name, ... } | { table: key }
//
// each with `about` for the small print and `key`, which tells the nodes above
// that decide it from others. `tables` are descriptions of models by key, from
// the server or from nodes that have run. within: see graph/walk.js.

import { inputOf, slotOf } from "../graph/nodes.js";
import { origin, valueOf } from "../graph/walk.js";
import { fluxShift, modelFrom } from "../maths/models.js";
import { EXPLODING, FLOW } from "../maths/paths.js";
import { DEMO, ROUTE } from "../names.js";
import { recall, remember } from "./results.js";

/** How plots walk: through walls, and up to primitives. */
export const ACROSS = { cross: true, virtual: true };

export const tables = new Map();

const ASSUMED = { discrete: "stable diffusion", about: { name: "assumed" } };
const FILES = { ckpt_name: "checkpoint", unet_name: "unet" };     // a loader's widget: its name at the server
const READABLE = /\.(safetensors|sft)$/;
const MOST_NODES = 100;         // of a chain of models
const SAME = 0.01;              // relative, between a formula and what a run has told

// ---- nodes that decide how a model is sampled, by widgets alone --------------------------------------

/** Of a flow model; `undefined` where its shift is not known. */
function flow(shift) {
  const about = shift === undefined ? undefined : { name: "flow", shift: Number(shift.toPrecision(4)) };
  return { flow: shift, about };
}

const ofShift = (value) => flow(value("shift"));

/**
 * By node id: what is known of the model from the node's widgets, or null. value(name) is what one is worth.
 */
const KNOWN = {
  [DEMO](value) {
    return value("teacher") === "epsilon" ? { discrete: "demo teacher", about: { name: "demo" } } : flow(1);
  },
  ModelSamplingSD3: ofShift,
  ModelSamplingAuraFlow: ofShift,
  ModelSamplingFlux(value) {
    return flow(fluxShift(value("max_shift"), value("base_shift"), value("width"), value("height")));
  },
  ModelSamplingDiscrete(value) {
    if (!["eps", "v_prediction", "x0"].includes(value("sampling"))) {
      return null;
    }
    return { discrete: value("zsnr") ? "zero snr" : "stable diffusion", about: { name: "sd" } };
  },
  ModelSamplingContinuousEDM(value) {
    if (value("sampling") === "cosmos_rflow") {
      return null;
    }
    const [low, high] = [value("sigma_min"), value("sigma_max")];
    return { discrete: "continuous", low, high, about: { name: "edm" } };
  },
};

/** The formula of such a node, or null where it has none. */
function knownOf({ node, within }) {
  const known = KNOWN[node.type]((name) => valueOf(node, name, within));
  return known && !Object.values(known).includes(undefined) ? known : null;
}

// ---- the model ---------------------------------------------------------------------------------------

/** What is known of the model that feeds a node. */
export function modelAbove(api, node, within = []) {
  const named = inputOf(node, "model");
  const into = named < 0 ? slotOf(node.inputs, "MODEL") : named;
  let above = origin(node, into, { ...ACROSS, within });
  const chain = [];
  let [found, sure] = [null, true];
  while (above && !found && chain.length < MOST_NODES) {
    const from = above.node;
    chain.push([from.type, valuesOf(from)]);
    const decides = from.type in KNOWN;
    if (decides && sure) {
      found = knownOf(above);
    }
    sure &&= !decides;
    const next = slotOf(from.inputs, "MODEL");
    if (next < 0 && sure) {
      found = fileOf(api, from);
    }
    above = next < 0 ? null : origin(from, next, { ...ACROSS, within: above.within });
  }
  const key = JSON.stringify(chain);
  const learned = tables.get(key);
  if (learned && !(found && agrees(found, learned))) {
    return { table: key, key, about: { name: "run" } };
  }
  return { ...(found ?? ASSUMED), key };
}

/** The values of the widgets that are saved with the workflow. */
function valuesOf(node) {
  return node.widgets?.filter((widget) => widget.serialize !== false).map((widget) => widget.value);
}

/** Whether a formula gives what a run has told: a node between may have changed it. */
function agrees(found, learned) {
  const { path, sigmaOf } = modelFrom(found.table ? { table: tables.get(found.table) } : found);
  return path === learned.path && [0.25, 0.5, 1].every((share) => {
    const i = Math.round(share * (learned.times.length - 1));
    return Math.abs(sigmaOf(learned.times[i]) / learned.sigmas[i] - 1) < SAME;
  });
}

/** What the server says of a loader's file, asked once; null until then, and where it can't tell. */
function fileOf(api, loader) {
  const widget = loader.widgets?.find((one) => one.name in FILES && READABLE.test(one.value));
  if (!widget) {
    return null;
  }
  const query = `${FILES[widget.name]}=${encodeURIComponent(widget.value)}`;
  if (tables.get(query)) {
    return { table: query, about: { name: "file", file: widget.value } };
  }
  if (!tables.has(query)) {
    tables.set(query, null);
    api.fetchApi(`${ROUTE}/model?${query}`)
      .then((reply) => (reply.ok ? reply.json() : null))
      .then((told) => tables.set(query, isTable(told) ? told : null), () => tables.delete(query));
  }
  return null;
}

// ---- what a run has told -----------------------------------------------------------------------------

/** What a schedule's run tells of the model that feeds it, for every plot with the same nodes above. */
export function learnModel(api, node, data) {
  const { key } = modelAbove(api, node);
  if (isTable(data?.model)) {
    tables.set(key, data.model);
    remember(node, { key, model: data.model });
  }
}

/** What it told before the page was loaded anew. */
export function recallModel(node) {
  const { key, model } = recall(node)?.data ?? {};
  if (key && isTable(model) && !tables.get(key)) {
    tables.set(key, model);
  }
}

/** Whether a description can be drawn from. */
function isTable(told) {
  return Array.isArray(told?.times) && told.times.length > 1 && told.times.length === told.sigmas?.length
    && [FLOW, EXPLODING].includes(told.path);
}
