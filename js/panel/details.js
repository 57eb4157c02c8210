// The selected run: what it is, how far, its numbers, what can be done with it, its curves and its pictures.

import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { makeActions } from "./actions.js";
import {
  byDistribution, gained, judged, memory, modelName, percent as inPercent, pointOf, range, recipe, short,
  timeLeft, when, whole, word, wordsOf,
} from "./format.js";
import { makeMore } from "./more.js";
import { makePreviews } from "./previews.js";
import { makeRunChart } from "./runchart.js";
import { isLive } from "./store.js";

/** {element, show(run, store), close()} */
export function makeDetails(app, api, store) {
  const name = make("h3", "name", { tabIndex: -1 });
  const state = make("span", "chip");
  const what = make("p", "muted about");
  const model = make("p", "muted about");
  const weights = make("p", "muted about");
  const progress = makeProgress();
  const facts = makeFacts();
  const trouble = make("p", "trouble", { hidden: true });
  const verdict = make("p", "verdict", { hidden: true });
  const actions = makeActions(app, api, store, () => name.focus());
  const chart = makeRunChart();
  const previews = makePreviews(api);
  const more = makeMore(app, api, store);
  const element = make("section", "details", { "aria-label": t("panel.details") },
    make("header", "head", {}, name, state), what, model, weights, progress.element, trouble, verdict,
    actions.element, facts.element, chart.element, previews.element, more.element);

  function show(run) {
    element.dataset.state = run.state === "finished" && !gained(run) ? "no-gain" : run.state;
    say(name, run.name);
    say(state, word("states", run.state));
    say(what, recipe(run));
    say(model, modelName(run));
    say(weights, run.weights ?? "");
    model.title = run.model ?? "";
    progress.show(run);
    facts.show(run, store);
    trouble.hidden = !run.error;
    say(trouble, run.error ?? "");
    judge(verdict, run);
    actions.show(run);
    chart.show(run, store);
    previews.show(run, store);
    more.show(run);
  }

  return { element, show, close: chart.close };
}

function makeProgress() {
  const bar = make("div", "bar-fill");
  const stage = make("span");
  const left = make("span", "muted");
  const share = make("span", "number muted");
  const track = make("div", "bar", { role: "progressbar", "aria-label": t("panel.progress") }, bar);
  const element = make("div", "progress", {},
    make("div", "pair", {}, stage, share), track, make("div", "pair", {}, left));
  return {
    element,
    show(run) {
      const part = run.total ? Math.min(1, run.step / run.total) : 0;
      const live = isLive(run);
      const saved = when(run.saved_at ?? run.started_at);
      say(stage, live ? word("stages", run.stage) : t("panel.saved", { when: saved }));
      say(share, t("panel.whole_run", { percent: percent(part) }));
      say(left, live ? timeLeft(run.seconds_left) : "");
      mark(track, "aria-valuenow", Math.floor(100 * part));
      mark(track, "aria-valuetext", `${share.textContent} ${left.textContent}`.trim());
      bar.style.transform = `scaleX(${part})`;
    },
  };
}

/** What came of a run that is over, in a sentence: nearer to what it learns from than at its start or not. */
function judge(element, run) {
  const { best, before, apart } = judged(run);
  element.hidden = isLive(run) || !Number.isFinite(best) || !Number.isFinite(before);
  if (element.hidden) {
    return;
  }
  const start = t(run.warmed ? "panel.start.lora" : "panel.start.untrained");
  const values = { start, best: short(best), before: short(before), update: whole(run.kept) };
  if (!apart) {
    say(element, wordsOf(run, "alike", values));
  } else if (gained(run)) {
    // a distance of distributions may be 0 or below, of which nothing is a share
    const share = byDistribution(run) ? null : Math.round(100 * (1 - best / before));
    say(element, wordsOf(run, "gain", { ...values, percent: share }));
  } else {
    say(element, wordsOf(run, "none", values));
  }
  element.classList.toggle("fewstep-bad", !gained(run));
}

const percent = (part) => `${Math.floor(100 * part)} %`;

/** Name -> value in words, or "" for a number that this run does not have. */
export const FACTS = {
  updates: (run) => t("panel.step", { step: whole(run.done), total: whole(run.updates) }),
  fidelity: (run) => (Number.isFinite(run.best) ? short(run.best) : ""),
  before: (run) => (Number.isFinite(run.before) ? short(run.before) : ""),
  distance: (run) => (pointOf(run, "distance") ? range(pointOf(run, "distance")) : ""),
  diversity: (run) => (pointOf(run, "diversity") ? range(pointOf(run, "diversity"), inPercent) : ""),
  gap: (run) => (Number.isFinite(run.gap) ? inPercent(run.gap) : ""),
  cosine: (run) => (Number.isFinite(run.cosine) ? run.cosine.toFixed(2) : ""),
  speed: (run) => (Number.isFinite(run.samples_per_second) ? short(run.samples_per_second) : ""),
  memory: (run) => (Number.isFinite(run.memory) ? memory(run.memory) : ""),
  skipped: (run) => (run.skipped ? whole(run.skipped) : ""),
  lora: (run) => run.lora ?? "",
};

function makeFacts() {
  const element = make("dl", "facts");
  const cells = Object.entries(FACTS).map(([key, read]) => {
    const value = make("dd", "number");
    const term = make("dt", "", {}, key === "fidelity" ? "" : t(`panel.facts.${key}`));
    const title = key === "fidelity" ? "" : t(`panel.hints.${key}`);
    const cell = make("div", `fact fact-${key}`, { title }, term, value);
    element.append(cell);
    return { cell, value, read };
  });
  const [fidelity, distribution] = ["fidelity", "distance"].map((key) =>
    element.querySelector(`.fewstep-fact-${key}`));
  return {
    element,
    show(run, store) {
      for (const { cell, value, read } of cells) {
        say(value, read(run, store));
        cell.hidden = !value.textContent;
      }
      fidelity.title = wordsOf(run, "best");
      say(fidelity.querySelector("dt"), wordsOf(run, "best_word"));
      fidelity.classList.toggle("fewstep-bad", !gained(run) && !byDistribution(run));
      distribution.classList.toggle("fewstep-bad", !gained(run) && byDistribution(run));
    },
  };
}
