// What ComfyUI's frontend loads: the panel, the one-click commands and the plots on nodes.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { tellServer, translateChoices } from "./language.js";
import { loadText } from "./text.js";
import { registerPanel } from "./panel/panel.js";
import { makeStore } from "./panel/store.js";
import { graphMenu, makeOrTell } from "./graph/menu.js";
import { dress } from "./looks/looks.js";
import { listen } from "./looks/status.js";
import { showZeros } from "./looks/zero.js";
import { isOurs } from "./names.js";
import { plotOn } from "./plots/plots.js";

const MAKE = "Fewstep.MakeFewStep";
const runs = makeStore(api);      // listens from here on: a run may be under way before setup
let nodeWords = {};

app.registerExtension({
  name: "fewstep",
  // the host translates the label itself, by locales/<language>/commands.json
  commands: [{
    id: MAKE,
    label: "Make this model few-step",
    icon: "pi pi-bolt",
    function: () => makeOrTell(app, api, null, runs),
  }],
  menuCommands: [{ path: ["Extensions", "Fewstep"], commands: [MAKE] }],
  async init() {
    const locale = app.extensionManager.setting.get("Comfy.Locale");
    nodeWords = await loadText(api, locale);
    tellServer(api, locale);
  },
  beforeRegisterNodeDef(nodeType, definition) {
    translateChoices(definition, nodeWords);
  },
  setup() {
    registerPanel(app, api, runs);
    listen(app, api);
    app.canvas.canvas.addEventListener("litegraph:set-graph", () => showZeros(app));
  },
  getNodeMenuItems(node) {
    return graphMenu(app, api, node, runs);
  },
  nodeCreated(node) {
    if (isOurs(node.comfyClass ?? node.type ?? "")) {
      dress(app, api, node);
      plotOn(app, api, node);
    }
  },
});
