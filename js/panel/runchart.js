// The chart of a run: its two curves, drawn once a frame at most and only when something changed, and what is
// told of the place that is pointed at.

import { Curve, reach } from "../charts/curve.js";
import { coloursOf, keyOf, makeSurface, moveOf } from "../charts/surface.js";
import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { drawCurves, lookUp, middleOf, plotArea } from "./curves.js";
import { inShares, percent, range, short, whole, wordsOf } from "./format.js";
import { isLive } from "./store.js";

const FACES = ["fidelity", "distance", "diversity"];      // of quality, one at a time to the right
const MOVES = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 };      // shares of the chart

/** { element, show(run, store), close() } */
export function makeRunChart() {
  const canvas = make("canvas", "canvas", { role: "img", tabIndex: 0 });
  const values = make("output", "tip", { hidden: true });
  const place = make("div", "plot", {}, canvas, values);
  const distance = keyOf("", "fidelity");
  const faces = makeFaces(choose);
  const kept = make("span", "muted kept");
  const legend = make("figcaption", "legend", {},
    keyOf(t("panel.loss"), "loss"), distance, faces.element, kept,
    make("span", "muted", {}, t("panel.by_update")));
  const element = make("figure", "curves", {}, legend, place);
  const surface = makeSurface(place, canvas, draw);
  let [run, store, at] = [null, null, null];       // at: the share of the width that is pointed at
  const face = { name: FACES[0], curve: new Curve() };

  function choose(name) {
    face.name = name;
    if (run) {
      show(run, store);
    }
  }

  /** What the right curve is: fidelity of the store, or another face of the run with its intervals. */
  function faceOf() {
    if (face.name === FACES[0]) {
      return { curve: store.fidelity, ends: [], other: store.other.curve };
    }
    const points = run[face.name] ?? [];
    face.curve.replace(points);
    const ends = points.map(([update, , low, high]) => [update, low, high]);
    return { curve: face.curve, ends, other: null };
  }

  function draw(context, width, height, ratio) {
    if (!run) {
      return;
    }
    const { loss, picked } = store;
    const { curve: fidelity, ends, other } = faceOf();
    const area = plotArea(width, height, ratio);
    const to = reach(Math.max(loss.last, fidelity.last), run.updates, !isLive(run));
    loss.view(to, area.columns);
    fidelity.view(to, area.columns);
    other?.view(to, area.columns);
    const column = Math.min(area.columns - 1, Math.floor(at * area.columns));
    const found = at === null ? null : lookUp({ loss, fidelity }, column);
    const colours = coloursOfCurves();
    const places = { at: found?.column ?? null, shown: picked, kept: run.kept };
    drawCurves(context, area, { loss, fidelity, to, colours, other, ends, ...places });
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
    say(values, describe(found, face.name, run));
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
    if (!run[face.name]?.length) {
      face.name = FACES[0];      // this run has no such face
    }
    faces.show(FACES.filter((name) => name === FACES[0] || run[name]?.length), face.name);
    say(distance, wordsOf(run, "distance"));
    distance.hidden = face.name !== FACES[0];
    say(kept, Number.isFinite(run.kept) ? t("panel.kept_mark", { update: whole(run.kept) }) : "");
    distance.title = wordsOf(run, "distance_hint");
    element.hidden = !store.loss.length && !store.fidelity.length && !run.distance?.length;
    surface.dirty();
  }

  return { element, show, close: surface.close };
}

/** The choice of what the right curve shows: { element, show(names, chosen) }. */
function makeFaces(choose) {
  const element = make("select", "select faces", { "aria-label": t("panel.faces.label"), hidden: true });
  const options = FACES.map((name) => make("option", "", { value: name }, t(`panel.faces.${name}`)));
  element.append(...options);
  element.addEventListener("change", () => choose(element.value));
  return {
    element,
    show(names, chosen) {
      element.hidden = names.length < 2;
      for (const option of options) {
        option.hidden = !names.includes(option.value);
      }
      element.value = names.includes(chosen) ? chosen : FACES[0];
    },
  };
}

function describe({ update, loss, fidelity }, face, run) {
  const parts = [t("panel.at.update", { update: whole(update) })];
  if (loss) {
    const spreads = loss.count > 1 && short(loss.low) !== short(loss.high);
    const between = spreads ? ` (${short(loss.low)} – ${short(loss.high)})` : "";
    parts.push(t("panel.at.loss", { value: short(loss.mean) + between }));
  }
  if (fidelity && face !== FACES[0]) {
    const point = run[face].find(([at]) => at === fidelity.update);
    const words = face === "diversity" ? percent : inShares;
    const values = { face: t(`panel.faces.${face}`), value: range(point, words) };
    parts.push(t("panel.at.face", { ...values, update: whole(fidelity.update) }));
  } else if (fidelity) {
    parts.push(t("panel.at.fidelity", { value: short(fidelity.value), update: whole(fidelity.update) }));
  }
  return parts.join("\n");
}

function summary(run) {
  const distance = wordsOf(run, "distance");
  const [loss, fidelity] = [short(run.loss), short(run.fidelity)];
  return t("panel.chart", { done: whole(run.done), loss, distance, fidelity });
}
