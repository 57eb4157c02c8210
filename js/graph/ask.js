// A question to the user in a dialog of the page: the same in both renderers, by keyboard and in every theme.

import { addStyles, button, make } from "../dom.js";

/**
 * Shows a question and answers the value of the chosen answer; null for Escape.
 * answers: [[label, value], ...], the first is the one that is offered.
 */
export function ask(title, paragraphs, answers) {
  addStyles(new URL("./ask.css", import.meta.url).href);
  return new Promise((resolve) => {
    const dialog = make("dialog", "ask", { "aria-label": title });
    const choose = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    dialog.append(
      make("h2", "ask-title", {}, title),
      ...paragraphs.map((text) => make("p", "ask-text", {}, text)),
      make("div", "ask-answers", {}, ...answers.map(([label, value], i) =>
        button(label, () => choose(value), i ? "" : "primary"))),
    );
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      choose(null);
    });
    // the canvas has keys of its own
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    document.body.append(dialog);
    dialog.showModal();
  });
}
