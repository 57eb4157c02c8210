// The part of the way from noise to picture that a sampler takes. A few-step schedule is cut to it, so
// that a second pass begins where it did, and one of two models hands on at its old noise level.

import { betaQuantile } from "../maths/grids.js";
import { discreteSigma, stableDiffusion, timeOf } from "../maths/models.js";
import { EDIT_SCHEDULE } from "../names.js";
import { add, wireLike } from "./change.js";
import { sourceOf, wiredOf, worthOf } from "./queued.js";

const WHOLE = 10000;      // what the host writes for "to the end"
const sigmaOfSd = discreteSigma(stableDiffusion());
const MOST = 100;         // nodes that cut a schedule, one after another

/**
 * What tells the part: { sigmas } an end of the graph, { from, to, denoise } of a plain
 * sampler's widgets; null where the sampler goes the whole way.
 */
export function partTaken(queued, sampler) {
  const [name] = wiredOf(queued, sampler, "SIGMAS");
  const sigmas = name ? sourceOf(queued, sampler, name) : null;
  if (sigmas) {
    return goesWholeWay(queued, sigmas) ? null : { sigmas };
  }
  const worth = (input) => worthOf(queued, sampler, input);
  const has = (input) => input in queued.get(sampler).inputs;
  const steps = worth("steps");
  const from = has("start_at_step") && worth("start_at_step") !== 0;
  const leaves = has("end_at_step") && worth("return_with_leftover_noise") !== "disable";
  const to = leaves && !(worth("end_at_step") >= (steps ?? WHOLE));
  const denoise = has("denoise") && worth("denoise") !== 1;
  return from || to || denoise ? { from, to, denoise } : null;
}

/** Whether SIGMAS come whole from a node that makes them, from pure noise to the picture. */
function goesWholeWay(queued, { id }) {
  const { type, inputs } = queued.get(id);
  const cut = wiredOf(queued, id, "SIGMAS").length > 0 || type === "ManualSigmas";
  return !cut && (!("denoise" in inputs) || worthOf(queued, id, "denoise") === 1);
}

/** The end of that part's SIGMAS in the graph of a node; of a plain sampler by the host's own nodes. */
export function sigmasOf(queued, sampler, part, model, made) {
  const { node: old } = queued.get(sampler);
  const more = (type, taken) => {
    const values = {};
    for (const [name, from] of Object.entries(taken)) {
      values[name] = worthOf(queued, sampler, from);
    }
    const node = add(old.graph, type, { pos: [...old.pos], values });
    Object.entries(taken).forEach(([name, from]) => wireLike(old, from, node, name));
    made.nodes.push(node);
    return node;
  };
  const denoise = part.denoise ? { denoise: "denoise" } : {};
  const all = more("BasicScheduler", { scheduler: "scheduler", steps: "steps", ...denoise });
  model.node.connect(model.slot, all, 0);
  let end = { node: all, slot: 0 };
  for (const [wanted, step, slot] of [[part.to, "end_at_step", 0], [part.from, "start_at_step", 1]]) {
    if (wanted) {
      const split = more("SplitSigmas", { step });
      end.node.connect(end.slot, split, 0);
      end = { node: split, slot };
    }
  }
  return end;
}

// ---- as shares of the way --------------------------------------------------------------------------

/**
 * { from, to }: the same as shares of the model's own time, 0 noise and 1 the picture,
 * as far as steps tell; lower denoise is a pass of its own, and counts as the whole way.
 */
export function shareTaken(queued, sampler, steps) {
  const part = { from: 0, to: 1 };
  const start = worthOf(queued, sampler, "start_at_step");
  const end = worthOf(queued, sampler, "end_at_step");
  const cut = (step, scheduler) => shareAt(scheduler, step, steps);
  if (steps && Number.isFinite(start) && Number.isFinite(end)) {
    const scheduler = worthOf(queued, sampler, "scheduler");
    return { from: cut(start, scheduler), to: cut(end, scheduler) };
  }
  const splits = splitsAbove(queued, sampler);
  const scheduler = splits.at(-1)?.scheduler;
  for (const { slot, step } of splits.filter((split) => steps && Number.isFinite(split.step))) {
    part[slot === 0 ? "to" : "from"] = cut(step, scheduler);
  }
  return part;
}

/** The nodes that split a sampler's schedule, the last with what makes it. */
function splitsAbove(queued, sampler) {
  const found = [];
  let [name] = wiredOf(queued, sampler, "SIGMAS");
  let end = name ? sourceOf(queued, sampler, name) : null;
  for (let i = 0; end && i < MOST; i++) {
    const { type, inputs } = queued.get(end.id);
    if (type === "SplitSigmas") {
      found.push({ slot: end.slot, step: worthOf(queued, end.id, "step") });
    }
    name = type === EDIT_SCHEDULE && "part" in inputs ? "part" : wiredOf(queued, end.id, "SIGMAS")[0];
    if (!name && found.length) {
      found.at(-1).scheduler = worthOf(queued, end.id, "scheduler");
    }
    end = name ? sourceOf(queued, end.id, name) : null;
  }
  return found;
}

/**
 * The share of the model's time that is over after so many steps of one of the host's
 * schedulers (`comfy/samplers.py`); those that no formula of time tells count as equal steps.
 */
export function shareAt(scheduler, step, steps) {
  const share = Math.min(1, Math.max(0, step / steps));
  if (share === 0 || share === 1) {
    return share;
  }
  switch (scheduler) {
    case "normal":
      return Math.min(1, step / (steps - 1));
    case "ddim_uniform":
      return Math.min(1, 1 - ddimTime(step, steps));
    case "beta":
      return 1 - betaQuantile(1 - share, 0.6, 0.6);
    case "karras":
    case "exponential":
      return 1 - timeOf(sigmaOfSd, spaced(scheduler, step / (steps - 1)));
    default:
      return share;
  }
}

/** The time of a step among every so many of 1000, from the second on. */
function ddimTime(step, steps) {
  const every = Math.max(1, Math.floor(1000 / steps));
  return Math.max(0, 2 + every * (Math.ceil(999 / every) - 1 - step)) / 1000;
}

/** Sigma at a share of the steps between Stable Diffusion's largest and smallest, whose models use these. */
function spaced(scheduler, share) {
  const rho = scheduler === "karras" ? 7 : 0;
  const [high, low] = [1, 1e-3].map(sigmaOfSd);
  const [a, b] = rho ? [high ** (1 / rho), low ** (1 / rho)] : [Math.log(high), Math.log(low)];
  const between = a + share * (b - a);
  return rho ? between ** rho : Math.exp(between);
}
