// The preview grid: teacher, before and now from the same noise, with a slider through the run's kept
// pictures; the same of another run below it. A click opens them large.

import { make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { nameOf, restores, whole, wordsOf } from "./format.js";
import { openLarge } from "./large.js";
import { picture } from "./routes.js";
import { isLive, usualPicture } from "./store.js";

// their titles, and those of a run that restores
const COLUMNS = [["teacher", "whole"], ["before", "destroyed"], ["now", "restored"]];

/**
 * {element, show(run, store)}. The slider follows the newest picture of a live run, and
 * shows the kept one of another, until the user moves it.
 */
export function makePreviews(api) {
  const openMine = () => openLarge(api, run, updateShown());
  const openOther = () => openLarge(api, store.otherRun(), usualPicture(store.otherRun()));
  const columns = COLUMNS.map((names) => makeColumn(names, openMine));
  const grid = make("div", "grid", {}, ...columns.map((column) => column.element));
  const slider = make("input", "slider", { type: "range", id: "fewstep-preview", min: 0, step: 1 });
  const mine = make("button", "button kept-button", { type: "button", hidden: true });
  const caption = make("label", "slider-label", { htmlFor: slider.id });
  const chooser = make("div", "chooser", {}, make("div", "pair", {}, caption, mine), slider);
  const waiting = make("p", "muted", {}, t("panel.no_pictures"));
  const title = make("h4");
  const prompts = make("p", "muted prompts", { hidden: true });
  const others = COLUMNS.map((names) => makeColumn(names, openOther));
  const otherTitle = make("h4", "other-title");
  const otherGrid = make("div", "grid", {}, ...others.map((column) => column.element));
  const other = make("div", "other", { hidden: true }, otherTitle, otherGrid);
  const element = make("section", "previews", {}, title, waiting, chooser, grid, prompts, other);
  let [run, store] = [null, null];

  slider.addEventListener("input", () => {
    const chosen = run.previews[Number(slider.value)];
    store.pick(chosen === usualPicture(run) ? null : chosen);
  });
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  mine.addEventListener("click", () => store.pick(run.kept === usualPicture(run) ? null : run.kept));

  function show(newRun, newStore) {
    [run, store] = [newRun, newStore];
    const kept = run.previews ?? [];
    say(title, wordsOf(run, "pictures"));
    mark(element, "aria-label", title.textContent);
    element.hidden = !kept.length && !isLive(run);
    waiting.hidden = kept.length > 0;
    grid.hidden = !kept.length;
    chooser.hidden = kept.length < 2;
    say(prompts, promptsOf(run));
    prompts.hidden = !kept.length || !prompts.textContent;
    showOther(store.otherRun());
    if (!kept.length) {
      return;
    }
    const update = updateShown();
    slider.max = kept.length - 1;
    slider.value = kept.indexOf(update);
    const where = nameOf(run, update);
    say(caption, where);
    mark(slider, "aria-valuetext", where);
    say(mine, t("panel.show_kept", { update: whole(run.kept) }));
    mine.hidden = update === run.kept || !kept.includes(run.kept);
    fill(columns, run, update);
  }

  /** The update whose picture is shown of the selected run. */
  function updateShown() {
    return run.previews.includes(store.picked) ? store.picked : usualPicture(run);
  }

  function showOther(found) {
    other.hidden = !found?.previews?.length;
    if (!other.hidden) {
      const update = usualPicture(found);
      say(otherTitle, t("panel.of_run", { name: found.name, update: whole(update) }));
      fill(others, found, update);
    }
  }

  function fill(cells, one, update) {
    cells[0].show(one, picture(api, one.id, "teacher"));
    cells[1].show(one, picture(api, one.id, "before"));
    cells[2].show(one, picture(api, one.id, update), update);
  }

  return { element, show };
}

/** The prompt of the pictures, or that of each row by its number. */
function promptsOf({ prompts = [] }) {
  return prompts.length < 2 ? prompts.join("") : prompts.map((text, i) => `${i + 1} · ${text}`).join("\n");
}

/** Of the third column: "Now" while it follows the run, "LoRA" where the picture is of what is saved. */
function titleOf(names, run, update) {
  const name = names[Number(restores(run))];
  return t(`panel.columns.${name === "now" && update === run.kept ? "lora" : name}`);
}

function makeColumn(names, open) {
  const image = make("img", "picture", { decoding: "async" });
  const title = make("figcaption");
  const link = make("button", "picture-link", { type: "button", title: t("panel.open_picture") }, image);
  const missing = make("span", "missing", { hidden: true }, t("panel.missing_picture"));
  const element = make("figure", "column", {}, title, link, missing);
  const found = (yes) => {
    link.hidden = !yes;
    missing.hidden = yes;
  };
  let [id, source] = [null, null];
  link.addEventListener("click", open);
  image.addEventListener("load", () => found(true));
  image.addEventListener("error", () => found(false));
  return {
    element,
    show(run, address, update) {
      say(title, titleOf(names, run, update));
      image.alt = title.textContent;
      if (address === source) {
        return;
      }
      if (run.id !== id) {
        image.removeAttribute("src");      // else the picture before stays until the new one is there
      }
      [id, source] = [run.id, address];
      image.src = address;
    },
  };
}
