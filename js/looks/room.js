// Room for what is on a node: its title, its slots, and the names and values of its widgets as they are when
// it is made.

const AROUND_TITLE = 72;      // pixels: the dot or arrow before it, and the corner
const AROUND_VALUE = 96;      // margins, arrows and the gap between name and value
const NAME = 80;              // of a name, at least, in Nodes 2.0
const MOST = 440;
const BETWEEN_SLOTS = 60;     // their dots, and a gap between the names of two
const TITLE_FONT = "14px Inter, Arial, sans-serif";
const WIDGET_FONT = "12px Inter, Arial, sans-serif";
let pen = null;

/** Makes a new node large enough; newer frontends leave its height as it was before all was on it. */
export function giveRoom(node) {
  const rows = (node.widgets ?? []).filter((widget) => !widget.hidden && !widget.element).map((widget) => {
    const name = Math.max(NAME, widthOf(widget.label ?? widget.name, WIDGET_FONT));
    return name + widthOf(String(widget._displayValue ?? widget.value ?? ""), WIDGET_FONT) + AROUND_VALUE;
  });
  const slots = (node.outputs ?? []).map((output, i) => {
    const input = node.inputs?.filter((slot) => !slot.widget)[i];
    return widthOf(nameOf(input) + nameOf(output), TITLE_FONT) + BETWEEN_SLOTS;
  });
  const title = widthOf(node.title ?? "", TITLE_FONT) + AROUND_TITLE;
  const wanted = Math.ceil(Math.max(title, ...[...rows, ...slots].map((row) => Math.min(row, MOST))));
  const tall = node.computeSize()[1];
  if (wanted > node.size[0] || tall > node.size[1]) {
    node.setSize([Math.max(wanted, node.size[0]), Math.max(tall, node.size[1])]);
  }
}

const nameOf = (slot) => slot?.label ?? slot?.localized_name ?? slot?.name ?? "";

function widthOf(text, font) {
  pen ??= document.createElement("canvas").getContext("2d");
  pen.font = font;
  return pen.measureText(text).width;
}
