"""ComfyUI's page as the browser tests use it: opened with settings, watched for errors, its parts at hand."""

import json
import os
import shutil
from pathlib import Path

from comfy_server import ROOT

SHOTS = Path(__file__).parent / "shots"
PICTURES = ROOT / "benchmarks" / "results"
WANTED = bool(os.environ.get("FEWSTEP_PICTURES"))  # pictures for the README
TEMPLATES = ROOT / "example_workflows"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Release.Status": "skipped",
    "Comfy.Locale": "en",
    "Comfy.ColorPalette": "dark",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
FOLDER = "ComfyUI-Fewstep"  # as a clone or a zip has it, not as the package is called
OURS = (f"/extensions/{FOLDER}/", "/fewstep/")
TAB = '.fewstep-tab-button, [data-testid="fewstep-tab-button"]'  # as older and as newer frontends name it
READY = "(tab) => !!(window.app?.extensionManager && window.app.graph && document.querySelector(tab))"
SAME_TYPES = "(types) => String(app.graph.nodes.map((node) => node.type).sort()) === String(types)"
SHOWN_RUN = """([name, states, updates]) => {
  const at = (place) => document.querySelector(`.fewstep-details ${place}`)?.textContent ?? "";
  return at(".fewstep-name") === name && states.includes(at(".fewstep-chip"))
    && Number(at(".fewstep-fact-updates dd").replaceAll(",", "").split(" ")[0]) >= updates;
}"""
PLACE = """([id, x, y]) => {
  const { pos, size } = app.graph.getNodeById(id);
  return app.canvas.convertOffsetToCanvas([pos[0] + x + (x < 0 ? size[0] : 0), pos[1] + y]);
}"""
TOP = "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).last_y"
PLOT = """(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "fewstep_plot")
  .element.querySelector("canvas").toDataURL()"""
SECOND = 1000
LONG = 400 * SECOND  # what may wait for a run on a busy machine


