// "Sample now": a picture by a run's LoRA, of a prompt of one's own, in as many steps as the LoRA is made
// for. Nothing in the user's own graph changes.

import { button, make, mark, say } from "../dom.js";
import { samplingGraph, takesText } from "../graph/ownprompt.js";
import { requeue } from "../graph/queue.js";
import { t } from "../text.js";
import { restores } from "./format.js";
import { fold } from "./fold.js";
import { ask } from "./routes.js";
import { isLive } from "./store.js";

const SEEDS = 2 ** 32;

/** {element, show(run)} */
export function makeSampleNow(app, api) {
  const text = make("textarea", "field", { rows: 2, placeholder: t("panel.sample.prompt") });
  mark(text, "aria-label", t("panel.sample.prompt"));
  const message = make("p", "message", { role: "status", "aria-live": "polite" });
  const pictures = make("div", "grid sampled");
  const start = button(t("panel.sample.start"), perform);
  const { element } = fold("sample", load, text, start, message, pictures);
  let [run, stored, busy] = [null, null, false];

  text.addEventListener("keydown", (event) => event.stopPropagation());

  async function load() {
    const asked = run.id;
    const found = stored ?? await ask(api, `runs/${asked}/prompt`).catch(() => null);
    if (asked === run.id) {
      stored = found;
      text.hidden = !stored || !takesText(stored);
    }
    return found;
  }

  async function perform() {
    if (busy) {
      return;
    }
    busy = true;
    mark(start, "aria-busy", true);
    message.classList.remove("fewstep-bad");
    say(message, t("panel.sample.working"));
    const asked = run;
    try {
      const found = await load();
      const seed = Math.floor(Math.random() * SEEDS);
      const own = text.hidden ? "" : text.value.trim();
      const graph = found && samplingGraph(found, asked.lora, own, seed);
      if (!graph) {
        throw new Error(t("panel.sample.impossible"));
      }
      const images = await picturesOf(api, await requeue(app, api, graph), graph.node);
      if (run.id === asked.id) {
        pictures.replaceChildren(...images.map((src) => make("img", "picture", { src, alt: text.value })));
        say(message, t("panel.sample.seed", { seed }));
      }
    } catch (error) {
      if (run.id === asked.id) {
        say(message, error.message);
        message.classList.add("fewstep-bad");
      }
    } finally {
      busy = false;
      mark(start, "aria-busy", false);
    }
  }

  return {
    element,
    show(newRun) {
      if (newRun.id !== run?.id) {
        stored = null;
        element.open = false;
        pictures.replaceChildren();
        say(message, "");
      }
      run = newRun;
      element.hidden = isLive(run) || restores(run) || !run.lora || !run.resumable;
    },
  };
}

const addressOf = (api, image) => api.apiURL(`/view?${new URLSearchParams(image)}`);

/**
 * The addresses of the pictures that a node of a queued prompt shows, once they are there. Throws where it
 * fails, is stopped, or is taken out of the queue.
 */
function picturesOf(api, id, node) {
  return new Promise((resolve, reject) => {
    const events = {
      executed, execution_error: failed, execution_interrupted: failed, execution_success: none,
      status: look, reconnected: look,
    };
    const end = (finish, value) => {
      Object.entries(events).forEach(([name, handler]) => api.removeEventListener(name, handler));
      finish(value);
    };
    const isOurs = ({ detail }) => detail?.prompt_id === id;
    function show(output) {
      if (output?.images) {
        end(resolve, output.images.map((image) => addressOf(api, image)));
      }
    }
    function executed(event) {
      if (isOurs(event) && String(event.detail.node) === node) {
        show(event.detail.output);
      }
    }
    function failed(event) {
      if (isOurs(event)) {
        end(reject, new Error(event.detail.exception_message ?? t("panel.sample.cancelled")));
      }
    }
    function none(event) {
      if (isOurs(event)) {
        end(reject, new Error(t("panel.sample.impossible")));
      }
    }
    /** Nothing is told of a job that is taken out of the queue, nor of what ended while the page was away. */
    async function look() {
      const { waiting, outputs } = await standing(api, id);
      if (!waiting) {
        show(outputs?.[node]);
        end(reject, new Error(t("panel.sample.cancelled")));
      }
    }
    Object.entries(events).forEach(([name, handler]) => api.addEventListener(name, handler));
  });
}

/** { waiting, outputs }: whether a job is still to end, or that can't be told; what its nodes gave. */
async function standing(api, id) {
  const read = async (path) => {
    const reply = await api.fetchApi(path);
    return reply.ok ? reply.json() : Promise.reject(new Error(reply.statusText));
  };
  try {
    const { queue_running: running, queue_pending: pending } = await read("/queue");
    if ([...running, ...pending].some((job) => job[1] === id)) {
      return { waiting: true };
    }
    return { waiting: false, outputs: (await read(`/history/${id}`))[id]?.outputs };
  } catch {
    return { waiting: true };
  }
}
