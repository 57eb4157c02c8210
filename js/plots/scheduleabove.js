// Which schedule feeds a node, read from the graph above it as it stands, and the noise levels that come of
// it. As in modelabove.js, a schedule is a small plain object:
//
//   { grid: name, steps, denoise, shift, options, model }    of the widgets of FewstepSchedule
//   { points, steps, denoise, model }                        of those of FewstepDrawSchedule
//
// with `guessed` where the node above is not one of ours. within: see graph/walk.js.

import { inputOf } from "../graph/nodes.js";
import { origin, valueOf } from "../graph/walk.js";
import { drawnGrid, readPoints } from "../maths/drawn.js";
import { grid } from "../maths/grids.js";
import { modelFrom } from "../maths/models.js";
import { DRAW_SCHEDULE, SCHEDULE } from "../names.js";
import { ACROSS, modelAbove, tables } from "./modelabove.js";

const USUAL = 8;              // steps where nothing tells how many
const MOST_STEPS = 1000;
const OPTION = "schedule.";   // how the names of widgets begin that a choice of FewstepSchedule brings

/**
 * The schedule that the widgets of a FewstepSchedule or FewstepDrawSchedule ask for; null for other nodes.
 */
export function scheduleOf(api, node, within = []) {
  const value = (name) => valueOf(node, name, within);
  const shared = { steps: count(value("steps")), denoise: Number(value("denoise") ?? 1) };
  if (node.type === DRAW_SCHEDULE) {
    const points = readPoints(value("points"));
    return points ? { ...shared, points, model: modelAbove(api, node, within) } : null;
  }
  if (node.type !== SCHEDULE) {
    return null;
  }
  return {
    ...shared,
    grid: value("schedule"),
    shift: Number(value("shift") ?? 1),
    options: optionsOf(node, value),
    model: modelAbove(api, node, within),
  };
}

function optionsOf(node, value) {
  const names = (node.widgets ?? []).map(({ name }) => name).filter((name) => name.startsWith(OPTION));
  return Object.fromEntries(names.map((name) => [name.slice(OPTION.length), value(name)]));
}

/**
 * The schedule that feeds a node: one of ours as it is, of
 * another node the uniform one of as many steps (`guessed`).
 */
export function sigmasAbove(api, node, within = []) {
  const above = origin(node, inputOf(node, "sigmas"), { ...ACROSS, within });
  const ours = above ? scheduleOf(api, above.node, above.within) : null;
  if (ours) {
    return ours;
  }
  const guider = origin(node, inputOf(node, "guider"), { ...ACROSS, within });
  const steps = above ? valueOf(above.node, "steps", above.within) : undefined;
  return {
    grid: "uniform",
    steps: count(steps ?? USUAL),
    denoise: 1,
    shift: 1,
    options: {},
    model: guider ? modelAbove(api, guider.node, guider.within) : modelAbove(api, node, within),
    guessed: true,
  };
}

/** A number of steps; of a list of them, which Compare and Fit take, the most. */
function count(value) {
  const most = Math.max(...String(value).split(",").map(Number));
  return Math.min(Math.max(Math.round(most) || 1, 1), MOST_STEPS);
}

/** { sigmas, model }: the noise levels of a schedule, and the model that they are of. */
export function realise(schedule) {
  const { table } = schedule.model;
  const model = modelFrom(table ? { table: tables.get(table) } : schedule.model);
  const { steps, denoise, shift, options } = schedule;
  const sigmas = schedule.points ? drawnGrid(schedule.points, steps, model, denoise)
    : grid(schedule.grid, steps, model, { denoise, shift, ...options });
  return { sigmas, model };
}
