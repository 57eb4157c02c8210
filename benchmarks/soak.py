"""Does anything grow? Many jobs on a real server, one after the other, with the panel open in a real browser.

    COMFYUI_PATH=... python benchmarks/soak.py [--jobs 200] [--minutes 60] [--json FILE] [--tiny]

A server (`--cpu`) and a Chromium of their own. The page queues the jobs, spread over the minutes, or longer
where the machine is slower: pictures, comparisons, short distillations of the demo teacher, some of them
paused, left alone for a picture and resumed, some stopped, some cancelled; runs are deleted when there are
more than a few. After each job the page looks at a run in the panel, and these are measured:

server    resident memory, open files, threads
page      JavaScript heap, DOM nodes, listeners and our own elements after a collection of garbage; all the
          browser's memory (PSS)
disk      what the server has written below its base directory

At the end all runs are deleted, and what is left on disk is told by kind. A slope is that of a straight line
through what was measured after the first fifth, its interval that of 95 % of lines through residuals drawn in
blocks.
"""

import argparse
import collections
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUEUE = """async (prompt) => {
  const { api } = await import("/scripts/api.js");
  return (await api.queuePrompt(0, { output: prompt, workflow: app.graph.serialize() })).prompt_id;
}"""
# in one go, as rows go while runs are deleted; share: which one, of all
CLICK_A_ROW = """(share) => {
  const rows = [...document.querySelectorAll(".fewstep-row")];
  rows[Math.floor(share * rows.length)]?.click();
  return rows.length;
}"""
# of all that has HTMLElement's prototype, which other prototypes have too
OURS = """function () {
  const elements = this.filter((one) => one.constructor?.prototype !== one);
  return elements.filter((one) => (one.getAttribute("class") ?? "").includes("fewstep")).length;
}"""
MIB = 2**20
PATIENCE = 900  # seconds that a busy machine may take to start, or for a job
KEPT = 6  # runs that are left in the list
WARM = 0.2  # of what is measured, not used for slopes
BLOCK, DRAWS = 8, 2000
TRAINING, LONG = 10, 5000  # updates, and as many more as make a run another
# what a slope is told of: name in the series, unit
SLOPES = {
    "server_mib": "MiB",
    "server_files": "files",
    "server_threads": "threads",
    "heap_mib": "MiB",
    "nodes": "nodes",
    "listeners": "listeners",
    "our_elements": "elements",
    "browser_mib": "MiB",
}


