// Where nodes lie: new ones on no other, in columns, in a
// frame, and in the view. A box is [x, y, width, height].

import { drawn } from "./change.js";
import { allNodes } from "./nodes.js";

const TITLE = 30;              // height of a node's title, above its position
const GAP = 40;                // between nodes
const VIEW = [1100, 750];      // shown at least, so that a single node does not fill the screen
// where the host lets the canvas be seen, between its sidebars and panels; pixels of it not worth moving to
const OPEN = ".graph-canvas-panel";
const NARROW = 200;

/** Of a node with its title, or of a group. */
function boxOf(node) {
  if (node instanceof LGraphGroup) {
    return [...node.pos, ...node.size];
  }
  if (node.flags?.collapsed) {
    return [node.pos[0], node.pos[1] - TITLE, node._collapsed_width || 200, TITLE];
  }
  return [node.pos[0], node.pos[1] - TITLE, node.size[0], node.size[1] + TITLE];
}

/** The box around boxes. */
export function around(boxes) {
  const left = Math.min(...boxes.map((box) => box[0]));
  const top = Math.min(...boxes.map((box) => box[1]));
  const right = Math.max(...boxes.map((box) => box[0] + box[2]));
  const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
  return [left, top, right - left, bottom - top];
}

/** The box around all the nodes and groups of a graph, but these nodes. */
export function boxOfAll(graph, but = []) {
  const others = allNodes(graph).filter((node) => !but.includes(node));
  return around([...others, ...(graph.groups ?? graph._groups)].map(boxOf));
}

/** Where a node lies on no other, as near to a position as can be. */
export function freePlace(graph, node, wanted) {
  const [, , width, height] = boxOf(node);
  const taken = allNodes(graph).filter((other) => other !== node).map(boxOf);
  const free = (x, y) => !taken.some((box) => near(box, [x, y - TITLE, width, height]));
  for (let ring = 0; ring < 100; ring++) {
    const places = [];
    for (let i = -ring; i <= ring; i++) {
      places.push([i, -ring], [i, ring], [-ring, i], [ring, i]);
    }
    const [x, y] = wanted;
    const place = places.map(([i, j]) => [x + i * GAP, y + j * GAP]).find((one) => free(...one));
    if (place) {
      return place;
    }
  }
  const all = around(taken);
  return [all[0], all[1] + all[3] + TITLE + GAP];
}

/** Whether two boxes have less than half a gap between them. */
function near([x, y, width, height], [left, top, wide, high]) {
  return left < x + width + GAP / 2 && x < left + wide + GAP / 2
    && top < y + height + GAP / 2 && y < top + high + GAP / 2;
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

/**
 * Selects nodes and moves the view to them; not before they are drawn, as the host measures their slots then.
 */
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
  const scale = Math.min(
    free.width / Math.max(width + 2 * GAP, VIEW[0]),
    free.height / Math.max(height + 2 * GAP, VIEW[1]),
    1,
  );
  const middle = (side, length) => whole[side] - free[side] + (whole[length] - free[length]) / 2;
  const [wide, high] = [whole.width / scale, whole.height / scale];
  return [
    x + (width - wide) / 2 + middle("left", "width") / scale,
    y + (height - high) / 2 + middle("top", "height") / scale,
    wide,
    high,
  ];
}
