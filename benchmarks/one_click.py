"""What one click makes of the official workflows: read right, asked or refused rightly, or wrong and why.

    COMFYUI_PATH=... python benchmarks/one_click.py [--use-it] [--only PATTERN] [--json FILE] [--show]

A real ComfyUI (`--cpu`) serves its real frontend to the system's Chromium. Each workflow of the package
`comfyui-workflow-templates`, and each blueprint of ComfyUI, that loads a model is opened there; what would
be queued (`graphToPrompt`) is taken before and after the click; nothing is queued. Where the pack asks
something, the first answer is chosen and what is built then counts too. `one_click_rules.py` judges, and
knows nothing of the pack's scripts.

JSON: {"rows": [{"template", "family", "action", "verdict", "why"}], "summary": {"not_wrong"}}
"""

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import one_click_rules as rules
from api_graph import ApiGraph

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Release.Status": "skipped",
    "Comfy.Locale": "en",
}
READY = "!!(window.app?.extensionManager && window.app.graph)"
SECONDS = 20  # for one click, at most

# in the page: what opens a workflow, and what does an action and tells what came of it
OPEN = """async (graph) => {
  document.querySelectorAll("dialog[open]").forEach((one) => one.close());
  await app.loadGraphData(graph, true, true, null);
  return (await app.graphToPrompt()).output;
}"""
WATCH = """() => {
  const { toast } = app.extensionManager;
  const add = toast.add.bind(toast);
  window.bench = { told: [], asked: [], queued: null };
  toast.add = (one) => {
    bench.told.push([one.summary, one.detail].filter(Boolean).join(": "));
    bench.failed ||= one.severity === "error";
  };
  app.queuePrompt = async (number, count, nodes) => {
    bench.queued = nodes ?? [];
    bench.at = performance.now();
    return true;
  };
}"""
ACT = """async ([command, seconds]) => {
  Object.assign(bench, { told: [], asked: [], queued: null, at: null, failed: false });
  const asks = () => document.querySelector("dialog.fewstep-ask[open]");
  let begun = performance.now();
  let done = false;
  const work = Promise.resolve(command()).finally(() => { done = true; });
  while (!done && performance.now() - begun < 1000 * seconds) {
    const dialog = asks();
    if (dialog) {
      bench.asked.push(dialog.innerText.replace(/\\s+/g, " ").trim());
      begun = performance.now();
      dialog.querySelector("button").click();
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const end = done ? await work.catch((error) => String(error)) : "no end";
  const built = bench.at === null ? null : bench.at - begun;
  const after = (await app.graphToPrompt()).output;
  return { ...bench, end: typeof end === "string" ? end : null, built, after };
}"""