class Soak:
    """The server, the page, and what was done and seen. lora: the files of all runs there were."""

    def __init__(self, server: Any, front: Any):
        self.server, self.front, self.page = server, front, front.page
        self.done, self.failed = collections.Counter(), []
        self.series, self.loras = [], set()
        self.session = self.page.context.new_cdp_session(self.page)
        self.session.send("Performance.enable")
        self.began = time.monotonic()

    # ---- jobs ----------------------------------------------------------------------------------

    def queue(self, kind: str, prompt: dict) -> str:
        """Queue a job from the page, so that its events come there."""
        self.done[kind] += 1
        return self.page.evaluate(QUEUE, prompt)

    def finish(self, kind: str, prompt_id: str) -> None:
        """Wait for a job's end, and note where it failed; the host calls a paused one interrupted."""
        entry = self.server.result(prompt_id, PATIENCE)
        if entry["status"]["status_str"] != "success" and kind != "paused":
            self.failed.append({"kind": kind, "messages": str(entry["status"]["messages"][-1])[:300]})

    def job(self, kind: str, name: str, **changes: Any) -> None:
        """A job from its beginning to its end."""
        self.finish(kind, self.queue(kind, changed(name, **changes)))

    def picture(self, i: int) -> None:
        self.job("picture", "sample_in_4_steps", n5__noise_seed=i)

    def comparison(self, i: int) -> None:
        self.job(
            "comparison",
            "how_many_steps",
            n3__samplers="auto, order 1",
            n3__steps="2",
            n3__seed=i,
            n5__noise_seed=i,
        )

    def distillation(self, i: int) -> None:
        method = ("auto", "reflow", "consistency")[i % 3]
        self.job("distillation", "distil_in_one_click", **_run(i, TRAINING), n3__method=method)

    def paused(self, i: int) -> None:
        """A run that is paused, a picture, and the run again until it is stopped."""
        prompt = changed("distil_in_one_click", **_run(i, LONG))
        begun = self.queue("paused", prompt)
        self.order(f"soak-{i}", "pause")
        self.finish("paused", begun)
        self.picture(i)
        again = self.queue("resumed", prompt)
        self.order(f"soak-{i}", "stop")
        self.finish("resumed", again)

    def cancelled(self, i: int) -> None:
        """A run that the queue's own button ends; the host calls that a failure."""
        begun = self.queue("cancelled", changed("distil_in_one_click", **_run(i, LONG)))
        self.wait_for(f"soak-{i}")
        self.server.post("/interrupt", {})
        self.server.result(begun, PATIENCE)

    def run_named(self, name: str) -> dict | None:
        runs = self.server.get("/fewstep/runs")["runs"]
        return next((run for run in runs if run["name"] == name), None)

    def wait_for(self, name: str) -> dict:
        """A run, when it has trained for a few updates since it went on."""

        def trains():
            run = self.run_named(name)
            return run if run and run["state"] == "running" and run["done"] > 2 else None

        return self.server.wait(trains, PATIENCE)

    def order(self, name: str, what: str) -> None:
        self.server.post(f"/fewstep/runs/{self.wait_for(name)['id']}/{what}", {})

    def tidy(self, most: int) -> None:
        """Delete the oldest runs above that number."""
        runs = self.server.get("/fewstep/runs")["runs"]
        self.loras |= {run["lora"] for run in runs if run["lora"]}
        for run in runs[most:]:
            self.server.post(f"/fewstep/runs/{run['id']}/delete", {})
            self.done["deletion"] += 1

    def look(self) -> None:
        """Do in the panel what a user does: open a run, and an older picture of it."""
        if self.page.evaluate(CLICK_A_ROW, random.random()):
            slider = self.page.locator(".fewstep-slider")
            if slider.count() and slider.first.is_visible():
                slider.first.focus()
                self.page.keyboard.press("ArrowLeft")
            self.page.wait_for_timeout(500)

    # ---- what is measured ----------------------------------------------------------------------

    def measure(self) -> None:
        """A point of the series."""
        self.session.send("HeapProfiler.collectGarbage")
        found = {one["name"]: one["value"] for one in self.session.send("Performance.getMetrics")["metrics"]}
        process = Path(f"/proc/{self.server.process.pid}")
        point = {
            "seconds": round(time.monotonic() - self.began, 1),
            "jobs": jobs(self.done),
            "server_mib": _kib(process / "status", "VmRSS") / 1024,
            "server_threads": len(list((process / "task").iterdir())),
            "server_files": len(list((process / "fd").iterdir())),
            "heap_mib": found["JSHeapUsedSize"] / MIB,
            "nodes": found["Nodes"],
            "listeners": found["JSEventListeners"],
            "our_elements": self.our_elements(),
            "browser_mib": sum(
                _kib(Path(f"/proc/{one['id']}/smaps_rollup"), "Pss") for one in self.front.processes()
            )
            / 1024,
            "disk_mib": sum(file.stat().st_size for file in files(self.server.base)) / MIB,
        }
        self.series.append({key: round(value, 2) for key, value in point.items()})

    def our_elements(self) -> int:
        """How many elements of the panel and the plots are alive, also those that are on no page."""
        send = self.session.send
        prototype = send("Runtime.evaluate", {"expression": "HTMLElement.prototype"})["result"]["objectId"]
        alive = send("Runtime.queryObjects", {"prototypeObjectId": prototype})["objects"]["objectId"]
        ours = {"functionDeclaration": OURS, "objectId": alive, "returnByValue": True}
        count = send("Runtime.callFunctionOn", ours)["result"]["value"]
        for handle in (prototype, alive):
            send("Runtime.releaseObject", {"objectId": handle})
        return count

    def left(self) -> dict:
        """{kind: count or names} of the files that are there when every run was deleted."""
        self.tidy(0)
        found = collections.defaultdict(list)
        for file in files(self.server.base):
            found[self.owner(file.relative_to(self.server.base))].append(file)
        counted = ("LoRAs of runs", "pictures of jobs", "the host's", "trajectories, a cache")
        return {
            kind: len(those)
            if kind in counted
            else [str(file.relative_to(self.server.base)) for file in those]
            for kind, those in sorted(found.items())
        }

    def owner(self, path: Path) -> str:
        """Whose a file is."""
        if path.name.endswith((".part", ".tmp")) or path.parts[0] == "tmp":
            return "unfinished"
        if path.parts[:2] == ("models", "loras"):
            return "LoRAs of runs" if path.name in self.loras else "LoRAs of no run"
        if path.parts[:2] == ("user", "fewstep"):
            return "trajectories, a cache" if path.parts[2] == "trajectories" else "of runs"
        if path.parts[0] in ("output", "temp"):
            return "pictures of jobs" if path.suffix == ".png" else "other"
        return (
            "the host's"
            if path.parts[0] in ("user", "input", "comfy.db", "comfy.db.lock", "server.log")
            else "other"
        )


def changed(name: str, **changes: Any) -> dict:
    """One of the tests' workflows with other inputs."""
    from comfy_server import workflow

    return workflow(name, **changes)


def _run(i, updates):
    settings = {"name": f"soak-{i}", "updates": updates + i, "batch": 2}  # of one seed: trajectories are kept
    return {f"n3__{key}": value for key, value in settings.items()}


def jobs(done: collections.Counter) -> int:
    """How many were queued."""
    return done.total() - done["deletion"]


def files(base: Path) -> list[Path]:
    """What was written below a base directory, but for the pack itself."""
    return [file for file in base.rglob("*") if file.is_file() and file.relative_to(base).parts[0] != PACKS]


