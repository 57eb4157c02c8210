// How the nodes of this pack look, beside their plots, in both renderers of the frontend: words in the place
// of values that stand for something else, choices in the user's language, what is advanced folded away, and
// room for titles and values.

import { after } from "../graph/hooks.js";
import { widgetOf } from "../graph/nodes.js";
import { RESTORE } from "../names.js";
import { foldAdvanced } from "./fold.js";
import { expect, loraQuestion } from "./forecast.js";
import { labelChoices } from "./labels.js";
import { giveRoom } from "./room.js";
import { statusOn } from "./status.js";
import { know, markZeros } from "./zero.js";

/** For every node of this pack that is made, before its plot is put on it. */
export function dress(app, api, node) {
  const inputs = inputsOf(node.constructor.nodeData);
  labelChoices(node, inputs);
  markZeros(app, node, inputs);
  foldAdvanced(app, node);
  statusOn(app, api, node);
  giveRoom(node);
  if (node.comfyClass === RESTORE) {
    knowSteps(app, api, node);
  }
}

/** Restore's automatic steps are those that its LoRA was made for. */
function knowSteps(app, api, node) {
  const ask = async () => know(app, node, (await expect(api, loraQuestion(node))).values);
  after(widgetOf(node, "lora_name"), "callback", ask);
  after(node, "onConfigure", ask);
  after(node, "onAdded", ask);
}

/** { name: options } of a definition's inputs, as the server tells them. */
function inputsOf(definition) {
  const groups = [definition?.input?.required, definition?.input?.optional];
  const all = groups.flatMap((group) => Object.entries(group ?? {}));
  return Object.fromEntries(all.map(([name, [, options]]) => [name, options ?? {}]));
}
