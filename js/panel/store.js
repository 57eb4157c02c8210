// What the panel knows: the runs, and the curves of the selected
// one. Lives as long as the page; the tab only shows it.
//
// The snapshot (GET runs) is the truth, and events keep it fresh. What comes while a snapshot is on its way
// is newer than it, and is put on top of it.

import { Curve } from "../charts/curve.js";
import { GONE_EVENT, RUN_EVENT } from "../names.js";
import { ask } from "./routes.js";

/** Whether it is this server's, and whether it is under way here or in a process of the command line. */
export const isHere = (run) => run.state === "sampling" || run.state === "running";
export const isLive = (run) => isHere(run) || run.state === "elsewhere";
const AGAIN = 15e3;             // ms from one look to the next at runs of others, which send no events

/** The update whose picture is shown where the user chose none: the kept one, of a run that is over. */
export function usualPicture(run) {
  const kept = run.previews ?? [];
  return !isLive(run) && kept.includes(run.kept) ? run.kept : kept.at(-1) ?? null;
}

export function makeStore(api) {
  const watchers = new Set();
  const store = {
    runs: [], loaded: false, problem: "",     // newest first
    selected: null, chosen: false,            // an id; whether the user chose it
    expected: false,      // whether the user waits for a run to begin, to see it whatever was chosen
    acting: false,        // whether a button's action is under way
    picked: null,         // the update whose picture the user wants to see; null follows the newest
    loss: new Curve(), fidelity: new Curve(),
    ended: () => {},      // called with a run that has come to its end while the page was open
    other: { id: null, curve: new Curve() },      // the run that the selected one is compared with
  };
  let again = null;           // the next look
  let listing = 0;            // snapshots asked for, and
  let tracing = 0;            // curves asked for: only the last answer of each counts
  let early = null;           // runs from events that came while a snapshot was on its way
  let ahead = null;           // their points, while curves were

  const look = () => {
    again = null;
    store.load();
  };
  const changed = () => watchers.forEach((watch) => watch());

  store.watch = (watch) => {
    watchers.add(watch);
    return () => watchers.delete(watch);
  };

  store.run = () => store.runs.find((run) => run.id === store.selected) ?? null;

  store.load = async () => {
    const asked = ++listing;
    early = [];
    try {
      const { runs } = await ask(api, "runs");
      if (asked !== listing) {
        return;
      }
      store.runs = runs;
      store.problem = "";
    } catch (error) {
      if (asked !== listing) {
        return;
      }
      store.problem = error.message;
    }
    store.loaded = true;
    if (store.runs.some((run) => isLive(run) && !isHere(run))) {
      again ||= setTimeout(look, AGAIN);
    }
    early.forEach(put);
    early = null;
    select(store.run() ? store.selected : store.runs[0]?.id ?? null);
  };

  store.choose = (id) => {
    store.chosen = true;
    if (id !== store.selected) {
      select(id);
    }
  };

  store.expect = (yes) => {
    store.expected = yes;
    changed();
  };

  store.act = (yes) => {
    store.acting = yes;
    changed();
  };

  store.pick = (update) => {
    store.picked = update;
    changed();
  };

  /** The run to compare with, null for none. */
  store.compare = async (id) => {
    store.other.id = id;
    store.other.curve.replace([]);
    changed();
    const found = id === null ? null : await ask(api, `runs/${id}/curves`).catch(() => null);
    if (found && store.other.id === id) {
      store.other.curve.replace(found.fidelity);
      changed();
    }
  };

  store.otherRun = () => store.runs.find((run) => run.id === store.other.id) ?? null;

  store.drop = (id) => {
    const index = store.runs.findIndex((run) => run.id === id);
    if (index < 0) {
      return;
    }
    store.runs = store.runs.filter((run) => run.id !== id);
    if (id === store.other.id) {
      store.compare(null);
    }
    if (id === store.selected) {
      select(store.runs[Math.min(index, store.runs.length - 1)]?.id ?? null);
    } else {
      changed();
    }
  };

  function select(id) {
    if (id !== store.selected) {
      store.picked = null;
      store.other.id = null;
      store.other.curve.replace([]);
      store.loss.replace([]);
      store.fidelity.replace([]);
    }
    store.selected = id;
    changed();
    trace();
  }

  async function trace() {
    const asked = ++tracing;
    const id = store.selected;
    ahead = null;
    if (id === null || !watchers.size) {
      return;      // a closed tab asks when it opens
    }
    ahead = [];
    const found = await ask(api, `runs/${id}/curves`).catch(() => null);      // a run may have none
    if (asked !== tracing) {
      return;
    }
    if (found) {
      store.loss.replace(found.loss);
      store.fidelity.replace(found.fidelity);
      ahead.forEach(addPoints);
    }
    ahead = null;
    changed();
  }

  /** True when the run begins with it, or goes on. */
  function put(run) {
    const index = store.runs.findIndex((other) => other.id === run.id);
    const begins = isLive(run) && !(index >= 0 && isLive(store.runs[index]));
    if (index >= 0) {
      store.runs[index] = run;
    } else {
      const older = store.runs.findIndex((other) => other.started_at < run.started_at);
      store.runs.splice(older < 0 ? store.runs.length : older, 0, run);
    }
    return begins;
  }

  function addPoints({ loss, fidelity }) {
    store.loss.append(loss ?? []);
    store.fidelity.append(fidelity ?? []);
  }

  function onRun({ detail }) {
    early?.push(detail.run);
    const before = store.runs.find((run) => run.id === detail.run.id);
    const begins = put(detail.run);
    if (before && isLive(before) && !isLive(detail.run)) {
      store.ended(detail.run);
    }
    const isWanted = begins && (store.expected || !store.chosen);
    if (begins) {
      store.expected = false;
    }
    if (detail.run.id === store.selected) {
      addPoints(detail);
      ahead?.push(detail);
    } else if (isWanted) {
      select(detail.run.id);
    }
    changed();
  }

  function onStatus({ detail }) {
    if (store.expected && detail?.exec_info?.queue_remaining === 0) {
      store.expect(false);      // it was cancelled, or refused
    }
  }

  api.addEventListener(RUN_EVENT, onRun);
  api.addEventListener(GONE_EVENT, ({ detail }) => store.drop(detail.id));      // on another page, too
  api.addEventListener("status", onStatus);
  return store;
}
