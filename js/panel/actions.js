// The buttons of a run. What went wrong, or what happens next, is said below them.

import { button, make, mark, say } from "../dom.js";
import { requeue } from "../graph/queue.js";
import { useIt } from "../graph/useit.js";
import { t } from "../text.js";
import { ask, tell } from "./routes.js";
import { isHere, isLive } from "./store.js";

const goOn = async ({ app, api }, run) => requeue(app, api, await ask(api, `runs/${run.id}/prompt`));
const waits = (run) => run.resumable && ["paused", "failed", "stopped"].includes(run.state);

/** Which runs each button is for, and what it does. */
const ACTIONS = {
  resume: { for: waits, act: goOn },
  pause: { for: isHere, act: ({ api }, run) => tell(api, run.id, "pause") },
  stop: { for: (run) => isHere(run) && run.done > 0, act: ({ api }, run) => tell(api, run.id, "stop") },
  use: { for: (run) => Boolean(run.lora), act: ({ app, api }, run) => useIt(app, api, run) },
};
const MAIN = ["resume", "use"];       // the first of these that is there stands out, once a run is over

const DONE = {
  pause: "panel.done.pause",
  stop: "panel.done.stop",
  resume: "panel.done.resume",
  use: "panel.done.use",
};

/** What a message is about: it goes when this changes. */
const stamp = (run) => `${run.id} ${run.state}`;

/** {element, show(run)}; onLost() takes the keyboard's focus when the button that had it goes. */
export function makeActions(app, api, store, onLost) {
  const message = make("p", "message", { role: "status", "aria-live": "polite" });
  const buttons = Object.fromEntries(Object.entries(ACTIONS).map(([name, { act }]) =>
    [name, button(t(`panel.buttons.${name}`), () => perform(name, act))]));
  const remove = button(t("panel.buttons.delete"), () => store.acting || confirm(true), "quiet");
  const row = make("div", "buttons", {}, ...Object.values(buttons), remove);
  const keep = button(t("panel.buttons.keep"), () => confirm(false));
  const question = make("div", "confirm", { hidden: true, role: "group", "aria-label": t("panel.confirm") },
    make("p", "", {}, t("panel.confirm")),
    make("div", "buttons", {}, button(t("panel.buttons.delete"), forget, "danger"), keep));
  const element = make("div", "actions", {}, row, question, message);
  let run = null;

  async function perform(name, act) {
    if (store.acting) {
      return;
    }
    const asked = run;
    store.act(true);
    showActing();
    try {
      const came = await act({ app, api }, asked);      // null where the user was asked and wants none
      if (stamp(run) === stamp(asked)) {
        inform(name in DONE && came !== null ? t(DONE[name]) : "");
      }
    } catch (error) {
      if (run.id === asked.id) {
        inform(error.message, true);
      }
      if (name !== "use") {
        store.load();      // it may be another run by now, or none: of another page, or of a server anew
      }
    } finally {
      store.act(false);
      showActing();
    }
  }

  /**
   * One action at a time, and it shows. Not `disabled`, with which a button would lose the keyboard's focus.
   */
  function showActing() {
    const { acting } = store;
    mark(row, "aria-busy", acting);
    for (const node of [...Object.values(buttons), remove]) {
      mark(node, "aria-disabled", acting);
    }
    if (acting) {
      inform(t("panel.working"));
    } else if (message.textContent === t("panel.working")) {
      inform("");
    }
  }

  async function forget() {
    const { id } = run;
    confirm(false);
    await perform("delete", async () => {
      await tell(api, id, "delete");
      onLost();
      store.drop(id);
    });
  }

  function confirm(asks) {
    question.hidden = !asks;
    row.hidden = asks;
    inform("");
    (asks ? keep : remove).focus();
  }

  function inform(text, bad = false) {
    say(message, text);
    message.classList.toggle("fewstep-bad", bad);
  }

  question.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") {
      return;
    }
    event.stopPropagation();
    confirm(false);
  });

  function show(newRun) {
    const other = newRun.id !== run?.id;
    const before = run && stamp(run);
    run = newRun;
    if (before !== stamp(run)) {
      inform("");
    }
    showActing();
    if (other || isLive(run)) {
      [question.hidden, row.hidden] = [true, false];
    }
    for (const [name, node] of Object.entries(buttons)) {
      reveal(node, ACTIONS[name].for(run));
    }
    reveal(remove, !isLive(run));
    const main = isLive(run) ? null : MAIN.find((name) => ACTIONS[name].for(run));
    for (const name of MAIN) {
      buttons[name].classList.toggle("fewstep-primary", name === main);
    }
  }

  function reveal(node, yes) {
    if (!yes && node === document.activeElement) {
      onLost();
    }
    node.hidden = !yes;
  }

  return { element, show };
}
