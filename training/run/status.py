"""How a run stands: the one account of it that the job writes, the live run sends and the list of runs reads.

folder/status.json holds a `Status`. What is known from the folder itself (its name, the pictures and the
graph that lie in it) is read from there.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..methods.matching import SHOWN
from ..trajectories import folders
from .probe import FACES
from .progress import Progress
from .run import Run

STATUS, PROMPT, PREVIEWS = "status.json", "prompt.json", "previews"
NOTES = (
    "name",
    "model",
    "started_at",
    "lora",
    "samples_per_second",
    "memory",
    "weights",
    "error",
    "plan",
    "log",
    "prompts",
    "family",
    "processes",
)
FROM_THE_FOLDER = ("id", "previews", "resumable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment.

    id           the name of its folder
    name, model  for people: of the LoRA, and of what it is trained for
    method, steps   of its config
    state        "sampling", "running", "paused", "stopped", "finished" or "failed"; read from a file also
                 "elsewhere", while a process is at it
    stage        what is under way
    step, total  of the whole run, trajectories included; done, updates: of the training alone
    skipped      updates left out as not finite
    loss, fidelity, best   the last ones, and the best fidelity; None where there is none, or no finite number
    before       fidelity of the untrained model; kept: the update whose adapter is the best, and is saved
    warmed       whether it began with a LoRA
    judged_by    what decides which is best, "fidelity" or "distance"
    distance     of distributions, [[update, value, low, high]], and diversity likewise (`sight.Faces`), where
                 they are known; seen_in: what they are seen in, one of `sight`'s
    gap, cosine  of the two scores of a matching run (`methods.matching.matched`): running means over its
                 updates; None where there are none
    seconds_left           None where unknown
    samples_per_second, memory   as measured; memory in bytes
    weights      where the model's weights live and why, a message as JSON; None where they have no choice
    started_at, saved_at   seconds since 1970
    lora         the file's name, once there is one
    error        what ended it: a message as JSON (`Message.to_dict`) or plain text
    plan         what the memory plan decided, a message as JSON; None if unknown
    prompts      of the pictures shown, one for each row of them or one for all, where they are known
    family       of the model, as `models.families` names it; "" where unknown
    log          what happened on the way, as `events` has it, oldest first
    processes    of a run of several: [{"rank", "host", "memory", "micro"}], memory in bytes
    previews     the updates of which a picture was kept, rising
    resumable    whether the graph that it can be queued again from was kept
    """

    method: str
    steps: int
    state: str
    step: int
    total: int
    done: int
    updates: int
    saved_at: int
    started_at: int
    id: str = ""
    name: str = ""
    model: str = ""
    stage: str = "training"
    skipped: int = 0
    loss: float | None = None
    fidelity: float | None = None
    best: float | None = None
    before: float | None = None
    kept: int | None = None
    distance: list = dataclasses.field(default_factory=list)
    diversity: list = dataclasses.field(default_factory=list)
    seen_in: str | None = None
    gap: float | None = None
    cosine: float | None = None
    warmed: bool = False
    judged_by: str = "fidelity"
    seconds_left: float | None = None
    samples_per_second: float | None = None
    memory: int | None = None
    weights: dict | None = None
    lora: str | None = None
    error: dict | str | None = None
    plan: dict | None = None
    prompts: list = dataclasses.field(default_factory=list)
    family: str = ""
    log: list = dataclasses.field(default_factory=list)
    processes: list = dataclasses.field(default_factory=list)
    previews: list = dataclasses.field(default_factory=list)
    resumable: bool = False

    @classmethod
    def of(
        cls,
        run: Run,
        folder: Path,
        state: str,
        now: float,
        notes: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> "Status":
        """How a run stands that is in memory. notes: those of NOTES that are known."""
        own = {
            "method": run.config.method,
            "steps": run.config.steps,
            "state": state,
            "step": progress.step if progress else run.learners.ahead + run.done,
            "total": progress.total if progress else run.learners.first + run.config.updates,
            "done": run.done,
            "updates": run.config.updates,
            "skipped": run.learners.skipped,
            "loss": last(run.loss),
            "fidelity": last(run.probe.fidelity),
            "best": run.probe.best and run.probe.best.fidelity,
            "before": before(run.probe.fidelity),
            "kept": run.probe.best and run.probe.best.update,
            **{name: [list(point) for point in run.probe.points(name)] for name in FACES},
            **{name: run.learners.told.get(name) for name in SHOWN},
            "warmed": run.student.warmed,
            "judged_by": run.probe.by,
            "seen_in": run.probe.eye.sight.seen_in if run.probe.faces else None,
            "stage": progress.stage if progress else "training",
            "seconds_left": progress.seconds_left if progress else None,
            "saved_at": round(now),
            "started_at": round(now),
        }
        known = {name: notes[name] for name in NOTES if name in notes}  # others may add to them meanwhile
        return cls(**{**own, **known, **_of_folder(folder)})

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """How the run of that folder stands, None where its status can't be read. One that says that it runs
        is another process's, "elsewhere", or was cut off: it is paused.
        """
        try:
            found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
            values = _of_version_1(found) if "notes" in found else found
            known = {field.name for field in dataclasses.fields(cls)}
            status = cls(**{name: value for name, value in values.items() if name in known})
            runs = status.state in ("running", "sampling")
            if runs and folders.in_use(folder):
                return dataclasses.replace(status, state="elsewhere", **_of_folder(folder))
            # what was under way when it was written is over
            return dataclasses.replace(
                status,
                state="paused" if runs else status.state,
                stage="training",
                seconds_left=None,
                **_of_folder(folder),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def to_file(self) -> dict[str, Any]:
        """What is written: all that the folder itself does not tell."""
        return {name: value for name, value in self.to_dict().items() if name not in FROM_THE_FOLDER}


def notes_in(folder: Path) -> dict[str, Any]:
    """What was noted on the run of that folder before; {} where nothing can be read."""
    status = Status.read(folder)
    found = {name: getattr(status, name) for name in NOTES} if status else {}
    return {name: value for name, value in found.items() if value not in (None, "", []) and name != "error"}


def previews(folder: Path) -> list[int]:
    """The updates of which a picture was kept, rising."""
    path = folder / PREVIEWS
    if not path.is_dir():
        return []
    return sorted(int(f.stem) for f in path.iterdir() if f.suffix == ".png" and f.stem.isdecimal())


def last(points: list[tuple[int, float]]) -> float | None:
    """The last value of a history [(update, value)]; None where there is none, or no finite number."""
    return points[-1][1] if points and math.isfinite(points[-1][1]) else None


def before(points: list[tuple[int, float]]) -> float | None:
    """What a history of fidelity begins with, the untrained model's; None where that was not measured."""
    return last(points[:1]) if points and points[0][0] == 0 else None


def _of_folder(folder):
    return {"id": folder.name, "previews": previews(folder), "resumable": (folder / PROMPT).exists()}


def _of_version_1(found):
    """A status as it was written before it was a `Status`: what whoever ran it added lies under "notes"."""
    notes = dict(found["notes"])
    values = {**found, **notes, "step": found["done"], "updates": found["total"]}
    return {"started_at": found["saved_at"], **values}
