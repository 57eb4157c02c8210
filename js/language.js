// The user's language where ComfyUI's own translation does not reach: in the server's messages, and in the
// tooltips of inputs that a choice brings, which the frontend takes from the server as they are.

import { ROUTE } from "./names.js";

/**
 * Tells the server which language is shown: it knows only
 * one that was chosen in the settings, not the browser's.
 */
export function tellServer(api, locale = "en") {
  return api.fetchApi(`${ROUTE}/language/${encodeURIComponent(locale)}`, { method: "POST" });
}

/** Puts translated tooltips into a node's definition. words: the language's nodeDefs. */
export function translateChoices(definition, words) {
  const inputs = words[definition.name]?.inputs ?? {};
  for (const [combo, [, { options }]] of entries(definition.input)) {
    for (const option of Array.isArray(options) ? options : []) {
      for (const [name, spec] of entries(option?.inputs)) {
        const tooltip = inputs[`${combo}_${name}`]?.tooltip;
        if (tooltip) {
          spec[1] = { ...spec[1], tooltip };
        }
      }
    }
  }
}

function entries(inputs) {
  const all = ["required", "optional"].flatMap((kind) => Object.entries(inputs?.[kind] ?? {}));
  return all.filter(([, spec]) => spec[1]);
}
