// The choices of a list in the user's language: only what is shown changes, the value stays what the server
// calls it. Also what an empty list shows, and what stands in an empty field of several lines.

import { language, t, wordOf } from "../text.js";

// what becomes of a seed: the host's own list, whose name it has translated itself
const isControl = (values) => values.includes("randomize") && values.includes("fixed");

/** Labels for the widgets of a new node. inputs: { name: options } as the server told. */
export function labelChoices(node, inputs) {
  for (const widget of node.widgets ?? []) {
    const values = widget.type === "combo" && widget.options?.values;
    if (Array.isArray(values) && (widget.name in inputs || isControl(values))) {
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