def main() -> None:
    """Print the table; write JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="templates whose name it matches")
    parser.add_argument("--use-it", action="store_true", help='the same for "Use it"')
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--show", action="store_true", help="print each row, not only the wrong ones")
    options = parser.parse_args()
    action = use_it() if options.use_it else one_click()
    with page_of_comfy(action) as (page, info):
        rows, times = [], []
        for name, graph in workflows(options.only):
            row, built = judge(page, info, action, name, graph)
            rows.append(row)
            times += [built] if built is not None else []
            if options.show or row["verdict"] == rules.WRONG:
                print(
                    f"{row['verdict']:16} {row['template']} [{row['family']}] {row['why']}"[:400], flush=True
                )
    summary = summarise(rows, times)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n")


# ---- actions ---------------------------------------------------------------------------------------
# Each is (name, script that does it and answers a promise, what judges it); `base` is prepared before the
# server starts.


def one_click() -> tuple:
    """ "Make this model few-step", as its command does it."""
    script = '() => app.extensionManager.command.execute("Fewstep.MakeFewStep")'
    return "few-step", script, rules.verdict, lambda base: None


def use_it() -> tuple:
    """ "Use it" of a finished run."""
    import one_click_use

    return "use it", one_click_use.script(), one_click_use.verdict, one_click_use.prepare


# ---- the page --------------------------------------------------------------------------------------


@contextlib.contextmanager
def page_of_comfy(action: tuple) -> Iterator[tuple[Any, dict]]:
    """(page, object info) of a server and a browser of their own, which end with it."""
    from comfy_server import Server, link_pack
    from playwright.sync_api import sync_playwright

    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        link_pack(Path(base))
        action[3](Path(base))
        server = Server(Path(base), folder)
        try:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            server.post("/settings", SETTINGS)
            page = browser.new_page(viewport={"width": 1500, "height": 950})
            page.set_default_timeout(60_000)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_function(READY, timeout=180_000)
            page.wait_for_timeout(2000)  # the page's own beginnings
            page.evaluate(WATCH)
            yield page, server.get("/object_info")
        finally:
            server.stop()


def workflows(only: str) -> Iterator[tuple[str, dict]]:
    """(name, graph) of the official workflows and blueprints that load a model."""
    package = importlib.util.find_spec("comfyui_workflow_templates_json")
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    places = [(Path(package.origin).parent / "templates", ""), (folder / "blueprints", "blueprint ")]
    for place, prefix in places:
        for path in sorted(place.glob("*.json")):
            name, graph = prefix + path.stem, json.loads(path.read_text())
            if isinstance(graph, dict) and loads_model(graph) and re.search(only, name, re.IGNORECASE):
                yield name, graph


def loads_model(graph: dict) -> bool:
    """Whether any node of a workflow, those in its subgraphs too, gives a MODEL."""
    parts = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
    nodes = [node for part in parts for node in part.get("nodes", [])]
    return any(out.get("type") == "MODEL" for node in nodes for out in node.get("outputs") or [])


# ---- rows ------------------------------------------------------------------------------------------


def judge(page: Any, info: dict, action: tuple, name: str, graph: dict) -> tuple[dict, float | None]:
    """The row of one workflow, and the milliseconds from the click to the built group."""
    return judge_shown(page, info, action, name, page.evaluate(OPEN, graph))


def judge_shown(page: Any, info: dict, action: tuple, name: str, prompt: dict) -> tuple[dict, float | None]:
    """The same for the graph that the page shows; prompt: what would be queued of it."""
    label, script, verdict, _ = action
    before = ApiGraph(prompt, info)
    found = page.evaluate(f"([seconds]) => ({ACT})([{script}, seconds])", [SECONDS])
    told = [*found["told"], *([found["end"]] if found["end"] else [])]
    seen = rules.Seen(asked=tuple(found["asked"]), told=tuple(told), built=found["built"])
    answer, why = verdict(before, ApiGraph(found["after"], info), seen)
    family = rules.family_of(before, name)
    row = {"template": name, "family": family, "action": label, "verdict": answer, "why": why}
    return row, found["built"]


def summarise(rows: list[dict], times: list[float]) -> dict:
    """Print the verdicts by family; {"not_wrong": share of rows}."""
    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        counts[row["family"]][row["verdict"]] += 1
        counts["all"][row["verdict"]] += 1
    heads = (rules.RIGHT, rules.ASKED, rules.REFUSED, rules.WRONG)
    print(f"\n{'family':16}" + "".join(f"{head:>17}" for head in heads))
    for family in sorted(counts, key=lambda one: (one == "all", one)):
        print(f"{family:16}" + "".join(f"{counts[family][head]:17}" for head in heads))
    not_wrong = 1 - counts["all"][rules.WRONG] / max(1, len(rows))
    print(f"\nnot wrong: {100 * not_wrong:.1f} % of {len(rows)}")
    if times:
        print(
            f"from click to built group: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms"
        )
    return {"not_wrong": not_wrong}


if __name__ == "__main__":
    begun = time.monotonic()
    main()
    print(f"{time.monotonic() - begun:.0f} s")
