// The buttons of a run. What went wrong, or what happens next, is said below them.

import { requeue } from "../graph/queue.js";
import { useIt } from "../graph/useit.js";
import { t } from "../text.js";
import { button, make } from "./dom.js";
import { ask, tell } from "./routes.js";
import { isLive } from "./store.js";

const goOn = async ({ app, api }, run) => requeue(app, api, await ask(api, `runs/${run.id}/prompt`));
const waits = (run) => run.resumable && (run.state === "paused" || run.state === "failed");

/** Which runs each button is for, and what it does. */
const ACTIONS = {
  resume: { for: waits, act: goOn },
  pause: { for: isLive, act: ({ api }, run) => tell(api, run.id, "pause") },
  stop: { for: (run) => isLive(run) && run.done > 0, act: ({ api }, run) => tell(api, run.id, "stop") },
  use: { for: (run) => Boolean(run.lora), act: ({ app, api }, run) => useIt(app, api, run) },
};
const MAIN = ["resume", "use"];       // the first of these that is there stands out, once a run is over

const DONE = { pause: "panel.done.pause", stop: "panel.done.stop", resume: "panel.done.resume", use: "panel.done.use" };

/** What a message is about: it goes when this changes. */
const stamp = (run) => `${run.id} ${run.state}`;

/** {element, show(run)}; onLost() takes the keyboard's focus when the button that had it goes. */
export function makeActions(app, api, store, onLost) {
  const message = make("p", "message", { role: "status", "aria-live": "polite" });
  const buttons = Object.fromEntries(Object.entries(ACTIONS).map(([name, { act }]) =>
    [name, button(t(`panel.buttons.${name}`), () => perform(name, act))]));
  const remove = button(t("panel.buttons.delete"), () => confirm(true), "quiet");
  const row = make("div", "buttons", {}, ...Object.values(buttons), remove);
  const keep = button(t("panel.buttons.keep"), () => confirm(false));
  const question = make("div", "confirm", { hidden: true, role: "group", "aria-label": t("panel.confirm") },
    make("p", "", {}, t("panel.confirm")),
    make("div", "buttons", {}, button(t("panel.buttons.delete"), forget, "danger"), keep));
  const element = make("div", "actions", {}, row, question, message);
  let [run, busy] = [null, false];

  async function perform(name, act) {
    if (busy) return;
    const asked = run;
    setBusy(true);
    inform("");
    try {
      await act({ app, api }, asked);
      if (stamp(run) === stamp(asked) && name in DONE) inform(t(DONE[name]));
    } catch (error) {
      if (run.id === asked.id) inform(error.message, true);
    } finally {
      setBusy(false);
    }
  }

  function setBusy(yes) {
    busy = yes;
    row.setAttribute("aria-busy", yes);
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
    message.textContent = text;
    message.classList.toggle("fewstep-bad", bad);
  }

  question.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    confirm(false);
  });

  function show(newRun) {
    const other = newRun.id !== run?.id;
    const before = run && stamp(run);
    run = newRun;
    if (before !== stamp(run)) inform("");
    if (other || isLive(run)) [question.hidden, row.hidden] = [true, false];
    for (const [name, node] of Object.entries(buttons)) reveal(node, ACTIONS[name].for(run));
    reveal(remove, !isLive(run));
    const main = isLive(run) ? null : MAIN.find((name) => ACTIONS[name].for(run));
    for (const name of MAIN) buttons[name].classList.toggle("fewstep-primary", name === main);
  }

  function reveal(node, yes) {
    if (!yes && node === document.activeElement) onLost();
    node.hidden = !yes;
  }

  return { element, show };
}
