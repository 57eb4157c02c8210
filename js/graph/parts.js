// The part of the way from noise to picture that a sampler takes, as SIGMAS: a few-step schedule is cut to it,
// so that a second pass begins where it did, and one of two models hands on at the noise level that it did.

import { add, wireLike } from "./change.js";
import { sourceOf, wiredOf, worthOf } from "./queued.js";

const WHOLE = 10000;      // what the host writes for "to the end"

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
