"""How long does a new user wait for a few-step picture of a LoRA of one's own, and for what?

    COMFYUI_PATH=... python benchmarks/new_user.py [--updates 100] [--batch 32] [--json FILE] [--picture FILE]

A fresh base directory into which the pack is cloned (`git clone`), a server started there, and a Chromium
that does by clicks what the README says, in each renderer: open the page and the template, run it, click
"Make this model few-step" in the panel, wait, click "Use it", run. Seconds of each part. `--updates` and
`--batch` change the run on its way to the server; by default it is what one click asks for.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 3600  # seconds, for each part at most
CLICK = "Make this model few-step"
TRAINED = """async () => {
  const made = ["FewstepDistil", "PreviewImage"];
  app.canvas.selectItems(app.graph.nodes.filter(({ type }) => made.includes(type)));
  await app.extensionManager.command.execute("Comfy.Canvas.FitView");
  app.canvas.deselectAll();
  await new Promise((done) => setTimeout(done, 2000));
  const { ds } = app.canvas;      // beside the panel, which the view does not know of
  ds.scale *= 0.85;
  ds.offset[0] += 160;
  app.canvas.setDirty(true, true);
}"""
STATE = """() => document.querySelector(".fewstep-details .fewstep-chip")?.textContent ?? "" """


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, help="of the run; by default what one click asks for")
    parser.add_argument("--batch", type=int, help="likewise")
    parser.add_argument("--renderer", choices=("canvas", "vue"), help="one of the two alone")
    parser.add_argument("--json", type=Path, help="keep the figures there, those of the other renderer too")
    parser.add_argument("--picture", type=Path, help="of the page once the run is over")
    options = parser.parse_args()
    small = {name: getattr(options, name) for name in ("updates", "batch") if getattr(options, name)}
    rows = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else {}
    for renderer in [options.renderer] if options.renderer else ["canvas", "vue"]:
        rows[renderer] = as_new_user(renderer == "vue", small, options.picture)
        print(renderer, json.dumps(rows[renderer]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def as_new_user(vue: bool, small: dict[str, int], shot: Path | None) -> dict[str, Any]:
    """{part: seconds} and "whole", with what the picture came from."""
    from comfy_server import Server
    from frontend import FOLDER, Frontend
    from playwright.sync_api import sync_playwright

    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    parts, last = {}, time.monotonic()

    def told(part: str) -> None:
        nonlocal last
        now = time.monotonic()
        parts[part], last = round(now - last, 1), now

    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        packs = Path(base) / "custom_nodes"
        packs.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(packs / FOLDER)], check=True)
        told("git clone")
        server = Server(Path(base), folder, seconds=PATIENCE)
        told("ComfyUI starts")
        try:
            front = Frontend(playwright.chromium.launch(executable_path=program, args=FLAGS), server)
            front.page.set_default_timeout(1000 * PATIENCE)
            front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": vue})
            told("page and template open")
            parts["picture of the untrained model"] = picture(front)
            last = time.monotonic()
            front.make_small(**small)
            front.open_tab()
            front.button(CLICK).click()
            wait(front, lambda state: state in ("sampling", "running"))
            told("click until the run begins")
            wait(front, lambda state: state != "sampling")
            told("the teacher draws its pictures")
            wait(front, lambda state: state == "finished")
            told("training")
            front.wait_for_queue()
            told("its last pictures")
            if shot:
                front.page.evaluate(TRAINED)
                front.page.wait_for_timeout(12_000)  # notices go, the view moves
                front.page.screenshot(path=shot)
                last = time.monotonic()
            front.button("Use it").click()
            front.page.get_by_text("are in the graph").wait_for()
            told("use it")
            parts["picture of the LoRA"] = picture(front)
            run = server.get("/fewstep/runs")["runs"][0]
        finally:
            server.stop()
    return {
        "seconds": parts,
        "whole": round(sum(parts.values()), 1),
        "updates": run["done"],
        "clicks": 4,  # template, make few-step, use it, run
        "trouble": front.trouble,
    }


def picture(front: Any) -> float:
    """Seconds of a run of the graph that is open; raises where it gives no picture."""
    begun = time.monotonic()
    entry = front.queue()
    if entry["status"]["status_str"] != "success" or not front.images(entry):
        raise RuntimeError(f"no picture: {entry['status']}")
    return round(time.monotonic() - begun, 1)


def wait(front: Any, done: Any) -> None:
    """Until the state that the panel shows is the one."""
    end = time.monotonic() + PATIENCE
    while not done(state := front.page.evaluate(STATE)):
        if state in ("failed", "stopped") or time.monotonic() > end:
            raise RuntimeError(f"the run is {state or 'not there'}")
        front.page.wait_for_timeout(200)


if __name__ == "__main__":
    main()
