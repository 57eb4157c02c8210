// The sidebar tab "Fewstep": the runs, the selected one, and the button that begins one.

import { addStyles, button, make, say } from "../dom.js";
import { toast } from "../graph/change.js";
import { makeFewStep } from "../graph/oneclick.js";
import { t } from "../text.js";
import { makeDetails } from "./details.js";
import { makeList } from "./list.js";
import { makeStore } from "./store.js";

/** store: one that was made earlier, where events may come before there is a sidebar. */
export function registerPanel(app, api, store = makeStore(api)) {
  addStyles(new URL("./panel.css", import.meta.url).href);
  let view = null;
  store.ended = (run) => notice(app, run);
  api.addEventListener("reconnected", () => view && store.load());
  app.extensionManager.registerSidebarTab({
    id: "fewstep",
    icon: "pi pi-bolt",
    title: t("panel.title"),
    tooltip: t("panel.tooltip"),
    type: "custom",
    render(place) {                       // comes again whenever the host draws its sidebar
      if (view?.element.parentNode === place) {
        return;
      }
      view?.close();
      view = openPanel(app, api, store);
      place.style.height = "100%";        // else the panel grows with its content, and its list scrolls away
      place.replaceChildren(view.element);
      store.load();
    },
    destroy() {
      view?.close();
      view = null;
    },
  });
}

const SEVERITY = { finished: "success", stopped: "success", failed: "error", paused: "info" };

/** Tells of a run that has come to its end: on the page, and by the system where that is allowed. */
function notice(app, run) {
  const text = t(`panel.notice.${run.state}`, { name: run.name });
  toast(app, SEVERITY[run.state] ?? "info", t("panel.title"), text);
  if (document.hidden && globalThis.Notification?.permission === "granted") {
    new Notification(t("panel.title"), { body: text, tag: run.id });
  }
}

/** {element, close()}: one showing of the store. */
function openPanel(app, api, store) {
  const list = makeList(store.choose);
  const details = makeDetails(app, api, store);
  const problem = make("p", "message bad", { role: "status", "aria-live": "polite" });
  const empty = make("p", "empty", { hidden: true }, t("panel.empty"));
  const body = make("div", "body", {}, list.element, details.element);
  const begin = makeBegin(app, api, store);
  const element = make("div", "panel", {}, begin.element, problem, empty, body);
  element.addEventListener("keydown", (event) => {
    // these delete the selected nodes, also where a button of ours has the focus
    if (event.key === "Delete" || event.key === "Backspace") {
      event.stopPropagation();
    }
  });

  function show() {
    const run = store.run();
    const none = !store.runs.length;
    begin.show();
    say(problem, store.problem);
    empty.hidden = !none || !store.loaded || Boolean(store.problem);
    body.hidden = none;
    list.show(store.runs, store.selected);
    details.element.hidden = !run;
    if (run) {
      details.show(run);
    }
  }

  let frame = 0;
  const unwatch = store.watch(() => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      show();
    });
  });
  show();

  function close() {
    unwatch();
    cancelAnimationFrame(frame);
    list.close();
    details.close();
    element.remove();
  }

  return { element, close };
}

/** {element, show()}: the button, and what became of pressing it until the run is there. */
function makeBegin(app, api, store) {
  const message = make("p", "message", { role: "status", "aria-live": "polite" });
  const start = button(t("panel.make"), begin, "primary wide");
  let [busy, trouble] = [false, ""];

  async function begin() {
    if (busy) {
      return;
    }
    setBusy(true);
    trouble = "";
    store.expect(true);
    try {
      if (!(await makeFewStep(app, api))) {
        store.expect(false);
      }
    } catch (error) {
      trouble = error.message;
      store.expect(false);
    }
    setBusy(false);
  }

  function setBusy(yes) {
    busy = yes;
    start.setAttribute("aria-busy", yes);
    start.setAttribute("aria-disabled", yes);
    show();
  }

  function show() {
    say(message, trouble || (store.expected ? t(busy ? "panel.making" : "panel.made") : ""));
    message.classList.toggle("fewstep-bad", Boolean(trouble));
  }

  return { element: make("div", "begin", {}, start, message), show };
}
