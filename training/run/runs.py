"""The runs of a folder as a list: what the panel shows of those that are over, or of another process.

A run is a folder that `job` named and wrote. Beside the job's own files it may hold `prompt.json`, to queue
it again from, and `previews/`, columns of pictures: teacher.png, before.png and one for each update at which
fidelity was measured.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...diffusion.faults import Failed, NotFound
from ..formats.files import write_json
from ..trajectories import folders
from .job import STATE, history
from .status import PREVIEWS, STATUS, Status, previews

ID = re.compile(r"[0-9a-f]{24}")
COLUMNS = ("teacher", "before")
MOST_POINTS = 4000


def find(root: Path, name: str) -> Path:
    """The folder of the run of that id; raises LookupError for anything else.

    Ids are compared with what is there, never joined to a path.
    """
    there = root.iterdir() if ID.fullmatch(name) and root.is_dir() else ()
    folder = next((f for f in there if f.name == name), None)
    if folder is None or not folders.is_ours(folder):
        raise NotFound("There is no run {name!r}. It may have been deleted.", name=name[:40])
    return folder


def listing(root: Path, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every run below `root` as `summary` tells it, newest first, but for those ids."""
    there = root.iterdir() if root.is_dir() else ()
    wanted = [folder for folder in there if ID.fullmatch(folder.name) and folder.name not in without]
    found = [run for run in map(summary, wanted) if run is not None]
    return sorted(found, key=lambda run: -run["started_at"])


def summary(folder: Path) -> dict[str, Any] | None:
    """A run's `Status` as a JSON-able dict, None where it can't be read."""
    status = Status.read(folder)
    return status and status.to_dict()


def settings(folder: Path) -> dict[str, Any]:
    """The settings that the run really has, by the names of `DistilConfig`; {} where they can't be read."""
    return _manifest(folder).get("config", {})


def _manifest(folder: Path) -> dict[str, Any]:
    """What a run was asked for; {} where it can't be read."""
    try:
        spec = json.loads((folder / folders.MANIFEST).read_text(encoding="utf-8"))["spec"]
        return {name: dict(spec[name]) for name in ("config", "about") if name in spec}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def like(root: Path, family: str) -> list[dict[str, Any]]:
    """The runs of that family as `summary` tells them, newest first, with the "shape" of their samples ([]
    where unknown).
    """
    found = [run for run in listing(root) if run["family"] == family]
    return [{**run, "shape": _manifest(root / run["id"]).get("about", {}).get("shape", [])} for run in found]


def rename(folder: Path, name: str) -> None:
    """Call a run that is over by another name; raises LookupError where its status can't be read, and
    RuntimeError while another process is at it.
    """
    status = Status.read(folder)
    if status is None:
        raise NotFound("This run's status can't be read. Queue it again.")
    if status.state == "elsewhere":
        raise Failed("This run is under way in another process. Rename it once it is over.")
    write_json(folder / STATUS, dataclasses.replace(status, name=name).to_file())


def preview(folder: Path, column: str) -> Path:
    """The file of a column of pictures; raises LookupError for one that is not there."""
    known = column in COLUMNS or column in map(str, previews(folder))
    path = folder / PREVIEWS / f"{column}.png"
    if not known or not path.exists():
        raise NotFound("This run has no pictures {column!r}.", column=column[:40])
    return path


def curves(folder: Path) -> dict[str, Any]:
    """{"loss", "fidelity", "updates"} of a run on disk, as far as it was saved."""
    loss, fidelity = history(folder / STATE) if (folder / STATE).exists() else ([], [])
    return shown(loss, fidelity)


def shown(loss: list, fidelity: list) -> dict[str, Any]:
    """Histories [(update, value)] for a browser: few enough points, and none that JSON has no word for."""
    return {"loss": thin(_plain(loss)), "fidelity": _plain(fidelity), "updates": loss[-1][0] if loss else 0}


def thin(points: list, most: int = MOST_POINTS) -> list:
    """At most `most` of the points [(x, y)], in order: the lowest and the highest of equal stretches."""
    if len(points) <= most:
        return points
    out, parts = [], most // 2
    for n in range(parts):
        part = points[n * len(points) // parts : (n + 1) * len(points) // parts]
        out += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return out


def _plain(points):
    return [(int(x), y) for x, y in points if isinstance(y, (int, float)) and abs(y) < float("inf")]
