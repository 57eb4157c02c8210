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
    stored ??= await ask(api, `runs/${asked}/prompt`).catch(() => null);
    if (asked === run.id) {
      text.hidden = !stored || !takesText(stored);
    }
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
      await load();
      const seed = Math.floor(Math.random() * SEEDS);
      const own = text.hidden ? "" : text.value.trim();
      const graph = stored && samplingGraph(stored, asked.lora, own, seed);
      if (!graph) {
        throw new Error(t("panel.sample.impossible"));
      }
      const images = await picturesOf(api, await requeue(app, api, graph));
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

/** The addresses of a queued prompt's pictures, once they are there. Throws where it fails or is stopped. */
function picturesOf(api, id) {
  return new Promise((resolve, reject) => {
    const events = {
      executed, execution_error: failed, execution_interrupted: failed, execution_success: none,
    };
    const end = (finish, value) => {
      Object.entries(events).forEach(([name, handler]) => api.removeEventListener(name, handler));
      finish(value);
    };
    const isOurs = ({ detail }) => detail?.prompt_id === id;
    function executed(event) {
      if (isOurs(event) && event.detail.output?.images) {
        end(resolve, event.detail.output.images.map((image) => addressOf(api, image)));
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
    Object.entries(events).forEach(([name, handler]) => api.addEventListener(name, handler));
  });
}
