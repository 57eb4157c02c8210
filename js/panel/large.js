// The pictures of a run, large, over the page: teacher, before and one update side by side, or two of them
// one over the other with a divider that is dragged. Escape or a click beside it closes.

import { button, make, mark, say } from "../dom.js";
import { t } from "../text.js";
import { nameOf, restores } from "./format.js";
import { picture } from "./routes.js";

const HALF = 50;      // percent

/** Opens them, at the update that is shown. */
export function openLarge(api, run, at) {
  const [first, second] = restores(run) ? ["whole", "destroyed"] : ["teacher", "before"];
  const choices = [
    ["teacher", t(`panel.columns.${first}`)],
    ["before", t(`panel.columns.${second}`)],
    ...run.previews.map((update) => [String(update), nameOf(run, update)]),
  ];
  const shown = String(at);
  const [left, right] = [makeChoice(choices, "before"), makeChoice(choices, shown)];
  const divider = make("input", "divider", { type: "range", min: 0, max: 100, value: HALF, step: 1 });
  mark(divider, "aria-label", t("panel.large.divider"));
  const under = make("img", "large-picture");
  const over = make("img", "large-picture over");
  const stage = make("div", "stage", {}, under, over);
  const together = makeSideBySide(api, run, shown, choices);
  const close = button(t("panel.large.close"), () => dialog.close(), "quiet");
  const compare = make("div", "compare", {},
    make("div", "choices", {}, left, make("span", "muted", {}, "|"), right), stage, divider);
  const dialog = make("dialog", "large fewstep-panel-colours", { "aria-label": run.name },
    make("header", "head", {}, make("h3", "name", {}, run.name), close), together, compare);

  function draw() {
    for (const [image, choice] of [[under, right], [over, left]]) {
      image.src = picture(api, run.id, choice.value);
      image.alt = choice.selectedOptions[0].textContent;
    }
    over.style.clipPath = `inset(0 ${100 - divider.value}% 0 0)`;
    stage.style.setProperty("--fewstep-divider", `${divider.value}%`);
  }

  for (const control of [left, right, divider]) {
    control.addEventListener("input", draw);
  }
  dialog.addEventListener("keydown", (event) => event.stopPropagation());      // the canvas listens too
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  draw();
  document.body.append(dialog);
  dialog.showModal();
}

function makeChoice(choices, value) {
  const options = choices.map(([name, text]) => make("option", "", { value: name }, text));
  const select = make("select", "select", { "aria-label": t("panel.large.choose") }, ...options);
  select.value = value;
  return select;
}

function makeSideBySide(api, run, shown, choices) {
  const columns = ["teacher", "before", shown].map((name) => {
    const title = make("figcaption");
    say(title, choices.find(([one]) => one === name)[1]);
    return make("figure", "column", {}, title,
      make("img", "large-picture", { src: picture(api, run.id, name), alt: title.textContent }));
  });
  return make("div", "grid large-grid", {}, ...columns);
}
