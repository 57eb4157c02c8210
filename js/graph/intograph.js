// Puts a few-step LoRA in front of the nodes that sample: its model, sampler, schedule and CFG.
//
//   targets   ids of the samplers that get it: the one that is meant, those that share its guider, and those
//             that go on with the same model on the same way from noise to picture

import { EDIT_SCHEDULE, LOAD_LORA } from "../names.js";
import { t } from "../text.js";
import { copyPatches } from "./bare.js";
import { add, wire, wireLike } from "./change.js";
import { fold, handOver, keepInput, set } from "./journal.js";
import { inputOf, MUTED, widgetOf } from "./nodes.js";
import { partTaken, sigmasOf } from "./parts.js";
import { freePlace } from "./places.js";
import { aboveOf, sameEnd, sourceOf, typesOf, wiredOf } from "./queued.js";
import { samplersOf } from "./reading.js";
import { wireEnd } from "./wiring.js";

const OUT = { model: 0, sampler: 1, sigmas: 2, cfg: 3 };        // outputs of FewstepLoadLora
const ROOM = 50;                                                // beside a node
const CUSTOM = "SamplerCustom";
const STOCK = ["KSampler", "KSamplerAdvanced"];
const GUIDER = "CFGGuider";
const GUIDERS = [GUIDER, "BasicGuider"];                        // by CFG alone, or not at all
const SEEDS = ["seed", "noise_seed"];

const isStock = (queued, id) => STOCK.includes(queued.get(id).type);
const takesSampler = ({ node }) => inputOf(node, "sampler") >= 0 && inputOf(node, "sigmas") >= 0;

/** Why a sampler can't be given a sampler and a schedule, in words; null where it can. */
export function unfit({ queued, sampler, guide }) {
  const { node, type } = queued.get(sampler);
  if (!STOCK.includes(type) && !takesSampler(queued.get(sampler))) {
    return t("graph.fixedSampler", { name: node.title });
  }
  const flipped = aboveOf(queued, [sampler], ["SIGMAS"]).find((id) => queued.get(id).type === "FlipSigmas");
  if (flipped) {
    return t("graph.fixedSampler", { name: queued.get(flipped).node.title });
  }
  const guider = queued.get(guide);
  const known = guide === sampler || GUIDERS.includes(guider.type);
  const usable = known || sourceOf(queued, guide, positiveOf(queued, guide));
  return usable ? null : t("graph.fixedSampler", { name: guider.node.title });
}

export function targetsOf(reading, { whole }) {
  const { queued, sampler, guide, chain } = reading;
  const goesOn = (one) => whole && one.guide === one.sampler && isStock(queued, one.sampler)
    && sameEnd(modelInto(queued, one.guide), chain.at(-1))
    && partTaken(queued, one.sampler)?.from && isBehind(queued, sampler, one.sampler);
  const shares = (one) => guide !== sampler && one.guide === guide;
  const others = samplersOf(queued).filter((one) => one.sampler !== sampler && (shares(one) || goesOn(one)));
  return [sampler, ...others.map((one) => one.sampler)];
}

const modelInto = (queued, id) => sourceOf(queued, id, wiredOf(queued, id, "MODEL")[0]);

const isBehind = (queued, first, second) => aboveOf(queued, [second], ["LATENT"]).includes(first);

function positiveOf(queued, guide) {
  const names = wiredOf(queued, guide, "CONDITIONING");
  return ["positive", "conditioning", "cond1"].find((name) => names.includes(name)) ?? names[0];
}

/**
 * Builds it. plan: { reading, targets, place, bare }. Answers { loader, edited, settle }: which inputs of
 * nodes that were there are now other ones, as [node, name], and what finds places once sizes are known.
 */
export function putIn(plan, name, made, journal) {
  const { reading: { queued, guide, sampler }, targets, place } = plan;
  const { pos } = queued.get(guide).node;
  const loader = add(place.graph, LOAD_LORA, { pos: [...pos], values: { lora_name: name } });
  made.nodes.push(loader);
  const way = { ...plan, loader, made, journal, samplers: [], swapped: [], edited: [] };
  const model = copyPatches(plan.reading, plan.bare, place, made);
  wireEnd(queued, model, place, made, { to: loader, name: "model" });
  if (guide !== sampler) {
    guideBy(way);
  }
  targets.forEach((id) => (isStock(queued, id) ? exchange(way, id) : feed(way, id)));
  return { ...way, settle: () => settle(way) };
}

