"""A run on disk: saved as it goes, and continued, bit for bit, by whoever asks for the same again.

    with Job(folder, run, about) as job:        # goes on where the folder's state ends
        for progress in job.progress(): ...     # cancel at any time: the state is saved on the way out

    folder/manifest.json        what the run is of: its config and `about`; another run's folder is refused
    folder/state.safetensors    adapter, average, best, optimiser, generator, draws, history: whole or not
                                there
    folder/status.json          for people and the panel: a `status.Status`, written anew four times a minute

A state is written every two minutes, seldom enough to take a few percent of the time, and on every way out:
end, stop, cancel, error, a full memory, a SIGTERM (`interrupts`, and in the host `nodes.comfy.termination`).
It goes to a temporary file that is synced and renamed. Killed at any moment a run loses the updates since
then, and no file. A full disk is reported and the run goes on: the state before it stays whole.
"""

import json
import logging
import re
import shutil
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open

from ...diffusion.faults import BadFile, BadValue, Failed, Fault, Message, NoMemory
from .. import methods
from ..formats.files import cause, check_folder, is_held, read_tensors, write_json, write_tensors
from ..models.memory_errors import is_out_of_memory, raised_as, recover
from ..trajectories import folders
from .config import DistilConfig
from .events import MOST, Events, event
from .following import handed_on
from .progress import Progress
from .remarks import Remarks
from .run import Run
from .status import STATUS, Status, notes_in

VERSION = 1
EVERY = 120.0  # seconds from one state to the next
TOLD = 15.0  # and from one status to the next
SHARE = 0.03  # of a run's time that writing them may take
STATE = "state.safetensors"
# what runs write, which is never put over what is somebody else's
WRITTEN = re.compile(r".*\.safetensors|(run|status)\.json|curves\.png")
# of the adapter: in a state itself, average, best, AdamW's two, another round's teacher; twice in saving
COPIES, ROLE = 12, 4  # and of the adapter of each role
METADATA_KEY = "fewstep.state"
CUT = ("micro", "checkpointing", "chunk", "lora_precision")  # how the work is cut, and the result rounded
# settings that older runs lack, and what those had
LATER = {
    "optimizer": "adamw",
    "real": "pictures",
    "points": "pictures",
    "span": "segment",
    "balance": "distance",
    "divergence": "kl",
    "anchor": 1.0,
    "lead": 3,
    "role_lr": 10.0,
}
# settings of the adapters beside the student, which a method without any does not read
OF_ROLES = {*LATER, "real_updates", "fake_updates"} - {"optimizer"}
# of a run of the whole way, which is called nothing by them, as before there were parts
PART = {"from_percent": 0.0, "to_percent": 1.0}
NOTHING = types.MappingProxyType({})
MOST_TEXT = 2000  # characters of an error that are kept


