// A sampler's model without what guides it or skips work: what a few-step LoRA learns from, and goes onto.

import { endOfType } from "./nodes.js";
import { sameEnd, sourceOf, wiredOf, worthOf } from "./queued.js";
import { isLeftOut } from "./suits.js";
import { COPY_OF, copyNode } from "./wiring.js";

/** { model, again, leftOut }: the end before what is left out; ids of what patches it after; their ids. */
export function bareModel({ queued, chain }, goes = isLeftOut) {
  const ids = chain.map(({ id }) => id);
  const first = ids.findIndex((id, i) => i && goes(queued, id));
  const rest = first < 0 ? [] : ids.slice(first);
  return {
    model: chain[first < 0 ? chain.length - 1 : first - 1],
    again: rest.filter((id) => !goes(queued, id)),
    leftOut: rest.filter((id) => goes(queued, id)),
  };
}

/** The end of that model in a place: what patches it after what is left out is added once more. */
export function copyPatches({ queued, chain }, { model, again }, place, made) {
  let end = model;
  for (const id of again) {
    const input = patchedInput(queued, chain, id);
    end = endOfType(copyNode(queued, id, place, made, { [input]: end }), "MODEL");
  }
  return end;
}

/** The input of a node of the chain that gets the model before it. */
function patchedInput(queued, chain, id) {
  const before = chain[chain.findIndex((one) => one.id === id) - 1];
  return wiredOf(queued, id).find((name) => sameEnd(sourceOf(queued, id, name), before));
}

/** Whether an end of the queued graph is that model, through copies that are what their originals are. */
export function isBareModel(queued, { chain }, { model, again }, end) {
  let at = end;
  for (const id of [...again].reverse()) {
    const copy = at && queued.get(at.id);
    const input = patchedInput(queued, chain, id);
    if (copy?.node.properties?.[COPY_OF] !== id || !isAlike(queued, id, copy.id, input)) {
      return false;
    }
    at = sourceOf(queued, copy.id, input);
  }
  return sameEnd(at, model);
}

/** Whether two nodes get the same, but for one input. */
function isAlike(queued, id, other, but) {
  const names = [id, other].flatMap((one) => Object.keys(queued.get(one).inputs));
  const given = (one, name) => JSON.stringify(sourceOf(queued, one, name) ?? worthOf(queued, one, name));
  return names.every((name) => name === but || given(id, name) === given(other, name));
}
