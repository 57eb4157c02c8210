// The preview grid: teacher, before and now from the same
// noise, with a slider through the run's kept pictures.

import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { restores, whole, wordsOf } from "./format.js";
import { picture } from "./routes.js";
import { isLive } from "./store.js";

// their titles, and those of a run that restores
const COLUMNS = [["teacher", "whole"], ["before", "destroyed"], ["now", "restored"]];

/**
 * {element, show(run, store)}. The slider follows the newest
 * picture until the user moves it, and again from its end on.
 */
export function makePreviews(api) {
  const columns = COLUMNS.map(makeColumn);
  const grid = make("div", "grid", {}, ...columns.map((column) => column.element));
  const slider = make("input", "slider", { type: "range", id: "fewstep-preview", min: 0, step: 1 });
  const caption = make("label", "slider-label", { htmlFor: slider.id });
  const chooser = make("div", "chooser", {}, caption, slider);
  const waiting = make("p", "muted", {}, t("panel.no_pictures"));
  const title = make("h4");
  const element = make("section", "previews", {}, title, waiting, chooser, grid);
  let [run, store] = [null, null];

  slider.addEventListener("input", () => {
    const index = Number(slider.value);
    store.pick(index === run.previews.length - 1 ? null : run.previews[index]);
  });
  slider.addEventListener("keydown", (event) => event.stopPropagation());

  function show(newRun, newStore) {
    [run, store] = [newRun, newStore];
    const kept = run.previews ?? [];
    say(title, wordsOf(run, "pictures"));
    mark(element, "aria-label", title.textContent);
    element.hidden = !kept.length && !isLive(run);
    waiting.hidden = kept.length > 0;
    grid.hidden = !kept.length;
    chooser.hidden = kept.length < 2;
    if (!kept.length) {
      return;
    }
    const wanted = store.picked === null ? -1 : kept.indexOf(store.picked);
    const index = wanted < 0 ? kept.length - 1 : wanted;
    slider.max = kept.length - 1;
    slider.value = index;
    const where = t("panel.picture_at", { update: whole(kept[index]), updates: whole(run.updates) });
    say(caption, where);
    mark(slider, "aria-valuetext", where);
    columns[0].show(run, picture(api, run.id, "teacher"));
    columns[1].show(run, picture(api, run.id, "before"));
    columns[2].show(run, picture(api, run.id, kept[index]));
  }

  return { element, show };
}

function makeColumn(names) {
  const image = make("img", "picture", { decoding: "async" });
  const title = make("figcaption");
  const toOpen = { target: "_blank", rel: "noopener", title: t("panel.open_picture") };
  const link = make("a", "picture-link", toOpen, image);
  const missing = make("span", "missing", { hidden: true }, t("panel.missing_picture"));
  const element = make("figure", "column", {}, title, link, missing);
  const found = (yes) => {
    link.hidden = !yes;
    missing.hidden = yes;
  };
  let [id, source] = [null, null];
  image.addEventListener("load", () => found(true));
  image.addEventListener("error", () => found(false));
  return {
    element,
    show(run, address) {
      say(title, t(`panel.columns.${names[Number(restores(run))]}`));
      image.alt = title.textContent;
      if (address === source) {
        return;
      }
      if (run.id !== id) {
        image.removeAttribute("src");      // else the picture before stays until the new one is there
      }
      [id, source] = [run.id, address];
      image.src = link.href = address;
    },
  };
}
