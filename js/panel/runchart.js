// The chart of a run: its two curves, drawn once a frame at most and only when something changed, and what is
// told of the place that is pointed at.

import { reach } from "../charts/curve.js";
import { coloursOf, keyOf, makeSurface, moveOf } from "../charts/surface.js";
import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { drawCurves, lookUp, middleOf, plotArea } from "./curves.js";
import { short, whole, wordsOf } from "./format.js";
import { isLive } from "./store.js";

const MOVES = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 };      // shares of the chart

/** { element, show(run, store), close() } */
export function makeRunChart() {
  const canvas = make("canvas", "canvas", { role: "img", tabIndex: 0 });
  const values = make("output", "tip", { hidden: true });
  const place = make("div", "plot", {}, canvas, values);
  const distance = keyOf("", "fidelity");
  const kept = make("span", "muted kept");
  const legend = make("figcaption", "legend", {},
    keyOf(t("panel.loss"), "loss"), distance, kept, make("span", "muted", {}, t("panel.by_update")));
  const element = make("figure", "curves", {}, legend, place);
  const surface = makeSurface(place, canvas, draw);
  let [run, store, at] = [null, null, null];       // at: the share of the width that is pointed at

  function draw(context, width, height, ratio) {
    if (!run) {
      return;
    }
    const { loss, fidelity, picked, other } = store;
    const area = plotArea(width, height, ratio);
    const to = reach(Math.max(loss.last, fidelity.last), run.updates, !isLive(run));
    loss.view(to, area.columns);
    fidelity.view(to, area.columns);
    other.curve.view(to, area.columns);
    const column = Math.min(area.columns - 1, Math.floor(at * area.columns));
    const found = at === null ? null : lookUp(store, column);
    const colours = coloursOfCurves();
    const places = { at: found?.column ?? null, shown: picked, kept: run.kept };
    drawCurves(context, area, { loss, fidelity, to, colours, other: other.curve, ...places });
    tell(found, area);
    mark(canvas, "aria-label", summary(run));
  }

  function coloursOfCurves() {
    const { of } = coloursOf(element);
    return { loss: of("loss"), fidelity: of("fidelity"), grid: of("line"), text: of("muted") };
  }

  function tell(found, area) {
    values.hidden = !found?.loss && !found?.fidelity;
    if (values.hidden) {
      return;
    }
    say(values, describe(found));
    const left = middleOf(area, found.column) - values.offsetWidth / 2;
    values.style.left = `${Math.max(0, Math.min(place.clientWidth - values.offsetWidth, left))}px`;
  }

  function look(share) {
    at = share === null ? null : Math.max(0, Math.min(1, share));
    surface.dirty();
  }

  function point(event) {
    const { left, right } = plotArea(place.clientWidth, place.clientHeight);
    look((surface.pixel(event)[0] - left) / (right - left));
  }

  function onKey(event) {
    if (event.key === "Escape") {
      look(null);
    }
    const move = moveOf(event, MOVES);
    if (move !== undefined) {
      look((at ?? 1) + move);
    }
  }

  for (const name of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(name, point);
  }
  for (const name of ["pointerleave", "blur"]) {
    canvas.addEventListener(name, () => look(null));
  }
  canvas.addEventListener("keydown", onKey);
  surface.open();

  function show(newRun, newStore) {
    [run, store] = [newRun, newStore];
    say(distance, wordsOf(run, "distance"));
    say(kept, Number.isFinite(run.kept) ? t("panel.kept_mark", { update: whole(run.kept) }) : "");
    distance.title = wordsOf(run, "distance_hint");
    element.hidden = !store.loss.length && !store.fidelity.length;
    surface.dirty();
  }

  return { element, show, close: surface.close };
}

function describe({ update, loss, fidelity }) {
  const parts = [t("panel.at.update", { update: whole(update) })];
  if (loss) {
    const spreads = loss.count > 1 && short(loss.low) !== short(loss.high);
    const range = spreads ? ` (${short(loss.low)} – ${short(loss.high)})` : "";
    parts.push(t("panel.at.loss", { value: short(loss.mean) + range }));
  }
  if (fidelity) {
    parts.push(t("panel.at.fidelity", { value: short(fidelity.value), update: whole(fidelity.update) }));
  }
  return parts.join("\n");
}

function summary(run) {
  const distance = wordsOf(run, "distance");
  const [loss, fidelity] = [short(run.loss), short(run.fidelity)];
  return t("panel.chart", { done: whole(run.done), loss, distance, fidelity });
}