class Job:
    """`run` in `folder`. about: a JSON-able dict that tells runs of one config apart (model, prompts); every:
    seconds of `clock` between two states.

    notes     what whoever runs it adds to its status, by the names of `status.NOTES`
    remarks   what its user should know of it before it takes long
    resumed   the update at which it went on, 0 for a new one
    unsaved   why the last state could not be written, None where it was

    Raises ValueError when the folder is another run's or its state is damaged, OSError when it can't be
    written, and RuntimeError while another process is at it.
    """

    def __init__(
        self,
        folder: str | Path,
        run: Run,
        about: dict,
        every: float = EVERY,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.run, self.every, self.now, self.clock = run, every, now, clock
        self.folder = check_folder(
            folder, (COPIES + ROLE * len(run.learners.roles)) * run.student.lora.bytes + (1 << 20)
        )
        self.about = json.loads(json.dumps(about))
        self.resumed = 0
        self.unsaved: Message | None = None
        self.notes: dict[str, Any] = {}
        self.remarks = Remarks(run)
        self._lock = None
        self._wanted = manifest(run.config, self.about)

    def __enter__(self) -> "Job":
        folders.tidy(self.folder)
        self._lock = folders.lock(self.folder, alone=True)
        if self._lock is None:
            raise Failed(
                "{folder} must be free to run in, and another process is at it. Wait for it, or stop it.",
                folder=self.folder,
            )
        try:
            _claim(self.folder, self._wanted)
            self.notes = notes_in(self.folder)
            self.notes.setdefault("started_at", round(self.now()))
            file = self.folder / STATE
            found = handed_on(self.run.ranks, load_state(file) if file.exists() else None)
            if found:
                self._restore(*found)
                self.resumed = self.run.done
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.notes["error"] = _told(error) if isinstance(error, Exception) else None
        if error is not None and is_out_of_memory(error):
            recover()  # writing takes some too
        try:
            self.save(self._ending(kind), required=kind is None)
        finally:
            self._lock.close()

    def _restore(self, tensors, numbers):
        try:
            self.run.restore(tensors, numbers)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise BadValue(
                "{file} must be the state of this run, is of another version or damaged ({error}). "
                "Delete it to start again.",
                file=self.folder / STATE,
                error=error,
            ) from error

    def _ending(self, kind):
        """The state in which a run ends, by the exception that ends it."""
        if kind and issubclass(kind, Exception):
            return "failed"
        if self.run.done >= self.run.config.updates:
            return "finished"
        if kind is None:
            return "stopped" if self.run.stopped else "paused"
        return "paused"

    def progress(self) -> Iterator[Progress]:
        """The run's `Progress`, with states saved on the way."""
        if self.run.learners.made():
            self.log(Message("Went on at update {done}.", done=self.run.done))
            self.remarks.new()  # is in the log
        else:
            self.remark(*self.remarks.said)
        _tell(self, "running")
        made, last, cost, events = self.run.learners.made(), self.clock(), 0.0, Events(self.run)
        told = last
        for progress in _progress_of(self.run):
            self.log(*events.new(), *self.remarks.new())
            began = self.clock()
            if self.run.learners.made() > made and began - last >= max(self.every, cost / SHARE):
                made = self.run.learners.made()
                self.save("running", required=False, progress=progress)
                last = self.clock()
                cost = last - began
            elif began - told >= TOLD:
                told = began
                _tell(self, "running", progress, required=False)
            yield progress

    def remark(self, *messages: Message) -> None:
        """Note them, except those that the log has: a run may begin more than once before an update."""
        known = [entry["message"] for entry in self.notes.get("log") or []]
        self.log(*(message for message in messages if message.to_dict() not in known))

    def log(self, *messages: Message) -> None:
        """Note what happened, with the update and the time."""
        known, done, now = self.notes.get("log") or [], self.run.done, self.now()
        if messages:
            self.notes["log"] = [*known, *(event(message, done, now) for message in messages)][-MOST:]

    def save(self, state: str, required: bool = True, progress: Progress | None = None) -> None:
        """Write the run's state. Where disk or memory refuse: raises that when `required`, else logs it.

        progress: what the run is at; None once it is over.
        """
        try:
            if self.run.learners.made():
                tensors, numbers = self.run.state(finished=state == "finished")
                save_state(self.folder / STATE, tensors, numbers)
            _tell(self, state, progress)
            self.unsaved = None
        except Exception as error:
            on_disk = isinstance(error, OSError)
            if not on_disk and not is_out_of_memory(error):
                raise
            self.unsaved = _unwritten(self.folder, error)
            if required and not (on_disk and is_held(error)):
                raise (BadFile if on_disk else NoMemory)(self.unsaved) from error
            self.log(self.unsaved)
            logging.warning("Fewstep: %s", self.unsaved)


def _progress_of(run):
    """The run's progress; where memory runs out for good, that is told by name."""

    def fault():
        return NoMemory(
            "Memory ran out after {done} of {updates} updates, and what was learnt is kept. Close what "
            "else uses memory and start the same again, or choose a smaller latent or a lower rank than "
            "{rank}.",
            done=run.done,
            updates=run.config.updates,
            rank=run.config.rank,
        )

    with raised_as(fault):
        yield from run.progress()


def _tell(job, state, progress=None, required=True):
    """Write the status. Where it is held, or not required: whoever reads it will read a later one."""
    status = Status.of(job.run, job.folder, state, job.now(), job.notes, progress)
    try:
        write_json(job.folder / STATUS, status.to_file())
    except OSError as error:
        if required and not is_held(error):
            raise


def _unwritten(folder, error):
    """Why a state is not on disk."""
    if not isinstance(error, OSError):
        return Message(
            "The state can't be written to {folder}, as memory ran out. Close what else uses it; the state "
            "before is whole.",
            folder=folder,
        )
    if is_held(error):
        return Message(
            "The state in {folder} can't be replaced, as another program has it open ({cause}). Close that; "
            "the state before is whole.",
            folder=folder,
            cause=cause(error),
        )
    return Message(
        "{folder} can't be written ({cause}). Free space; the state before is whole.",
        folder=folder,
        cause=cause(error),
    )


def _told(error):
    """An exception as a status keeps it: a message of ours with its fields, what others say as text."""
    return error.message.to_dict() if isinstance(error, Fault) else str(error)[:MOST_TEXT]


# ---- which run a folder is of ------------------------------------------------------------------


def manifest(config: DistilConfig, about: dict) -> dict:
    """What makes two runs the same, as it is written. How the work is cut to fit the memory does not, nor how
    the result is rounded for its file.
    """
    left_out = {*CUT, *(PART if config.is_whole else ())}
    if not methods.get(config.method).roles(config):
        left_out |= OF_ROLES
    left_out |= {name for name, usual in LATER.items() if getattr(config, name) == usual}
    settings = {name: value for name, value in config.to_dict().items() if name not in left_out}
    return {"version": VERSION, "spec": {"config": settings, "about": about}}


def folder_name(config: DistilConfig, about: dict) -> str:
    """A name for the folder of that run."""
    return folders.key(VERSION, manifest(config, json.loads(json.dumps(about)))["spec"])


def _claim(folder, wanted):
    """Write the manifest, or check that it is this run's."""
    file = folder / folders.MANIFEST
    if not file.exists():
        if other := next((f.name for f in sorted(folder.iterdir()) if WRITTEN.fullmatch(f.name)), None):
            raise BadValue(
                "{folder} must be empty or hold a run, and holds {other}. Choose another folder.",
                folder=folder,
                other=other,
            )
        write_json(file, wanted)
        return
    try:
        found = _manifest_in(folder)
        theirs = {**_all_settings(found), **found["spec"]["about"]}
    except (ValueError, LookupError, TypeError) as error:
        raise BadValue(
            "{file} must be the manifest of a run, and can't be read ({error}). Take another folder.",
            file=file,
            error=error,
        ) from error
    ours = {**_all_settings(wanted), **wanted["spec"]["about"]}
    theirs["version"], ours["version"] = found.get("version"), VERSION
    for odd in {**ours, **theirs}:
        if theirs.get(odd) != ours.get(odd):
            raise _another(folder, odd, theirs.get(odd), ours.get(odd))


def _all_settings(manifest):
    """Those of a manifest that its method reads, with what it leaves out."""
    found = {**LATER, **PART, **manifest["spec"]["config"]}
    if methods.get(found["method"]).roles(types.SimpleNamespace(**found)):
        return found
    return {name: value for name, value in found.items() if name not in OF_ROLES}


def _manifest_in(folder):
    return json.loads((Path(folder) / folders.MANIFEST).read_text(encoding="utf-8"))


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings of the run in that folder, as its manifest has them: what follows from others may follow
    otherwise today. Empty where there is none that can be read, which is left to `Job`.
    """
    try:
        return dict(_manifest_in(folder)["spec"]["config"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def check_asked(folder: str | Path, asked: Mapping[str, Any], about: Mapping[str, Any] = NOTHING) -> None:
    """Raise ValueError where the run in that folder has another of these settings, or is about another of
    these, before a model is loaded. A folder that holds none is left to `Job`.
    """
    try:
        found = _manifest_in(folder)
        theirs, known = _all_settings(found), dict(found["spec"]["about"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    for name in theirs.keys() & asked.keys() - set(CUT):
        if isinstance(asked[name], (bool, int, float, str)) and asked[name] != theirs[name]:
            raise _another(folder, name, theirs[name], asked[name])
    for name, value in about.items():
        if known.get(name) != value:
            raise _another(folder, name, known.get(name), value)


def _another(folder, setting, theirs, ours):
    return BadValue(
        "{folder} holds another run: its {setting} is {theirs!r} and not {ours!r}. Choose another "
        "folder, or set it back.",
        folder=folder,
        setting=setting,
        theirs=theirs,
        ours=ours,
    )


# ---- the state ---------------------------------------------------------------------------------


def save_state(path: str | Path, tensors: dict[str, torch.Tensor], numbers: dict) -> Path:
    """Write a run's state, whole or not at all."""
    return write_tensors(path, tensors, {METADATA_KEY: json.dumps(numbers)})


def load_state(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, numbers) that `save_state` wrote; raises ValueError naming the file when it is damaged."""
    try:
        tensors, metadata = read_tensors(path)
        return tensors, json.loads(metadata[METADATA_KEY])
    except Exception as error:
        raise BadValue(
            "{path} must be a run's state, and can't be read ({error}). Delete it to start again.",
            path=path,
            error=error,
        ) from error


def history(path: str | Path) -> tuple[list, list]:
    """The loss and fidelity [(update, value)] of a saved state, its tensors unread; else empty."""
    try:
        with safe_open(str(path), framework="pt") as file:
            numbers = json.loads(file.metadata()[METADATA_KEY])
        return numbers["loss"], numbers["fidelity"]
    except Exception:  # whatever a damaged header leads to
        return [], []


def delete(folder: Path) -> bool:
    """Delete a run's folder, one named as ours, unless a process is at it; returns whether it is gone."""
    if not folders.is_ours(folder):
        return False
    alone = folders.lock(folder, alone=True)
    if alone is None:
        return False
    with alone:  # the manifest last: what is cut short is still ours
        for place in sorted(folder.iterdir(), key=lambda f: f.name == folders.MANIFEST):
            if place.is_dir():
                shutil.rmtree(place)
            elif place.name != folders.LOCK:
                place.unlink()
        folders.drop(folder, alone)
    return True
