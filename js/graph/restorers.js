// A FewstepRestore for a LoRA that was trained to restore:
// what it is wired to, and what of that has to be made first.

import { CORRUPT, isOurs, PROCESS_TYPE, RESTORE } from "../names.js";
import { t } from "../text.js";
import { add, wire } from "./change.js";
import { outputOf, teacherOf, vaeOf } from "./find.js";
import { BYPASSED, endOfType, gives, inputOf, nodesOf } from "./nodes.js";
import { arrange } from "./places.js";
import { below, promptsFor, shown } from "./samplers.js";
import { chainTo, origin, upstream } from "./walk.js";

/**
 * The node that restores with that chain's model already, a
 * selected one first; undefined where there is none.
 */
export function restorerOf({ graph, wires, chain }, selected) {
  const ofChain = (node) => node.type === RESTORE && loaderOf(wires, node) === chain[0].node;
  const found = nodesOf(graph).filter(ofChain);
  return found.find((node) => selected.includes(node)) ?? found[0];
}

function loaderOf(wires, node) {
  const model = origin(node, inputOf(node, "model"));
  return model && chainTo(wires, model)[0].node;
}

/**
 * The model without the few-step LoRAs that it was tried with:
 * the node brings its own. Answers what is passed by now.
 */
export function unload(wires, restorer) {
  const { end, leftOut } = teacherOf(wires, chainTo(wires, origin(restorer, inputOf(restorer, "model"))));
  if (leftOut.length) {
    wire(end, restorer, "model");
  }
  return leftOut;
}

/**
 * What there is to restore, and with what; throws an Error
 * to show where the graph lacks it. Nothing is changed yet.
 */
export function restoringPlan({ graph, wires, chain, sampling, ...plan }, selected) {
  const vae = vaeOf(graph, wires, sampling, chain[0].node);
  const { positive } = promptsFor(graph, wires, chain);
  const clip = positive ? null : outputOf(graph, "CLIP", chain[0].node);
  const picture = pictureIn(graph, wires, plan.distil, selected);
  if (!picture || !(picture.latent || vae)) {
    throw new Error(t(picture ? "graph.noVae" : "graph.noPicture"));
  }
  if (!positive && !clip) {
    throw new Error(t("graph.noPrompts"));
  }
  return { graph, end: plan.end, vae, positive, clip, ...picture };
}

/** Wires it; answers { node, nodes, settle } as the ways to sample do. */
export function restore({ graph, end, vae, positive, clip, latent, image, process }, name) {
  const restorer = add(graph, RESTORE, { values: { lora_name: name } });
  const first = [];
  const more = (type) => {
    first.push(add(graph, type));
    return first.at(-1);
  };
  const text = clip && more("CLIPTextEncode");      // empty: as good as any but the training's own
  if (text) {
    wire(clip, text, "clip");
  }
  if (image) {
    const node = more(process ? CORRUPT : "VAEEncode");
    wire(end, node, "model");
    wire(vae, node, "vae");
    wire(image, node, process ? "image" : "pixels");
    wire(process, node, "process");
    latent = { node, slot: 0 };
  }
  wire(end, restorer, "model");
  wire(positive ?? { node: text, slot: 0 }, restorer, "positive");
  wire(latent, restorer, "latent");
  const columns = [first, [restorer], shown(graph, restorer, vae)];
  const nodes = columns.flat();
  return { node: restorer, nodes, settle: () => arrange(columns, below(graph, nodes)) };
}

/**
 * A destroyed picture: { latent }, or { image } to encode, or { image, process } to destroy first, as all
 * pictures are whole that were learnt from or are drawn in this very graph. Null where there is none.
 */
function pictureIn(graph, wires, distil, selected) {
  const whole = learntFrom(wires, distil);
  const here = (type, wanted) => {
    const found = nodesOf(graph).filter((one) => one.mode !== BYPASSED && gives(one, type) && wanted(one));
    const node = found.find((one) => selected.includes(one)) ?? found[0];
    return node ? endOfType(node, type) : null;
  };
  const fed = (node, ...types) => wires.some(({ to, type }) => to === node && types.includes(type));
  const foreign = (node) => !isOurs(node.type) && !whole.includes(node);

  const encoded = here("LATENT", ({ type }) => type === CORRUPT)
    ?? here("LATENT", (node) => foreign(node) && fed(node, "IMAGE") && !fed(node, "MODEL"));
  if (encoded) {
    const isMask = ({ from, to }) => from.node === encoded.node && to.type === "SetLatentNoiseMask";
    const masked = wires.find(isMask)?.to;
    return { latent: masked ? { node: masked, slot: 0 } : encoded };
  }
  const image = here("IMAGE", (node) => foreign(node) && !fed(node, "IMAGE", "LATENT"));
  if (image) {
    return { image };
  }
  const process = (distil && origin(distil, inputOf(distil, "process"))) ?? here(PROCESS_TYPE, () => true);
  const source = here("IMAGE", (node) => whole.includes(node))
    ?? here("IMAGE", (node) => foreign(node) && fed(node, "VAE"));
  return process && source ? { image: source, process } : null;
}

/** The nodes that the pictures come from which a FewstepDistil learns from. */
function learntFrom(wires, distil) {
  const first = distil && origin(distil, inputOf(distil, "pictures"))?.node;
  return first ? upstream(wires, [first], ["LATENT", "IMAGE"]) : [];
}
