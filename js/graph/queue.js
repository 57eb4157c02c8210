// Queues parts of the graph, and prompts that the server has kept.

import { t } from "../text.js";
import { nodesWithin, pathTo } from "./walk.js";

/**
 * Queues these nodes of the user's graph with what they need, and no others. within:
 * the nodes of the subgraphs that they lie in; without it they are looked for.
 * Throws where the host refuses; it tells why by itself. Some frontends draw new
 * seeds for all of the graph then, also where nothing runs: those are put back.
 */
export async function queueNodes(app, nodes, within = null) {
  const paths = nodes.map((node) => (within ? [...within, node] : pathTo(app.graph, node) ?? [node]));
  await queueing(app);
  const putBack = noteDraws(widgetsOf(app.graph));
  let queued;
  try {
    queued = await app.queuePrompt(0, 1, paths.map(executionId));
  } finally {
    putBack();
  }
  if (queued === false) {
    throw new Error(t("graph.notQueued"));
  }
}

/** While the host queues something else: it would queue ours after that, and yet answer as if it refused. */
async function queueing(app) {
  for (let i = 0; app.processingQueue && i < 600; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/**
 * Watches what the host sets when it queues; the answer puts that back, but nothing
 * that the user has typed meanwhile. The host sets all widgets in one go, in or
 * after the widgets' own hooks: what differs at the end of that go is its own.
 */
export function noteDraws(widgets) {
  const drawn = new Map();        // widget -> [value before, what the host made of it]
  const hooks = [];
  let looking = false;
  const look = () => {
    if (looking) {
      return;
    }
    looking = true;
    const before = widgets.map((widget) => widget.value);
    queueMicrotask(() => {
      looking = false;
      widgets.forEach((widget, i) => {
        if (widget.value !== before[i]) {
          const first = drawn.get(widget);      // both hooks of a queueing may draw
          drawn.set(widget, [first && first[1] === before[i] ? first[0] : before[i], widget.value]);
        }
      });
    });
  };
  for (const widget of widgets) {
    for (const name of ["beforeQueued", "afterQueued"].filter((one) => typeof widget[one] === "function")) {
      const own = widget[name];
      const watched = function (...values) {
        look();
        return own.apply(this, values);
      };
      widget[name] = watched;
      hooks.push(() => {
        if (widget[name] === watched) {
          widget[name] = own;
        }
      });
    }
  }
  return () => {
    hooks.forEach((unhook) => unhook());
    for (const [widget, [before, made]] of drawn) {
      if (widget.value === made) {
        widget.value = before;
      }
    }
  };
}

/** The widgets with plain values, those in subgraphs too. */
function widgetsOf(graph) {
  const widgets = nodesWithin(graph).flatMap((node) => node.widgets ?? []);
  return widgets.filter(({ value }) => ["number", "string"].includes(typeof value));
}

/** A node's id as the server knows it: behind those of the subgraphs that it lies in. */
export const executionId = (path) => path.map(({ id }) => id).join(":");

/**
 * Queues a kept prompt: { prompt, workflow, node }. Answers the
 * server's id of it; throws an Error with the server's message.
 */
export async function requeue(app, api, stored) {
  const response = await api.fetchApi("/prompt", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      client_id: api.clientId,
      prompt: stored.prompt,
      extra_data: stored.workflow ? { extra_pnginfo: { workflow: stored.workflow } } : {},
      partial_execution_targets: [String(stored.node)],
    }),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(messageOf(answer) || `${response.status} ${response.statusText}`);
  }
  return answer.prompt_id;
}

/** What the server says of the nodes, else of the whole. */
function messageOf({ node_errors: nodes = {}, error }) {
  const errors = Object.values(nodes).flatMap((node) => node.errors ?? []);
  const told = errors.length ? errors : [error ?? ""];
  const words = (one) =>
    (typeof one === "string" ? one : [one.message, one.details].filter(Boolean).join(": "));
  return told.map(words).join("\n");
}