PACKS = "custom_nodes"


def _kib(file, name):
    """A figure of a file of /proc; 0 where its process is gone."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


# ---- slopes ----------------------------------------------------------------------------------------


def slope(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> tuple[float, float, float]:
    """(slope, low, high): of the straight line of least squares, and 95 % of those through residuals that
    are drawn anew in blocks, since one measurement is like the next.
    """
    fitted = np.polyval(np.polyfit(x, y, 1), x)
    rest = y - fitted
    block = min(BLOCK, len(x))
    starts = generator.integers(0, len(x) - block + 1, (DRAWS, -(-len(x) // block)))
    places = (starts[..., None] + np.arange(block)).reshape(DRAWS, -1)[:, : len(x)]
    slopes = np.polyfit(x, (fitted + rest[places]).T, 1)[0]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(np.polyfit(x, y, 1)[0]), float(low), float(high)


def slopes(series: list[dict]) -> dict[str, dict]:
    """{name: slope, its interval, each in units per hour and per 100 jobs, and the level at both ends}."""
    used = series[int(WARM * len(series)) :]
    out, generator = {}, np.random.default_rng(0)
    for name, unit in SLOPES.items():
        y = np.array([point[name] for point in used])
        row = {"unit": unit}
        for per, x in (("hour", "seconds"), ("100 jobs", "jobs")):
            scale = 3600 if x == "seconds" else 100
            at = np.array([point[x] for point in used], dtype=float) / scale
            row[per] = [round(value, 4) for value in slope(at, y, generator)]
        some = max(1, len(used) // 10)
        row["from"], row["to"] = (round(statistics.fmean(part), 2) for part in (y[:some], y[-some:]))
        out[name] = row
    return out


# ---- the whole -------------------------------------------------------------------------------------

PICTURES = ("picture",) * 3
PLAN = (
    *("picture", "distillation", *PICTURES, "paused", *PICTURES),
    *("comparison", *PICTURES, "distillation", *PICTURES, "cancelled", "picture"),
)


def soak(run: Soak, count: int, seconds: float, keep: Callable[[], None]) -> None:
    """At least that many jobs, over at least those seconds."""
    i = 0
    while jobs(run.done) < count or time.monotonic() - run.began < seconds:
        due = run.began + seconds * jobs(run.done) / count
        run.page.wait_for_timeout(1000 * max(0.0, min(30.0, due - time.monotonic())))
        if time.monotonic() < due:
            continue
        getattr(run, PLAN[i % len(PLAN)])(i)
        run.tidy(KEPT)
        run.look()
        run.measure()
        i += 1
        if i % 5 == 0:
            print(json.dumps(run.series[-1]), flush=True)
            keep()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200, help="queued prompts, at least (200)")
    parser.add_argument("--minutes", type=float, default=60.0, help="over how long, at least (60)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a dozen jobs, to see that it works")
    options = parser.parse_args()
    if options.tiny:
        options.jobs, options.minutes = 12, 0.0
    from comfy_server import Server, link_pack
    from frontend import FOLDER, Frontend
    from playwright.sync_api import sync_playwright

    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    random.seed(0)
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        link_pack(Path(base), FOLDER)
        (Path(base) / "tmp").mkdir()
        os.environ["TMPDIR"] = str(Path(base) / "tmp")  # of the server
        server = Server(Path(base), folder, seconds=PATIENCE)
        try:
            front = Frontend(playwright.chromium.launch(executable_path=program, args=FLAGS), server)
            front.page.set_default_timeout(1000 * PATIENCE)
            front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": True})
            front.open_tab()
            run = Soak(server, front)

            def keep() -> dict:
                found = {
                    "done": dict(run.done),
                    "jobs": jobs(run.done),
                    "minutes": round((time.monotonic() - run.began) / 60, 1),
                    "failed": run.failed,
                    "trouble": front.trouble,
                    "slopes": slopes(run.series),
                    "series": run.series,
                }
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
                return found

            soak(run, options.jobs, 60 * options.minutes, keep)
            left = run.left()
            found = {"left": left, **keep()}
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
            tell(found)
        finally:
            server.stop()


def tell(found: dict) -> None:
    """Print the figures."""
    print(
        f"{found['jobs']} jobs in {found['minutes']} minutes: {found['done']}, {len(found['failed'])} failed"
    )
    for failure in found["failed"][:5]:
        print(f"  {failure}")
    print(f"errors of ours in the console: {found['trouble'] or 'none'}")
    for name, row in found["slopes"].items():
        hour, of_jobs = ("{:+.2f} [{:+.2f}, {:+.2f}]".format(*row[per]) for per in ("hour", "100 jobs"))
        levels = f"{row['from']:9.1f} -> {row['to']:9.1f} {row['unit']:9}"
        print(f"{name:15} {levels} {hour} an hour, {of_jobs} each 100 jobs")
    print(f"left on disk with every run deleted: {found['left']}")


if __name__ == "__main__":
    main()
