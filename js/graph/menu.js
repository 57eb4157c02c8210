// What the pack adds to the menu of a node.

import { t } from "../text.js";
import { slotOf } from "./find.js";
import { makeFewStep } from "./oneclick.js";

/** LiteGraph menu items for a node: none where it gives no model. */
export function graphMenu(app, api, node) {
  if (slotOf(node.outputs, "MODEL") < 0) {
    return [];
  }
  return [null, { content: t("graph.title"), callback: () => makeOrTell(app, api, node) }];
}

/** Makes the model few-step; what goes wrong is shown as a toast. */
export async function makeOrTell(app, api, node) {
  try {
    return await makeFewStep(app, api, node);
  } catch (error) {
    app.extensionManager.toast.add({ severity: "error", summary: t("graph.title"), detail: error.message, life: 10000 });
    return null;
  }
}
