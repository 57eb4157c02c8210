// The choices of a list in the user's language: only what is shown changes, the value stays what the server
// calls it. Also what an empty list shows, and what stands in an empty field of several lines.

import { language, t, wordOf } from "../text.js";

const CONTROL = "control_after_generate";      // of seeds, the host's

/** Labels for the widgets of a new node. inputs: { name: options } as the server told. */
export function labelChoices(node, inputs) {
  for (const widget of node.widgets ?? []) {
    const values = widget.type === "combo" && widget.options?.values;
    if (Array.isArray(values) && (widget.name in inputs || widget.name === CONTROL)) {
      labelList(widget, values);
    } else if (widget.element?.placeholder && widget.name in inputs) {
      widget.element.placeholder = wordOf(widget.element.placeholder) ?? widget.label ?? widget.name;
    }
  }
}

function labelList(widget, values) {
  if (!values.length) {
    showEmpty(widget);
  } else if (language() !== "en" && values.some((value) => wordOf(value) !== null)) {
    widget.options.getOptionLabel = (value) => wordOf(value) ?? String(value ?? "");
  }
}

/** A list without choices has no value, which either renderer would write as "undefined" or not at all. */
function showEmpty(widget) {
  widget.options.getOptionLabel = (value) => (value && value !== "undefined" ? value : t("nodes.empty"));
  widget.options.placeholder = t("nodes.empty");
}