class Frontend:
    """One page for all tests. trouble: what went wrong in our code, as text."""

    def __init__(self, browser, server):
        self.server, self.trouble = server, []
        self.whole = browser.new_browser_cdp_session()
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(60 * SECOND)
        session = self.page.context.new_cdp_session(self.page)  # Playwright's own events know no stack
        session.on("Runtime.consoleAPICalled", self._on_console)
        session.on("Runtime.exceptionThrown", self._on_exception)
        session.on("Log.entryAdded", self._on_log)
        session.send("Runtime.enable")
        session.send("Log.enable")

    # ---- what goes wrong -----------------------------------------------------------------------

    def _on_console(self, event):
        text = " ".join(str(part.get("value", part.get("description", ""))) for part in event["args"])
        if event["type"] in ("error", "assert") or (event["type"] == "warning" and is_deprecation(text)):
            self._keep(text, event.get("stackTrace"))

    def _on_exception(self, event):
        details = event["exceptionDetails"]
        text = details.get("exception", {}).get("description", details["text"])
        self._keep(text, details.get("stackTrace"), details.get("url", ""))

    def _on_log(self, event):
        entry = event["entry"]
        if entry["level"] == "error" or is_deprecation(entry["text"]):
            self._keep(entry["text"], entry.get("stackTrace"), entry.get("url", ""))

    def _keep(self, text, stack, url=""):
        places = [url]
        while stack:
            places += [frame["url"] for frame in stack["callFrames"]]
            stack = stack.get("parent")
        if "fewstep" in text.lower() or any(ours in place for place in places for ours in OURS):
            self.trouble.append(f"{text} {url}")

    def processes(self):
        """The browser's processes: their type, and seconds of processor time."""
        return self.whole.send("SystemInfo.getProcessInfo")["processInfo"]

    # ---- opening -------------------------------------------------------------------------------

    def open(self, template=None, height=950, **settings):
        """Load the page anew, with settings and one of our templates, as a link to it does."""
        self.leave()
        self.page.set_viewport_size({"width": 1500, "height": height})
        self.server.post("/settings", {**SETTINGS, **settings})
        asked = f"?template={template}&source={FOLDER}" if template else ""
        self.page.goto(f"http://127.0.0.1:{self.server.port}/{asked}")
        self.page.wait_for_function(READY, arg=TAB, timeout=LONG)
        if template:
            wanted = sorted(node["type"] for node in graph_of(template)["nodes"])
            self.page.wait_for_function(SAME_TYPES, arg=wanted)
            self.page.wait_for_timeout(SECOND)

    def leave(self):
        """Forget the graph of the page before, so that the next does not begin with it."""
        self.page.unroute_all()
        if self.page.url.startswith("http"):
            self.page.evaluate("() => { app.graph.clear(); sessionStorage.clear(); localStorage.clear(); }")

    def load(self, template):
        """Put one of our templates into the page that is open."""
        self.page.evaluate("(graph) => app.loadGraphData(graph)", graph_of(template))
        self.page.wait_for_timeout(SECOND)

    def reload(self):
        self.page.reload()
        self.page.wait_for_function(READY, arg=TAB, timeout=LONG)

    def make_small(self, **inputs):
        """Give the nodes that train these inputs on their way to the server: tests can't wait as long."""

        def change(route):
            sent = route.request.post_data_json
            for node in sent["prompt"].values():
                if node["class_type"] == "FewstepDistil":
                    node["inputs"].update(inputs)
            route.continue_(post_data=json.dumps(sent))

        self.page.route("**/api/prompt", change)

    # ---- the panel -----------------------------------------------------------------------------

    def open_tab(self):
        if not self.page.locator(".fewstep-panel").count():
            self.page.locator(TAB).click()
        self.page.locator(".fewstep-panel").wait_for()

    def button(self, name):
        return self.page.locator(".fewstep-panel").get_by_role("button", name=name, exact=True)

    def wait_for_run(self, name, *states, updates=0):
        """Until the run that the panel shows has that name, one of these states and that many updates."""
        self.page.wait_for_function(SHOWN_RUN, arg=[name, list(states), updates], timeout=LONG)

    def wait_for_queue(self):
        """Until the server has nothing more to do."""
        self.server.wait(lambda: not any(self.server.get("/queue").values()), LONG / SECOND)
        self.page.wait_for_timeout(SECOND)

    # ---- the graph -----------------------------------------------------------------------------

    def types(self):
        return self.page.evaluate("app.graph.nodes.map((node) => node.type)")

    def queue(self):
        """Queue the graph as the keyboard does; the history entry of it."""
        with self.page.expect_response("**/api/prompt") as reply:
            self.page.evaluate("app.queuePrompt(0)")
        return self.server.result(reply.value.json()["prompt_id"])

    def images(self, entry):
        return [
            self.server.base / i["type"] / i["filename"]
            for out in entry["outputs"].values()
            for i in out.get("images", [])
        ]

    def at(self, node, x, y):
        """Where on the page a point of a node is; x from its right edge if negative."""
        return self.page.evaluate(PLACE, [node, x, y])

    def press_more(self, node, widget):
        """Click on what makes a number widget larger, as the renderer in use draws it."""
        widgets = self.page.locator(f'[data-node-id="{node}"] [data-testid="node-widget"]')
        place = widgets.filter(has_text=widget)
        if place.count():
            place.locator("button").last.click()
        else:
            y = self.page.evaluate(TOP, [node, widget])
            self.page.mouse.click(*self.at(node, -20, y + 12))

    def plot(self, node):
        """What is drawn on a node, as a data URL."""
        return self.page.evaluate(PLOT, node)

    # ---- pictures ------------------------------------------------------------------------------

    def shot(self, name):
        """Keep a picture of the page; once it holds still, as its animations run on."""
        self.page.wait_for_timeout(SECOND)
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", timeout=120 * SECOND)

    def picture(self, name):
        """A picture for the README, where FEWSTEP_PICTURES asks for it."""
        self.page.wait_for_timeout(8 * SECOND)  # the host's notices go
        self.shot(name)
        if WANTED:
            shutil.copy(SHOTS / f"{name}.png", PICTURES / f"{name}.png")


def graph_of(template):
    return json.loads((TEMPLATES / f"{template}.json").read_text())


def is_deprecation(text):
    return any(word in text.lower() for word in ("deprecat", "not part of the public api"))
