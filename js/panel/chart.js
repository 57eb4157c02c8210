// The canvas with a run's curves: sized to its place, drawn once a frame at most and only when something changed.

import { t } from "../text.js";
import { drawCurves, lookUp, plotArea, reach } from "./curves.js";
import { make, mark, say } from "./dom.js";
import { short, whole, wordsOf } from "./format.js";
import { isLive } from "./store.js";

/** {element, show(run, store), close()} */
export function makeChart() {
  const canvas = make("canvas", "canvas", { role: "img", tabIndex: 0 });
  const values = make("output", "values", { hidden: true });
  const place = make("div", "plot", {}, canvas, values);
  const distance = make("span", "key key-fidelity");
  const legend = make("figcaption", "legend", {},
    make("span", "key key-loss", {}, t("panel.loss")), distance, make("span", "muted", {}, t("panel.by_update")));
  const element = make("figure", "curves", {}, legend, place);
  const context = canvas.getContext("2d");
  let [run, store, at, frame] = [null, null, null, 0];

  function dirty() {
    frame ||= requestAnimationFrame(draw);
  }

  function draw() {
    frame = 0;
    const [width, height, ratio] = [place.clientWidth, place.clientHeight, devicePixelRatio || 1];
    if (!run || !width) {
      return;
    }
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const { loss, fidelity } = store;
    const area = plotArea(width, height, ratio);
    const to = reach(Math.max(loss.last, fidelity.last), run.updates, !isLive(run));
    loss.view(to, area.columns);
    fidelity.view(to, area.columns);
    const found = at === null ? null : lookUp(store, Math.min(area.columns - 1, Math.floor(at * area.columns)));
    drawCurves(context, area, { loss, fidelity, to, colours: colours(), at: found?.column ?? null, shown: store.picked });
    tell(found, area);
    mark(canvas, "aria-label", summary(run));
  }

  function colours() {
    const style = getComputedStyle(element);
    const of = (name) => style.getPropertyValue(`--fewstep-${name}`).trim();
    return { loss: of("loss"), fidelity: of("fidelity"), grid: of("line"), text: of("muted") };
  }

  function tell(found, area) {
    values.hidden = !found?.loss && !found?.fidelity;
    if (values.hidden) {
      return;
    }
    say(values, describe(found));
    const x = area.left + ((found.column + 0.5) / area.columns) * area.width;
    values.style.left = `${Math.max(0, Math.min(place.clientWidth - values.offsetWidth, x - values.offsetWidth / 2))}px`;
  }

  function point(event) {
    const area = plotArea(place.clientWidth, place.clientHeight);
    at = Math.max(0, Math.min(1, (event.clientX - canvas.getBoundingClientRect().left - area.left) / area.width));
    dirty();
  }

  function leave() {
    at = null;
    dirty();
  }

  function onKey(event) {
    const moves = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 };
    if (event.key === "Escape") {
      leave();
    }
    if (!(event.key in moves)) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    at = Math.max(0, Math.min(1, (at ?? 1) + moves[event.key]));
    dirty();
  }

  for (const name of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(name, point);
  }
  for (const name of ["pointerleave", "blur"]) {
    canvas.addEventListener(name, leave);
  }
  canvas.addEventListener("keydown", onKey);
  const sizes = new ResizeObserver(dirty);
  sizes.observe(place);
  const theme = new MutationObserver(dirty);        // a theme changes variables at the root
  for (const node of [document.documentElement, document.body]) {
    theme.observe(node, { attributes: true, attributeFilter: ["class", "style"] });
  }

  function show(newRun, newStore) {
    [run, store] = [newRun, newStore];
    say(distance, wordsOf(run, "distance"));
    distance.title = wordsOf(run, "distance_hint");
    element.hidden = !store.loss.length && !store.fidelity.length;
    dirty();
  }

  function close() {
    sizes.disconnect();
    theme.disconnect();
    cancelAnimationFrame(frame);
  }

  return { element, show, close };
}

function describe({ update, loss, fidelity }) {
  const parts = [t("panel.at.update", { update: whole(update) })];
  if (loss) {
    const range = loss.count > 1 && short(loss.low) !== short(loss.high) ? ` (${short(loss.low)} – ${short(loss.high)})` : "";
    parts.push(t("panel.at.loss", { value: short(loss.mean) + range }));
  }
  if (fidelity) {
    parts.push(t("panel.at.fidelity", { value: short(fidelity.value), update: whole(fidelity.update) }));
  }
  return parts.join("\n");
}

function summary(run) {
  const distance = wordsOf(run, "distance");
  return t("panel.chart", { done: whole(run.done), loss: short(run.loss), distance, fidelity: short(run.fidelity) });
}