/** The loader's model and CFG into a guider; one of another kind gives way to a plain one. */
function guideBy(way) {
  const { reading: { queued, guide }, loader } = way;
  const { node: old, type } = queued.get(guide);
  if (GUIDERS.includes(type)) {
    put(way, old, queuedModel(queued, guide), loader, OUT.model);
    if (inputOf(old, "cfg") >= 0) {
      put(way, old, "cfg", loader, OUT.cfg);
    }
    return;
  }
  const node = add(old.graph, GUIDER, { pos: [...old.pos] });
  const positive = positiveOf(queued, guide);
  const negative = wiredOf(queued, guide, "CONDITIONING").includes("negative") ? "negative" : positive;
  way.made.nodes.push(node);
  wire({ node: loader, slot: OUT.model }, node, "model");
  wire({ node: loader, slot: OUT.cfg }, node, "cfg");
  wireLike(old, positive, node, "positive");
  wireLike(old, negative, node, "negative");
  swap(way, guide, node, typesOf(queued, guide).indexOf("GUIDER"));
}

const queuedModel = (queued, id) => wiredOf(queued, id, "MODEL")[0];

/** Sampler and schedule, and model and CFG where it takes them itself, into a node that samples with them. */
function feed(way, id) {
  const { reading: { queued, guide }, loader } = way;
  const { node } = queued.get(id);
  const sigmas = scheduleFor(way, id);
  put(way, node, "sampler", loader, OUT.sampler);
  put(way, node, "sigmas", sigmas.node, sigmas.slot);
  if (id === guide) {
    put(way, node, queuedModel(queued, id), loader, OUT.model);
    put(way, node, "cfg", loader, OUT.cfg);
  }
  way.samplers.push(node);
}

function put(way, node, name, from, slot) {
  if (from.graph !== node.graph) {
    throw new Error(t("graph.notWhole", { input: name }));
  }
  keepInput(way.journal, node, name);
  from.connect(slot, node, inputOf(node, name));
  way.edited.push([node, name]);
}

/**
 * A SamplerCustom in the place of a KSampler, which stays for
 * later, muted and folded, with nothing behind it.
 */
function exchange(way, id) {
  const { reading: { queued }, loader, made } = way;
  const { node: old } = queued.get(id);
  const seed = SEEDS.find((name) => widgetOf(old, name));
  const values = {
    add_noise: widgetOf(old, "add_noise")?.value !== "disable",
    noise_seed: widgetOf(old, seed)?.value,
    control_after_generate: widgetOf(old, "control_after_generate")?.value,
  };
  const custom = add(old.graph, CUSTOM, { pos: [...old.pos], values });
  made.nodes.push(custom);
  for (const name of ["positive", "negative", "latent_image"]) {
    wireLike(old, name, custom, name);
  }
  wireLike(old, seed, custom, "noise_seed");
  const sigmas = scheduleFor(way, id);
  for (const [name, from, slot] of [
    ["model", loader, OUT.model], ["sampler", loader, OUT.sampler],
    ["cfg", loader, OUT.cfg], ["sigmas", sigmas.node, sigmas.slot],
  ]) {
    wire({ node: from, slot }, custom, name);
  }
  swap(way, id, custom, 0);
  way.samplers.push(custom);
}

/** A new node in the place of one that was there, which is muted and folded. */
function swap(way, id, node, slot) {
  const { reading: { queued }, journal } = way;
  const { node: old } = queued.get(id);
  for (const { node: other, inputs } of queued.values()) {      // switches too, which goals lie behind
    const isFed = (value) => Array.isArray(value) && String(value[0]) === id;
    const fed = Object.keys(inputs).filter((name) => isFed(inputs[name]));
    fed.forEach((name) => way.edited.push([other, name]));
  }
  handOver(journal, old, slot, node, 0);
  set(journal, old, { mode: MUTED, pos: [...old.pos] });
  fold(journal, old);
  way.swapped.push([old, node]);
}

