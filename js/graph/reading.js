// What the user has built, read from the sampler: everything that it gets, as the server would run it.
//
//   readGraph(app, node) -> a frozen reading:
//     queued     the queued graph that all ends are of, see queued.js
//     sampler    id of the node that samples; guide: of its guider, or the same
//     graph      where the sampler lies on the canvas; within: the nodes of the subgraphs around it
//     chain      [end, ...] the loader's model, then those of the nodes that patch it, up to the sampler's
//     positive, negative, latent, vae    ends; null where there is none
//     cfg        the guidance, 1 for guiders without; undefined where it can't be read or is of another kind
//     plain      whether the guider is one that `cfg` tells all of
//     steps      how many; undefined where that can't be read
//     sigmas     the end of a schedule of its own, or null
//     becomes    types of what its latent is made into: IMAGE, AUDIO, ...
//     stages     [reading, ...] where several models share one way from noise to picture, in their order
//     from, to   the part of the way that this one takes, of the model's time: 0 is noise, 1 the picture
//
// Which sampler is meant: the selected one; else one that the given node's model reaches; else one in the
// shown graph; of those the one whose picture is shown, and of several passes of one model the first.

import { isOurs } from "../names.js";
import { graphOf, selectedIn } from "./find.js";
import { shareTaken } from "./parts.js";
import {
  aboveOf, goalsFrom, idOf, readQueued, sameEnd, sourceOf, typeOf, typesOf, wiredOf, worthOf,
} from "./queued.js";

const POSITIVE = ["positive", "conditioning", "cond1"];
const PLAIN_INPUTS = ["model", "positive", "negative", "conditioning", "cfg"];
const NOT_MADE = [
  "LATENT", "CONDITIONING", "INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "NOISE", "SIGMAS", "MODEL", "*",
];

/** The reading of the sampler that is meant; null where none samples. */
export async function readGraph(app, node = null) {
  const queued = await readQueued(app);
  const all = samplersOf(queued).map((one) => read(queued, one));
  const meant = choose(app, queued, all, node);
  if (!meant) {
    return null;
  }
  const chained = stagesOf(queued, all, meant);
  return Object.freeze({ ...meant, stages: Object.freeze(chained.length > 1 ? chained : []) });
}

/** [{ sampler, guide }]: every node that samples a model. */
export function samplersOf(queued) {
  const found = [];
  for (const { id, type } of queued.values()) {
    const outputs = typesOf(queued, id);
    const makes = outputs.includes("LATENT") || outputs.includes("IMAGE");
    const [guider] = wiredOf(queued, id, "GUIDER");
    if (isOurs(type) || !makes) {
      continue;
    }
    if (guider) {
      found.push({ sampler: id, guide: sourceOf(queued, id, guider).id });
    } else if (wiredOf(queued, id, "MODEL").length && wiredOf(queued, id, "CONDITIONING").length
      && (takesSteps(queued, id) || !["MODEL", "CONDITIONING"].some((one) => outputs.includes(one)))) {
      found.push({ sampler: id, guide: id });
    }
  }
  return found;
}

/** Whether a node has the settings of a sampler; such ones may hand on model and prompts as well. */
const takesSteps = (queued, id) => ["steps", "cfg"].every((name) => name in queued.get(id).inputs);

function read(queued, { sampler, guide }) {
  const source = (id, name) => (name ? sourceOf(queued, id, name) : null);
  const conditionings = wiredOf(queued, guide, "CONDITIONING");
  const { graph, within } = queued.get(sampler);
  const latent = source(sampler, wiredOf(queued, sampler, "LATENT")[0]);
  const sigmas = source(sampler, wiredOf(queued, sampler, "SIGMAS")[0]);
  const chain = chainOf(queued, guide);
  const steps = stepsOf(queued, sampler);
  return Object.freeze({
    queued, sampler, guide, graph, within, chain, latent, sigmas, steps,
    positive: source(guide, POSITIVE.find((name) => conditionings.includes(name)) ?? conditionings[0]),
    negative: source(guide, conditionings.find((name) => name === "negative")),
    vae: vaeFor(queued, sampler, latent, chain[0]),
    cfg: cfgOf(queued, guide),
    plain: guide === sampler || wiredOf(queued, guide).every((name) => PLAIN_INPUTS.includes(name)),
    becomes: Object.freeze(madeFrom(queued, sampler)),
    ...shareTaken(queued, sampler, steps),
  });
}

function chainOf(queued, guide) {
  const chain = [];
  let id = guide;
  for (;;) {
    const name = wiredOf(queued, id, "MODEL").find((one) => !one.includes("negative"));
    const end = name ? sourceOf(queued, id, name) : null;
    if (!end || chain.some((one) => sameEnd(one, end))) {
      return Object.freeze(chain);
    }
    chain.unshift(end);
    id = end.id;
  }
}

function cfgOf(queued, guide) {
  const { inputs } = queued.get(guide);
  if ("cfg" in inputs) {
    const cfg = worthOf(queued, guide, "cfg");
    return typeof cfg === "number" ? cfg : undefined;
  }
  return Object.keys(inputs).some((name) => name.includes("cfg")) ? undefined : 1;
}

