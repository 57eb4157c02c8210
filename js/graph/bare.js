// A sampler's model without what guides it or skips work: what a few-step LoRA learns from, and goes onto.

import { copyNode } from "./bring.js";
import { endOfType } from "./nodes.js";
import { sameEnd, sourceOf, wiredOf } from "./queued.js";
import { isLeftOut } from "./suits.js";

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
export function bring({ queued, chain }, { model, again }, place, made) {
  let end = model;
  for (const id of again) {
    const before = chain[chain.findIndex((one) => one.id === id) - 1];
    const input = wiredOf(queued, id).find((name) => sameEnd(sourceOf(queued, id, name), before));
    end = endOfType(copyNode(queued, id, place, made, { [input]: end }), "MODEL");
  }
  return end;
}
