// A sampler of its own for a FewstepLoadLora, in a graph that has none. It wires, and answers { nodes,
// settle }: the new nodes beside the loader, and what finds places for them later, when sizes are known.

import { DEMO, EMPTY_LATENT, isOurs, PREVIEW } from "../names.js";
import { add, wire } from "./change.js";
import { emptyLatent, inputsOf, mainOf, samplingBehind, vaeOf } from "./find.js";
import { endOf, endOfType, gives, nodesOf, takes } from "./nodes.js";
import { arrange, boxOfAll } from "./places.js";

const OUT = { model: 0, sampler: 1, sigmas: 2, cfg: 3 };        // outputs of FewstepLoadLora
const SIZE = [340, 400];                        // of a preview
const SMALL = { width: 32, height: 32 };        // a picture of the demo teacher
const CUSTOM = "SamplerCustom";

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

/** Where there is room below everything but these nodes. */
export function below(graph, own) {
  const [x, y, , height] = boxOfAll(graph, own);
  return [x, y + height + 100];
}
