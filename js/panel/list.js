// The list of runs: a listbox that makes only the rows that
// are in sight, so that a thousand runs open as fast as ten.

import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { about, gained, timeLeft, when, word } from "./format.js";
import { isLive } from "./store.js";

const ROW = 46;           // pixels
const SPARE = 2;          // rows beyond each edge
const UNKNOWN = 400;      // pixels of a list that is not laid out yet

/** {element, show(runs, selected), close()}; onChoose(id) */
export function makeList(onChoose) {
  const rail = make("div", "rail", { role: "presentation" });
  const element = make("div", "list", { role: "listbox", tabIndex: 0, "aria-label": t("panel.runs") }, rail);
  element.style.setProperty("--fewstep-row-height", `${ROW}px`);
  const rows = [];
  let [runs, selected] = [[], null];

  function draw() {
    const first = Math.max(0, Math.floor(element.scrollTop / ROW) - SPARE);
    const inSight = Math.ceil((element.clientHeight || UNKNOWN) / ROW);
    const count = Math.min(runs.length - first, inSight + 2 * SPARE + 1);
    while (rows.length < count) {
      rows.push(makeRow());
      rail.append(rows.at(-1).element);
    }
    const used = new Set();
    for (let index = first; index < first + count; index++) {
      const row = rows[index % rows.length];
      used.add(row);
      row.show(runs[index], index, runs.length, runs[index].id === selected);
    }
    for (const row of rows) {
      row.element.hidden = !used.has(row);
    }
  }

  function reveal(index) {
    const top = index * ROW;
    if (top < element.scrollTop) {
      element.scrollTop = top;
    } else if (top + ROW > element.scrollTop + element.clientHeight) {
      element.scrollTop = top + ROW - element.clientHeight;
    }
  }

  function onKey(event) {
    const page = Math.max(1, Math.floor(element.clientHeight / ROW) - 1);
    const all = runs.length;
    const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -all, End: all };
    if (!(event.key in moves) || !runs.length) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();                  // the canvas listens to arrows too
    const index = runs.findIndex((run) => run.id === selected) + moves[event.key];
    const next = Math.max(0, Math.min(runs.length - 1, index));
    reveal(next);
    onChoose(runs[next].id);
  }

  element.addEventListener("scroll", draw, { passive: true });
  element.addEventListener("keydown", onKey);
  element.addEventListener("click", (event) => {
    const row = event.target.closest("[data-run]");
    if (row) {
      onChoose(row.dataset.run);
    }
  });
  const sizes = new ResizeObserver(draw);
  sizes.observe(element);

  function show(newRuns, newSelected) {
    [runs, selected] = [newRuns, newSelected];
    rail.style.height = `${runs.length * ROW}px`;
    if (runs.some((run) => run.id === selected)) {
      mark(element, "aria-activedescendant", optionId(selected));
    } else {
      element.removeAttribute("aria-activedescendant");
    }
    draw();
  }

  return { element, show, close: () => sizes.disconnect() };
}

const optionId = (id) => `fewstep-run-${id}`;

function makeRow() {
  const name = make("span", "row-name");
  const state = make("span", "row-state");
  const what = make("span", "row-about");
  const time = make("span", "row-time");
  const share = make("span", "row-share");
  const element = make("div", "row", { role: "option" }, make("span", "dot"), name, state, what, time, share);
  return {
    element,
    show(run, index, count, selected) {
      element.id = optionId(run.id);
      element.dataset.run = run.id;
      element.dataset.state = run.state === "finished" && !gained(run) ? "no-gain" : run.state;
      element.style.transform = `translateY(${index * ROW}px)`;
      mark(element, "aria-selected", selected);
      mark(element, "aria-posinset", index + 1);
      mark(element, "aria-setsize", count);
      say(name, run.name);
      say(state, word("states", element.dataset.state));
      say(what, about(run));
      what.title = what.textContent;
      say(time, isLive(run) ? timeLeft(run.seconds_left) : when(run.saved_at ?? run.started_at));
      share.hidden = !isLive(run) || !run.total;
      if (!share.hidden) {
        share.style.transform = `scaleX(${run.step / run.total})`;
      }
    },
  };
}
