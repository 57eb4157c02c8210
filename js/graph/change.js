// Changes the user's graph: each change is one step of undo, new nodes lie on nothing, and the view goes to them.

import { t } from "../text.js";
import { graphOf, inputOf, linkInto } from "./find.js";

const TITLE = 30;       // height of a node's title, above its position
const GAP = 40;
const VIEW = [1100, 750];      // shown at least, so that a single node does not fill the screen
const OPEN = ".graph-canvas-panel";      // where the host lets the canvas be seen, between its sidebars and panels
const NARROW = 200;     // pixels of it that are not worth moving to
const ALWAYS = 0;
const MUTED = 2;

/** Shows the graph and calls work() in one step of undo; answers what it answers. */
export async function change(app, graph, work) {
  if (graphOf(app) !== graph) {
    app.canvas.setGraph(graph);
  }
  app.canvas.emitBeforeChange();
  try {
    return await work();
  } finally {
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
  }
}

/** When new nodes have been drawn, and so have their sizes. */
export function drawn() {
  const frame = () => new Promise((resolve) => {
    requestAnimationFrame(resolve);
    setTimeout(resolve, 100);       // a hidden page draws no frames
  });
  return frame().then(frame).then(frame);
}

/** A new node of that type at a position, with those widgets' values where they are not undefined. */
export function add(graph, type, { pos = [0, 0], values = {} } = {}) {
  const node = LiteGraph.createNode(type);
  if (!node) {
    throw new Error(t("graph.noNode", { type }));
  }
  const usual = (node.widgets ?? []).map((widget) => widget.value);
  node.pos = pos;
  graph.add(node);
  // set all: after an undo the host gives a new node the widgets' values of an old one that had its number
  (node.widgets ?? []).forEach((widget, i) => {
    widget.value = values[widget.name] ?? usual[i];
  });
  return node;
}

/** Wires an end, or nothing, to the named input. */
export function wire(end, to, name) {
  const into = inputOf(to, name);
  if (end && into >= 0) {
    end.node.connect(end.slot, to, into);
  }
}

/** Wires the named input to what another node's input is wired to, also where that lies outside of a subgraph. */
export function wireLike(other, otherName, to, name) {
  const graph = to.graph;
  const into = inputOf(to, name);
  const link = linkInto(other, inputOf(other, otherName));
  if (!link || into < 0) {
    return;
  }
  const from = graph.getNodeById(link.origin_id);
  if (from) {
    from.connect(link.origin_slot, to, into, link.parentId);
  } else {
    graph.inputNode?.slots[link.origin_slot]?.connect(to.inputs[into], to, link.parentId);
  }
}

/** Hands what an output feeds to another node's output. */
export function takeOver(old, oldSlot, node, slot) {
  const graph = node.graph;
  for (const link of linksOf(graph)) {
    if (String(link.origin_id) !== String(old.id) || link.origin_slot !== oldSlot) {
      continue;
    }
    const to = graph.getNodeById(link.target_id);
    if (to) {
      node.connect(slot, to, link.target_slot, link.parentId);
    } else {
      graph.outputNode?.slots[link.target_slot]?.connect(node.outputs[slot], node, link.parentId);
    }
  }
}

function linksOf(graph) {
  const links = graph.links ?? graph._links;
  return [...(links instanceof Map ? links.values() : Object.values(links))].filter(Boolean);
}

/** The nodes that can't run without that one. */
export function dependants(node) {
  const found = new Set([node]);
  for (const one of found) {      // grows while it is walked
    for (const link of linksOf(node.graph)) {
      const to = String(link.origin_id) === String(one.id) && node.graph.getNodeById(link.target_id);
      if (to) {
        found.add(to);
      }
    }
  }
  found.delete(node);
  return [...found];
}

/** Mutes nodes, or takes the muting off; bypassed ones stay what they are. */
export function setMuted(nodes, muted) {
  for (const node of nodes.filter((one) => one.mode === (muted ? ALWAYS : MUTED))) {
    node.mode = muted ? MUTED : ALWAYS;
  }
}

