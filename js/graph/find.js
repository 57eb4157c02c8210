// What the nodes of the user's graph are for: which of them samples, what it
// is fed by, where a model comes from. Everything here reads the wires of one
// graph, see walk.js: new nodes have to lie beside what they are wired to.

import { COMPARE, isOurs, LOAD_LORA } from "../names.js";
import { BYPASSED, endOfType, gives, nodesOf, slotOf, takes } from "./nodes.js";
import { downstream, graphsOf, origin, upstream, wiresOf } from "./walk.js";

// patches of a model that guide it or skip work: a few-step model
// learns from the model without them, and runs without them
const GUIDES = /cfg|guidance|cache|thresholding|perpneg|^apg$|mahiro|fresca|rescaling/i;
const LOADS = /load|lora|merge/i;

export function graphOf(app) {
  return app.canvas?.graph ?? app.graph;
}

/** The selected nodes, and what else is selected. */
export function selectedIn(app) {
  return [...(app.canvas?.selectedItems ?? [])];
}

/**
 * Whether a node samples a model: it takes a model and a prompt,
 * and gives latents, a picture or a guider to sample with.
 */
export function isSampling(node) {
  if (isOurs(node.type) && node.type !== COMPARE) {
    return false;
  }
  const samples = takes(node, "MODEL") && promptsOf(node).positive >= 0;
  const passesOn = gives(node, "MODEL") && !takes(node, "LATENT");
  return samples && !passesOn && !gives(node, "LORA_MODEL")
    && ["LATENT", "GUIDER", "IMAGE"].some((type) => gives(node, type));
}

/**
 * Numbers of the inputs that take the prompt and the negative
 * prompt; a guider without the latter has the same for both.
 */
function promptsOf(node) {
  const find = (...names) => (node.inputs ?? []).findIndex(({ type, name }) =>
    type === "CONDITIONING" && names.includes(name));
  const positive = find("positive", "conditioning", "cond1");
  const negative = find("negative");
  return { positive, negative: negative < 0 ? positive : negative };
}

/**
 * [{ sampling, chain }]: the sampling nodes that an end
 * feeds, through whatever patches models; the nearest first.
 */
export function samplingBehind(wires, end) {
  const found = [];
  const met = new Set([end.node]);
  const open = [[end]];
  while (open.length) {
    const chain = open.shift();
    const last = chain.at(-1);
    for (const { from, to, type } of wires) {
      if (from.node !== last.node || from.slot !== last.slot || type !== "MODEL" || met.has(to)) {
        continue;
      }
      met.add(to);
      if (isSampling(to)) {
        found.push({ sampling: to, chain });
      } else if (gives(to, "MODEL")) {
        open.push([...chain, endOfType(to, "MODEL")]);
      }
    }
  }
  return found;
}

/**
 * Of what `samplingBehind` found the one that starts from an
 * empty latent, else the first; undefined where there is none.
 */
export function mainOf(wires, found) {
  return found.find(({ sampling }) => isEmptyLatent(latentOf(wires, sampling)?.node)) ?? found[0];
}

/** { end, leftOut }: where a chain is still a model to learn from, and the nodes after that. */
export function teacherOf(wires, chain) {
  const at = chain.findIndex(({ node }, i) => i && (isFewStep(wires, node) || guides(node)));
  if (at < 0) {
    return { end: chain.at(-1), leftOut: [] };
  }
  return { end: chain[at - 1], leftOut: chain.slice(at).map(({ node }) => node) };
}

const guides = (node) => GUIDES.test(node.type) && !LOADS.test(node.type);

function isFewStep(wires, node) {
  return node.type === LOAD_LORA || wires.some(({ from, to, type }) =>
    to === node && type === "LORA_MODEL" && isOurs(from.node.type));
}

/** { positive, negative, latent }: the ends that a sampling node is fed by. */
export function inputsOf(wires, sampling) {
  const { positive, negative } = promptsOf(sampling);
  return {
    positive: origin(sampling, positive),
    negative: origin(sampling, negative),
    latent: latentOf(wires, sampling),
  };
}

/** The nodes that sample with a guider. */
export function guidedBy(wires, guider) {
  return wires.filter(({ from, type }) => from.node === guider && type === "GUIDER").map(({ to }) => to);
}

function latentOf(wires, sampling) {
  const node = guidedBy(wires, sampling)[0] ?? sampling;
  return origin(node, slotOf(node.inputs, "LATENT"));
}

function isEmptyLatent(node) {
  return Boolean(node?.type.startsWith("Empty")) && gives(node, "LATENT");
}

/**
 * The graph's empty latent: the one that a sampling node
 * starts from, even if over other passes, else any; or null.
 */
export function emptyLatent(graph, wires, sampling) {
  const above = sampling ? upstream(wires, [...guidedBy(wires, sampling), sampling], ["LATENT"]) : [];
  const node = above.find(isEmptyLatent) ?? nodesOf(graph).find(isEmptyLatent);
  return node ? endOfType(node, "LATENT") : null;
}

/** An output of that type: of the node itself, else of any node; null for none. */
export function outputOf(graph, type, first) {
  const node = [first, ...nodesOf(graph)].find((one) => one && one.mode !== BYPASSED && gives(one, type));
  return node ? endOfType(node, type) : null;
}

/** The VAE that decodes what a sampling node gives, else the loader's, else any. */
export function vaeOf(graph, wires, sampling, loader) {
  const behind = sampling ? downstream(wires, [sampling], ["LATENT", "GUIDER"]).slice(1) : [];
  const vaes = behind.map((node) => origin(node, slotOf(node.inputs, "VAE")));
  return vaes.find(Boolean) ?? outputOf(graph, "VAE", loader);
}

/** The node whose model is meant: a selected one, else the loader of the shown graph, else of a subgraph. */
export function sourceOfModel(app) {
  const shown = graphOf(app);
  const chosen = selectedIn(app).find((node) => gives(node, "MODEL"));
  if (chosen || !shown) {
    return chosen ?? null;
  }
  for (const graph of [shown, ...graphsOf(app.graph)]) {
    const wires = wiresOf(graph);
    const patches = (node) => wires.some(({ to, type }) => to === node && type === "MODEL");
    const samples = (node) => samplingBehind(wires, endOfType(node, "MODEL")).length > 0;
    const loaders = nodesOf(graph).filter((node) =>
      gives(node, "MODEL") && node.mode !== BYPASSED && !patches(node));
    const found = loaders.find(samples) ?? loaders[0];
    if (found) {
      return found;
    }
  }
  return null;
}