/** The end of the LoRA's schedule for a sampler, cut to the part of the way that it takes. */
function scheduleFor(way, id) {
  const { reading: { queued }, loader, made } = way;
  const sigmas = { node: loader, slot: OUT.sigmas };
  const part = partTaken(queued, id);
  if (!part) {
    return sigmas;
  }
  const { node, graph, within } = queued.get(id);
  const model = { node: loader, slot: OUT.model };
  const taken = part.sigmas ?? sigmasOf(queued, id, part, model, made);
  const cut = add(graph, EDIT_SCHEDULE, { pos: [...node.pos] });
  made.nodes.push(cut);
  wire(model, cut, "model");
  wire(sigmas, cut, "sigmas");
  wireEnd(queued, taken, { graph, within }, made, { to: cut, name: "part" });
  return { node: cut, slot: 0 };
}

function settle({ loader, made, swapped, reading: { queued, guide } }) {
  for (const [old, node] of swapped) {
    node.setSize([Math.max(old.size[0], node.size[0]), node.size[1]]);
    old.pos = freePlace(old.graph, old, [node.pos[0], node.pos[1] + node.size[1] + ROOM]);
  }
  const replaced = swapped.map(([, node]) => node);
  const [x, y] = replaced[0]?.pos ?? queued.get(guide).node.pos;
  for (const node of [loader, ...made.nodes.filter((one) => one !== loader && !replaced.includes(one))]) {
    node.pos = freePlace(node.graph, node, [x - node.size[0] - ROOM, y]);
  }
}

/**
 * What of the promise is not in the graph as it would run now, in words; null where all is: the LoRA on the
 * model of each sampler, its sampler, schedule and CFG, and nothing else changed.
 */
export function lacking(before, now, way, name) {
  const { loader, samplers, edited, swapped, reading: { guide, sampler } } = way;
  const idOf = (node) => [...now.values()].find((one) => one.node === node)?.id;
  const id = idOf(loader);
  if (!id || now.get(id).inputs.lora_name !== name || !sourceOf(now, id, "model")) {
    return LOAD_LORA;
  }
  const is = (end, slot) => end?.id === id && end.slot === slot;
  for (const node of samplers) {
    const own = idOf(node);
    if (!own) {
      return node.title;
    }
    const [guider] = wiredOf(now, own, "GUIDER");
    const guideNow = guide === sampler ? own : sourceOf(now, own, guider)?.id;
    const sigmas = sourceOf(now, own, "sigmas");
    const isCut = sigmas && now.get(sigmas.id).type === EDIT_SCHEDULE;
    const cut = isCut ? sourceOf(now, sigmas.id, "sigmas") : sigmas;
    const hasCfg = "cfg" in (now.get(guideNow)?.inputs ?? {});
    const cfg = hasCfg ? sourceOf(now, guideNow, "cfg") : { id, slot: OUT.cfg };
    const wanted = [
      ["sampler", is(sourceOf(now, own, "sampler"), OUT.sampler)], ["sigmas", is(cut, OUT.sigmas)],
      ["model", guideNow && is(modelInto(now, guideNow), OUT.model)], ["cfg", is(cfg, OUT.cfg)],
    ];
    const lost = wanted.find(([, right]) => !right);
    if (lost) {
      return lost[0];
    }
  }
  return changed(before, now, edited, swapped.map(([old]) => old));
}

/** The title of a node of the user's that runs otherwise than before; null where there is none. */
function changed(before, now, edited, gone) {
  const isMeant = (node, name) => edited.some(([one, input]) => one === node && input === name);
  for (const { id, node, inputs } of before.values()) {
    const after = now.get(id)?.inputs;
    if (!after && !gone.includes(node) && !node.type.startsWith("Fewstep") && node.mode !== MUTED) {
      return node.title;
    }
    const names = after ? Object.keys({ ...inputs, ...after }) : [];
    const isOther = (name) => JSON.stringify(inputs[name]) !== JSON.stringify(after[name]);
    if (names.some((name) => !isMeant(node, name) && isOther(name))) {
      return node.title;
    }
  }
  return null;
}

