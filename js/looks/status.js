// A place on a node for what it says: what is expected of it before it is queued, then what the server tells
// of it while it runs and when it has run. It has its height from the beginning, so no text makes a node grow
// over its neighbour; and a text goes to the node of the workflow that was queued, to no other of its id.

import { addStyles, make, say } from "../dom.js";
import { after } from "../graph/hooks.js";
import { allNodes } from "../graph/nodes.js";
import { isLoaded, pathTo } from "../graph/walk.js";
import { DISTIL, FIT, PAIRS, PROMPTS, RUN_EVENT, SAY_EVENT, TRAIN_ON_PAIRS } from "../names.js";
import { isLive } from "../panel/store.js";
import { watch } from "../plots/watch.js";
import { t } from "../text.js";
import { expect, forget, questionOf } from "./forecast.js";
import { know } from "./zero.js";

const LINES = { [DISTIL]: 6, [TRAIN_ON_PAIRS]: 6, [PAIRS]: 2, [PROMPTS]: 2, [FIT]: 2 };
const LINE = 15;      // pixels
const PADDING = 12;
const AROUND = 20;      // that the canvas leaves above and below what is on a node
const WIDGET = "fewstep_status";
const places = new WeakMap();      // node: what shows a text on it
const said = new Map();            // "workflow path": what was told last, for when it is opened again
const open = new Set();            // what watches the nodes that are there
const NAMELESS = "00000000-0000-0000-0000-000000000000";      // a graph that was cleared

/** Listens to what the server says of nodes. */
export function listen(app, api) {
  forgetAfter(api);
  api.addEventListener(SAY_EVENT, ({ detail }) => {
    if (!detail.workflow) {
      return;
    }
    const root = app.rootGraph ?? app.graph;
    const node = root.id === detail.workflow ? nodeAt(root, detail.node.split(":")) : null;
    if (detail.workflow !== NAMELESS) {
      said.set(`${detail.workflow} ${detail.node}`, detail);
    }
    places.get(node)?.(detail);
  });
}

/** A run that is over tells the next forecast more. */
function forgetAfter(api) {
  api.addEventListener(RUN_EVENT, ({ detail }) => {
    if (!isLive(detail.run)) {
      forget();
      open.forEach((watching) => watching.check(true));
    }
  });
}

/** The node of an execution id: the nodes of subgraphs that lead to it, and itself. */
function nodeAt(graph, [id, ...inner]) {
  const node = allNodes(graph).find((one) => String(one.id) === id) ?? null;
  return inner.length && node ? nodeAt(node.subgraph ?? { nodes: [] }, inner) : node;
}

/** Puts the place on a new node, if it is one that says something. */
export function statusOn(app, api, node) {
  const type = node.comfyClass ?? node.type;
  if (!LINES[type]) {
    return;
  }
  addStyles(new URL("../plots/plots.css", import.meta.url).href);
  const text = make("div", "nodeplot-status", { role: "status" });
  const element = make("div", "nodeplot", {}, text);
  const height = LINE * LINES[type] + PADDING;
  element.style.minHeight = `${height}px`;
  text.style.maxHeight = `${height - PADDING}px`;
  const tall = { getMinHeight: () => height + AROUND, getMaxHeight: () => height + AROUND };
  const options = { serialize: false, hideOnZoom: false, ...tall };
  node.addDOMWidget(WIDGET, WIDGET, element, options).serialize = false;

  let [expected, question, watching] = [{ values: {}, lines: [] }, null, null];
  let [told, used] = [null, {}];
  const show = (detail) => {
    told = detail ?? told ?? said.get(keyOf(app, node));
    used = { ...used, ...detail?.used };
    know(app, node, { ...expected.values, ...used });
    const lines = [told?.text, ...expected.lines].filter(Boolean);
    say(text, lines.length ? lines.join("\n") : t(`nodes.status.${type}`));
    element.title = text.textContent;
  };
  const begin = () => {
    watching ??= watch(element, () => questionOf(node, type), async (asked) => {
      question = asked;
      const answer = await expect(api, asked);
      if (question === asked) {
        [expected, used] = [answer, {}];
        show();
      }
    }, { exists: () => isLoaded(node), onGone: end });
    open.add(watching);
    show();
  };
  const end = () => {
    watching?.close();
    open.delete(watching);
    watching = null;
  };
  places.set(node, show);
  after(node, "onAdded", begin);
  after(node, "onRemoved", end);
  if (node.graph) {
    begin();
  }
}

function keyOf(app, node) {
  const root = app.rootGraph ?? app.graph;
  const path = node.graph ? pathTo(root, node) : null;
  return `${root?.id} ${(path ?? [node]).map((one) => one.id).join(":")}`;
}