function stepsOf(queued, sampler) {
  for (const id of new Set([sampler, ...aboveOf(queued, [sampler], ["SIGMAS"])])) {
    const { inputs } = queued.get(id);
    const listed = "sigmas" in inputs ? worthOf(queued, id, "sigmas") : undefined;
    if ("steps" in inputs) {
      const steps = worthOf(queued, id, "steps");
      return Number.isFinite(steps) ? Math.trunc(steps) : undefined;
    }
    if (typeof listed === "string") {
      return Math.max(1, (listed.match(/\d*\.?\d+(?:e-?\d+)?/gi) ?? []).length - 1);
    }
  }
  return undefined;
}

/** Types of what the nodes make that take the sampler's latent, through others that give latents. */
function madeFrom(queued, sampler) {
  const types = new Set(typesOf(queued, sampler).filter((type) => type === "IMAGE"));
  const met = new Set([sampler]);
  for (const id of met) {      // grows while it is walked
    for (const { slot, id: to } of goalsFrom(queued, id)) {
      if (typeOf(queued, { id, slot }) === "LATENT") {
        const outputs = typesOf(queued, to);
        outputs.filter((type) => !NOT_MADE.includes(type)).forEach((type) => types.add(type));
        if (outputs.includes("LATENT")) {
          met.add(to);
        }
      }
    }
  }
  return [...types];
}

/** The VAE that decodes what a sampler makes, else one that its latent was made with, else the loader's. */
function vaeFor(queued, sampler, latent, loader) {
  const met = new Set([sampler]);
  const vaeOf = (id) => wiredOf(queued, id, "VAE").map((name) => sourceOf(queued, id, name)).find(Boolean);
  for (const id of met) {      // grows while it is walked
    for (const { slot, id: to } of goalsFrom(queued, id)) {
      if (typeOf(queued, { id, slot }) !== "LATENT") {
        continue;
      }
      const outputs = typesOf(queued, to);
      if (outputs.includes("LATENT")) {
        met.add(to);
      } else if (vaeOf(to)) {
        return vaeOf(to);
      }
    }
  }
  const above = latent ? aboveOf(queued, [latent.id], ["LATENT"]).map(vaeOf).find(Boolean) : null;
  const own = loader ? typesOf(queued, loader.id).indexOf("VAE") : -1;
  return above ?? (own >= 0 ? { id: loader.id, slot: own } : null);
}

// ---- which one -------------------------------------------------------------------------------------

function choose(app, queued, all, node) {
  const marked = selectedIn(app);
  const selected = new Set(marked.map((one) => idOf(queued, one)).filter(Boolean));
  const picked = all.find(({ sampler, guide }) => selected.has(sampler) || selected.has(guide));
  if (picked && !node) {
    return picked;
  }
  const shown = all.filter(({ sampler }) => isShown(queued, sampler));
  const ways = [
    (one) => (node ? touches(queued, one, node) : true),
    (one) => node || one.chain.some(({ id }) => selected.has(id))
      || one.within.some((outer) => marked.includes(outer)),
    (one) => shown.includes(one),
    (one) => isPicture(one),
    (one) => !isLess(app, one),
    (one) => one.latent,
    (one) => !feedsAnother(queued, one, all),
  ];
  let left = all;
  for (const [i, way] of ways.entries()) {
    const kept = left.filter(way);
    if (!kept.length && node && i === 0) {
      return null;
    }
    left = kept.length ? kept : left;
  }
  return left.length ? firstPass(queued, all, left[0]) : null;
}

/** Whether a sampler's model comes through a node of the canvas, or through what lies in it. */
function touches(queued, one, node) {
  return one.chain.some(({ id }) => queued.get(id).node === node || queued.get(id).within.includes(node));
}

const isPicture = ({ becomes }) => becomes.every((type) => ["IMAGE", "VIDEO"].includes(type));

/** Whether the user looks at another graph than the one that a sampler lies in. */
const isLess = (app, { graph }) => graphOf(app) !== app.graph && graph !== graphOf(app);

function isShown(queued, sampler) {
  const met = new Set([sampler]);
  for (const id of met) {      // grows while it is walked
    if (queued.get(id).node.constructor?.nodeData?.output_node) {
      return true;
    }
    goalsFrom(queued, id).forEach((goal) => met.add(goal.id));
  }
  return false;
}

function feedsAnother(queued, one, all) {
  const met = new Set([one.sampler]);
  for (const id of met) {      // grows while it is walked
    goalsFrom(queued, id).forEach((goal) => met.add(goal.id));
  }
  return all.some(({ sampler }) => sampler !== one.sampler && met.has(sampler));
}

/** The sampler of the same model whose latent or picture this one goes on with, the first of them. */
function firstPass(queued, all, one) {
  const above = aboveOf(queued, [one.sampler], ["LATENT", "IMAGE"]);
  const before = all.find((other) => other !== one && other.latent && above.includes(other.sampler)
    && sameEnd(other.chain[0], one.chain[0]));
  return before ? firstPass(queued, all.filter((other) => other !== one), before) : one;
}

/** The samplers that share one way from noise to picture with this one, of models of their own. */
function stagesOf(queued, all, meant) {
  const isBefore = (one, other) => one.latent && other !== one
    && aboveOf(queued, [one.latent.id], ["LATENT"]).includes(other.sampler);
  const goesOn = (one) => one.from > 0;
  const others = all.filter((other) => !sameEnd(other.chain[0], meant.chain[0])
    && ((goesOn(meant) && isBefore(meant, other)) || (goesOn(other) && isBefore(other, meant))));
  return [...others, meant].sort((one, other) => one.from - other.from);
}
