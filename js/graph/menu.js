// What the pack adds to the menu of a node.

import { t } from "../text.js";
import { toast } from "./change.js";
import { gives } from "./nodes.js";
import { makeFewStep } from "./oneclick.js";

/** LiteGraph menu items for a node: none where it gives no model. */
export function graphMenu(app, api, node, runs) {
  if (!gives(node, "MODEL")) {
    return [];
  }
  return [null, { content: t("graph.title"), callback: () => makeOrTell(app, api, node, runs) }];
}

/**
 * Makes a node's model few-step, of none that of the panel's button;
 * what goes wrong is a toast. runs: the panel's, to show it.
 */
export async function makeOrTell(app, api, node, runs) {
  runs.expect(true);
  try {
    const distil = await makeFewStep(app, api, node);
    if (!distil) {
      runs.expect(false);
    }
    return distil;
  } catch (error) {
    runs.expect(false);
    toast(app, "error", t("graph.title"), error.message);
    return null;
  }
}
