// Three ways to sample with a FewstepLoadLora. Each wires, and answers { nodes, settle }: the new nodes
// beside the loader, and what finds places for them once their sizes are known.

import { DEMO, EMPTY_LATENT, isOurs, PREVIEW } from "../names.js";
import { add, takeOver, wire, wireLike } from "./change.js";
import { emptyLatent, guidedBy, inputsOf, mainOf, samplingBehind, vaeOf } from "./find.js";
import {
  endOf, endOfType, gives, inputOf, MUTED, nodesOf, slotOf, takes, widgetOf,
} from "./nodes.js";
import { arrange, boxOfAll, freePlace } from "./places.js";
import { origin } from "./walk.js";

const OUT = { model: 0, sampler: 1, sigmas: 2, cfg: 3 };        // outputs of FewstepLoadLora
const ROOM = 50;                                // beside a node; twice that below the graph
const SIZE = [340, 400];                        // of a preview
const SMALL = { width: 32, height: 32 };        // a picture of the demo teacher
const CUSTOM = "SamplerCustom";
const SEEDS = ["seed", "noise_seed"];

export const isStock = (node) => ["KSampler", "KSamplerAdvanced"].includes(node.type);
const isGuider = (node) => gives(node, "GUIDER");
const takesSampler = (node) => inputOf(node, "sampler") >= 0 && inputOf(node, "sigmas") >= 0;

/** Whether a sampling node can be given a sampler and a schedule. */
export const isUsable = (node) => isStock(node) || isGuider(node) || takesSampler(node);

/** Into a node that takes SAMPLER and SIGMAS, or a guider and what samples with it. */
export function feed({ graph, wires, sampling }, lora) {
  const samplers = isGuider(sampling) ? guidedBy(wires, sampling).filter(takesSampler) : [sampling];
  const sigmas = samplers.map((node) => origin(node, inputOf(node, "sigmas"))?.node).find(Boolean);
  const split = shorten(graph, lora, sigmas);
  wire({ node: lora, slot: OUT.model }, sampling, sampling.inputs[slotOf(sampling.inputs, "MODEL")].name);
  wire({ node: lora, slot: OUT.cfg }, sampling, "cfg");
  for (const node of samplers) {
    wire({ node: lora, slot: OUT.sampler }, node, "sampler");
    wire(split.sigmas, node, "sigmas");
  }
  return { nodes: split.nodes, settle: () => besides(graph, [lora, ...split.nodes], sampling.pos) };
}

/**
 * A SamplerCustom in the place of a KSampler, which stays
 * for later, muted and folded, with nothing behind it.
 */
export function replace({ graph, sampling: old }, lora) {
  const seed = SEEDS.find((name) => widgetOf(old, name));
  const values = {
    add_noise: widgetOf(old, "add_noise")?.value !== "disable",
    noise_seed: widgetOf(old, seed)?.value,
    control_after_generate: widgetOf(old, "control_after_generate")?.value,
  };
  const custom = add(graph, CUSTOM, { pos: [...old.pos], values });
  for (const name of ["positive", "negative", "latent_image"]) {
    wireLike(old, name, custom, name);
  }
  wireLike(old, seed, custom, "noise_seed");
  const split = shorten(graph, lora, old);
  wire({ node: lora, slot: OUT.model }, custom, "model");
  wire({ node: lora, slot: OUT.sampler }, custom, "sampler");
  wire(split.sigmas, custom, "sigmas");
  wire({ node: lora, slot: OUT.cfg }, custom, "cfg");
  takeOver(old, 0, custom, 0);
  old.mode = MUTED;
  old.collapse();
  const settle = () => {
    custom.setSize([Math.max(old.size[0], custom.size[0]), custom.size[1]]);
    old.pos = freePlace(graph, old, [custom.pos[0], custom.pos[1] + custom.size[1] + ROOM]);
    besides(graph, [lora, ...split.nodes], custom.pos);
  };
  return { nodes: [...split.nodes, custom], settle };
}

/** A sampler of its own where the graph has none, and a picture where it has a VAE. */
export function sampleAnew({ graph, wires, chain }, lora) {
  const loader = chain[0].node;
  const { positive, negative } = promptsFor(graph, wires, chain);
  const custom = add(graph, CUSTOM);
  for (const name of Object.keys(OUT)) {
    wire({ node: lora, slot: OUT[name] }, custom, name);
  }
  wire(positive, custom, "positive");
  wire(negative, custom, "negative");
  const first = [lora];
  let latent = emptyLatent(graph, wires);
  if (!latent) {
    latent = { node: add(graph, EMPTY_LATENT, { values: loader.type === DEMO ? SMALL : {} }), slot: 0 };
    first.push(latent.node);
  }
  wire(latent, custom, "latent_image");
  const columns = [first, [custom], shown(graph, custom, vaeOf(graph, wires, undefined, loader))];
  return { nodes: columns.flat().slice(1), settle: () => arrange(columns, below(graph, columns.flat())) };
}

/** The nodes that show what a node's first output is a picture of; none where there is no VAE. */
export function shown(graph, node, vae) {
  if (!vae) {
    return [];
  }
  const decode = add(graph, "VAEDecode");
  const preview = add(graph, PREVIEW);
  preview.setSize([...SIZE]);
  wire({ node, slot: 0 }, decode, "samples");
  wire(vae, decode, "vae");
  wire({ node: decode, slot: 0 }, preview, "images");
  return [decode, preview];
}

/**
 * What to sample with no sampling node to ask: the demo teacher's
 * label, else another node's prompts, else the first encoders'.
 */
export function promptsFor(graph, wires, chain) {
  const loader = chain[0].node;
  if (loader.type === DEMO) {
    return { positive: endOf(loader, "positive"), negative: endOf(loader, "negative") };
  }
  const sampling = mainOf(wires, samplingBehind(wires, chain[0]))?.sampling;
  if (sampling) {
    return inputsOf(wires, sampling);
  }
  const [positive, negative] = nodesOf(graph)
    .filter((node) => !isOurs(node.type) && takes(node, "CLIP") && gives(node, "CONDITIONING"))
    .map((node) => endOfType(node, "CONDITIONING"));
  return { positive, negative: negative ?? positive };
}

/**
 * The part of the LoRA's schedule that a picture was to be
 * redrawn with, { sigmas, nodes }; where denoise is 1, all of it.
 */
function shorten(graph, lora, settings) {
  const sigmas = { node: lora, slot: OUT.sigmas };
  const denoise = settings && widgetOf(settings, "denoise")?.value;
  if (!(denoise < 1)) {
    return { sigmas, nodes: [] };
  }
  const split = add(graph, "SplitSigmasDenoise", { pos: [...lora.pos], values: { denoise } });
  wire(sigmas, split, "sigmas");
  return { sigmas: { node: split, slot: 1 }, nodes: [split] };
}

/** One under the other to the left of a position, or as near to there as there is room. */
function besides(graph, nodes, [x, y]) {
  for (const node of nodes) {
    node.pos = freePlace(graph, node, [x - node.size[0] - ROOM, y]);
  }
}

/** Where there is room below everything but these nodes. */
export function below(graph, own) {
  const [x, y, , height] = boxOfAll(graph, own);
  return [x, y + height + 2 * ROOM];
}
