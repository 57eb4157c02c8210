// Parts of the panel that are folded until somebody looks at them.

import { make } from "../dom.js";
import { t } from "../text.js";

/** A folded part with a title; opened() when the user unfolds it. */
export function fold(key, opened, ...children) {
  const title = make("summary", "", {}, t(`panel.more.${key}`));
  const element = make("details", `fold fold-${key}`, {}, title, ...children);
  element.addEventListener("toggle", () => element.open && opened());
  return { element, title };
}
