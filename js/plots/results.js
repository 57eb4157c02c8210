// What a node said when it last ran, kept over a reload of
// the page by the browser for this tab: the host forgets it.

const held = new WeakMap();
const lookedFor = new WeakMap();
let stamps = 0;

function keyOf(node) {
  const graph = node.graph;
  return graph ? `fewstep ${graph.rootGraph?.id ?? ""} ${graph.id} ${node.id} ${node.type}` : null;
}

export function remember(node, data) {
  held.set(node, { stamp: ++stamps, data });
  try {
    const key = keyOf(node);
    if (key) {
      sessionStorage.setItem(key, JSON.stringify(data));
    }
  } catch {
    // full or forbidden: then the result lasts as long as the page
  }
}

/** {stamp, data}: the node's last result, or null; another result has another stamp. */
export function recall(node) {
  const key = keyOf(node);
  if (held.has(node) || !key || lookedFor.get(node) === key) {
    return held.get(node) ?? null;
  }
  lookedFor.set(node, key);      // once under each id
  try {
    const data = JSON.parse(sessionStorage.getItem(key));
    if (data) {
      held.set(node, { stamp: ++stamps, data });
    }
  } catch {
    return null;
  }
  return held.get(node) ?? null;
}
