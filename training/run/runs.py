"""The runs of a folder as a list: what the panel shows of those that are over, or of another process.

A run is a folder that `job` named and wrote. Beside the job's own files it may hold `prompt.json`, to queue
it again from, and `previews/`, columns of pictures: teacher.png, before.png and one for each update at which
fidelity was measured.
"""

import json
import re

from ...diffusion.faults import NotFound
from ..trajectories import folders
from .job import STATE, STATUS, history

ID = re.compile(r"[0-9a-f]{24}")
PROMPT, PREVIEWS = "prompt.json", "previews"
COLUMNS = ("teacher", "before")
MOST_POINTS = 4000


def find(root, name):
    """The folder of the run of that id; raises LookupError for anything else: ids are compared with what is
    there, never joined.
    """
    folder = (
        next((f for f in root.iterdir() if f.name == name), None)
        if ID.fullmatch(name) and root.is_dir()
        else None
    )
    if folder is None or not folders.is_ours(folder):
        raise NotFound("There is no run {name!r}. It may have been deleted.", name=name[:40])
    return folder


def listing(root, without=()):
    """Every run below `root` as `summary` tells it, newest first, but for those ids."""
    folders = (
        [f for f in root.iterdir() if ID.fullmatch(f.name) and f.name not in without] if root.is_dir() else []
    )
    found = [run for run in map(summary, folders) if run is not None]
    return sorted(found, key=lambda run: -run["started_at"])


def summary(folder):
    """A run as a JSON-able dict, None where its status can't be read. One that says that it runs was cut off:
    it is paused.
    """
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        notes, state = status["notes"], status["state"]
        return {
            "id": folder.name,
            "name": notes.get("name", ""),
            "model": notes.get("model", ""),
            "method": status["method"],
            "steps": status["steps"],
            "state": "paused" if state == "running" else state,
            "stage": "training",
            "step": status["done"],
            "total": status["total"],
            "done": status["done"],
            "updates": status["total"],
            "skipped": status["skipped"],
            "loss": status["loss"],
            "fidelity": status["fidelity"],
            "best": status["best"],
            "seconds_left": None,
            "samples_per_second": notes.get("samples_per_second"),
            "memory": notes.get("memory"),
            "started_at": notes.get("started_at", status["saved_at"]),
            "saved_at": status["saved_at"],
            "lora": notes.get("lora"),
            "error": notes.get("error"),
            "previews": previews(folder),
            "resumable": (folder / PROMPT).exists(),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def previews(folder):
    """The updates of which a picture was kept, rising."""
    path = folder / PREVIEWS
    return (
        sorted(int(f.stem) for f in path.iterdir() if f.suffix == ".png" and f.stem.isdecimal())
        if path.is_dir()
        else []
    )


def preview(folder, column):
    """The file of a column of pictures; raises LookupError for one that is not there."""
    path = folder / PREVIEWS / f"{column if column in COLUMNS else ''}.png"
    if column in map(str, previews(folder)):
        path = folder / PREVIEWS / f"{int(column)}.png"
    if not path.exists():
        raise NotFound("This run has no pictures {column!r}.", column=column[:40])
    return path


def curves(folder):
    """{"loss", "fidelity", "updates"} of a run on disk, as far as it was saved."""
    loss, fidelity = history(folder / STATE) if (folder / STATE).exists() else ([], [])
    return shown(loss, fidelity)


def shown(loss, fidelity):
    """Histories [(update, value)] for a browser: few enough points, and none that JSON has no word for."""
    return {"loss": thin(_plain(loss)), "fidelity": _plain(fidelity), "updates": loss[-1][0] if loss else 0}


def thin(points, most=MOST_POINTS):
    """At most that many of the points [(x, y)]: of equal stretches the lowest and the highest, in their
    order.
    """
    if len(points) <= most:
        return points
    out, parts = [], most // 2
    for n in range(parts):
        part = points[n * len(points) // parts : (n + 1) * len(points) // parts]
        out += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return out


def _plain(points):
    return [(int(x), y) for x, y in points if isinstance(y, (int, float)) and abs(y) < float("inf")]