// ---- places: a box is [x, y, width, height] -------------------------------------------------------------------------------------

/** Of a node with its title, or of a group. */
export function boxOf(node) {
  if (node instanceof LGraphGroup) {
    return [...node.pos, ...node.size];
  }
  if (node.flags?.collapsed) {
    return [node.pos[0], node.pos[1] - TITLE, node._collapsed_width || 200, TITLE];
  }
  return [node.pos[0], node.pos[1] - TITLE, node.size[0], node.size[1] + TITLE];
}

export function around(boxes) {
  const left = Math.min(...boxes.map((box) => box[0]));
  const top = Math.min(...boxes.map((box) => box[1]));
  const right = Math.max(...boxes.map((box) => box[0] + box[2]));
  const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
  return [left, top, right - left, bottom - top];
}

/** Where a node lies on no other, as near to a position as can be. */
export function freePlace(graph, node, near) {
  const [, , width, height] = boxOf(node);
  const taken = (graph.nodes ?? graph._nodes).filter((other) => other !== node).map(boxOf);
  const free = (x, y) => !taken.some((box) => x < box[0] + box[2] + GAP / 2 && box[0] < x + width + GAP / 2
    && y - TITLE < box[1] + box[3] + GAP / 2 && box[1] < y - TITLE + height + GAP / 2);
  for (let ring = 0; ring < 100; ring++) {
    const places = [];
    for (let i = -ring; i <= ring; i++) {
      places.push([i, -ring], [i, ring], [-ring, i], [ring, i]);
    }
    const place = places.map(([i, j]) => [near[0] + i * GAP, near[1] + j * GAP]).find(([x, y]) => free(x, y));
    if (place) {
      return place;
    }
  }
  const all = around(taken);
  return [all[0], all[1] + all[3] + TITLE + GAP];
}

/** Columns of nodes from a position on, tops in line. */
export function arrange(columns, [left, top]) {
  let x = left;
  for (const column of columns.filter((nodes) => nodes.length)) {
    let y = top;
    for (const node of column) {
      node.pos = [x, y];
      y += node.size[1] + TITLE + GAP / 2;
    }
    x += Math.max(...column.map((node) => node.size[0])) + GAP;
  }
}

/** A titled frame around nodes, with room below for what a run tells on them. */
export function frame(graph, title, nodes, padding = 20, below = 60) {
  const [x, y, width, height] = around(nodes.map(boxOf));
  const group = new LGraphGroup(title);
  const head = group.titleHeight ?? 34;
  graph.add(group);
  group.pos = [x - padding, y - padding - head];
  group.size = [width + 2 * padding, height + 2 * padding + head + below];
  group.recomputeInsideNodes();
  return group;
}

/** Selects nodes and moves the view to them; not before they are drawn, as the host measures their slots then. */
export async function show(app, nodes) {
  await drawn();
  app.canvas.deselectAll();
  app.canvas.selectItems(nodes);
  if (app.canvas.animateToBounds) {
    app.canvas.animateToBounds(viewOf(app.canvas.canvas, around(nodes.map(boxOf))), { zoom: 1 });
  } else {
    app.canvas.centerOnNode(nodes[0]);
  }
}

/** What the whole canvas has to show, so that a box lies in the middle of the part that no sidebar covers. */
function viewOf(canvas, [x, y, width, height]) {
  const whole = canvas.getBoundingClientRect();
  const open = document.querySelector(OPEN)?.getBoundingClientRect();
  const free = open?.width > NARROW && open.height > NARROW ? open : whole;
  const scale = Math.min(free.width / Math.max(width + 2 * GAP, VIEW[0]), free.height / Math.max(height + 2 * GAP, VIEW[1]), 1);
  const middle = (side, length) => whole[side] - free[side] + (whole[length] - free[length]) / 2;
  const [wide, high] = [whole.width / scale, whole.height / scale];
  return [
    x + (width - wide) / 2 + middle("left", "width") / scale, y + (height - high) / 2 + middle("top", "height") / scale, wide, high,
  ];
}
