"""A run on disk: saved as it goes, so that it can't be lost, and continued bit by bit by whoever asks for the
same again.

    with Job(folder, run, about) as job:        # goes on where the folder's state ends
        for progress in job.progress(): ...     # cancel at any time: the state is saved on the way out

    folder/manifest.json        what the run is of: its config and `about`; another run's folder is refused
    folder/state.safetensors    adapter, average, best, optimiser, generator, draws, history: whole or not
                                there
    folder/status.json          for people and the panel: state, step, total, fidelity

A state is written every `every` updates and at the end, to a temporary file that is synced and renamed.
Killed at any moment a run loses the updates since then, and no file. A full disk is reported and the run goes
on: the state before it stays whole.
"""

import json
import logging
import math
import re
import shutil
import time

from safetensors import safe_open

from ...diffusion.faults import BadValue, Failed
from ..formats.files import check_folder, read_tensors, write_json, write_tensors
from ..trajectories import folders

VERSION = 1
STATE, STATUS = "state.safetensors", "status.json"
WRITTEN = re.compile(
    r".*\.safetensors|(run|status)\.json|curves\.png"
)  # by runs, never over what is somebody else's
# of the adapter: in a state itself, average, best, AdamW's two, another round's teacher; twice in saving
COPIES = 12
METADATA_KEY = "fewstep.state"
MOST_TEXT = 2000  # characters of an error that are kept


class Job:
    """`run` (a `distil.Distillation`) in `folder`. about: a JSON-able dict that tells runs of one config
    apart (model, prompts).

    Raises ValueError when the folder is another run's or its state is damaged, OSError when it can't be
    written, and RuntimeError while another process is at it.
    """

    def __init__(self, folder, run, about, every=50, now=time.time):
        self.run, self.every, self.now = run, every, now
        self.folder = check_folder(folder, COPIES * run.lora.bytes + (1 << 20))
        self.about, self.resumed, self.unsaved, self._lock = json.loads(json.dumps(about)), 0, None, None
        self.notes = {}  # of whoever runs it, kept in the status
        self._wanted = manifest(run.config, self.about)

    def __enter__(self):
        folders.tidy(self.folder)
        self._lock = folders.lock(self.folder, alone=True)
        if self._lock is None:
            raise Failed(
                "{folder} must be free to run in, and another process is at it. Wait for it, or stop it.",
                folder=self.folder,
            )
        try:
            self._claim()
            self.notes = _notes(self.folder / STATUS)
            if (self.folder / STATE).exists():
                self._restore()
                self.resumed = self.run.done
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, kind, error, trace):
        self.notes["error"] = str(error)[:MOST_TEXT] if kind and issubclass(kind, Exception) else None
        try:
            self.save(self._ending(kind), required=kind is None)
        finally:
            self._lock.close()

    def _restore(self):
        tensors, numbers = load_state(self.folder / STATE)
        try:
            self.run.restore(tensors, numbers)
        except (LookupError, TypeError, RuntimeError) as error:
            raise BadValue(
                "{folder} must be the state of this run, is of another version or damaged ({error}). "
                "Delete it to start again.",
                folder=self.folder / STATE,
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

    def progress(self):
        """The run's `Progress`, with states saved on the way."""
        self._status("running")
        saved = self.run.done
        for progress in self.run.progress():
            if self.run.done - saved >= self.every:
                saved = self.run.done
                self.save("running", required=False)
            yield progress

    def save(self, state, required=True):
        """Write the state of the run. Where the disk refuses: raises OSError when `required`, else says so in
        the log.
        """
        try:
            if self.run.done:
                tensors, numbers = self.run.state()
                if state == "finished":
                    tensors = {k: v for k, v in tensors.items() if not k.startswith("optimiser.")}
                save_state(self.folder / STATE, tensors, numbers)
            self._status(state)
            self.unsaved = None
        except OSError as error:
            self.unsaved = f"{self.folder} can't be written ({error.strerror or error}). Free space; the state before is whole."
            if required:
                raise OSError(self.unsaved) from error
            logging.warning("Fewstep: %s", self.unsaved)

    def _status(self, state):
        run = self.run
        write_json(
            self.folder / STATUS,
            {
                "state": state,
                "done": run.done,
                "total": run.config.updates,
                "skipped": run.descent.skipped,
                "method": run.config.method,
                "steps": run.config.steps,
                "loss": last(run.loss),
                "fidelity": last(run.fidelity),
                "best": run.best and run.best[0],
                "saved_at": round(self.now()),
                "about": self.about,
                "notes": self.notes,
            },
        )

    def _claim(self):
        """Write the manifest, or check that it is this run's."""
        file = self.folder / folders.MANIFEST
        if not file.exists():
            if other := next(
                (f.name for f in sorted(self.folder.iterdir()) if WRITTEN.fullmatch(f.name)), None
            ):
                raise BadValue(
                    "{folder} must be empty or hold a run, and holds {other}. Choose another folder.",
                    folder=self.folder,
                    other=other,
                )
            write_json(file, self._wanted)
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            theirs = {**found["spec"]["config"], **found["spec"]["about"]}
        except (ValueError, LookupError, TypeError) as error:
            raise BadValue(
                "{file} must be the manifest of a run, and can't be read ({error}). Take another folder.",
                file=file,
                error=error,
            ) from error
        if found != self._wanted:
            ours = {**self._wanted["spec"]["config"], **self.about}
            odd = next((k for k, v in ours.items() if theirs.get(k) != v), "version")
            raise BadValue(
                "{folder} holds another run: its {odd} is {odd2!r} and not {odd3!r}. Choose another "
                "folder, or set it back.",
                folder=self.folder,
                odd=odd,
                odd2=theirs.get(odd, found.get("version")),
                odd3=ours.get(odd, VERSION),
            )


def manifest(config, about):
    """What makes two runs the same, as it is written. How the work is cut to fit the memory does not."""
    settings = {k: v for k, v in config.to_dict().items() if k not in ("micro", "checkpointing", "chunk")}
    return {"version": VERSION, "spec": {"config": settings, "about": about}}


def last(points):
    """The last value of a history [(update, value)]; None where there is none, or no number, which JSON has
    no word for.
    """
    return points[-1][1] if points and math.isfinite(points[-1][1]) else None


def _notes(file):
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["notes"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def folder_name(config, about):
    """A name for the folder of that run."""
    return folders.key(VERSION, manifest(config, json.loads(json.dumps(about)))["spec"])


def save_state(path, tensors, numbers):
    """Write a run's state, whole or not at all."""
    return write_tensors(path, tensors, {METADATA_KEY: json.dumps(numbers)})


def load_state(path):
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


def history(path):
    """The loss and fidelity [(update, value)] of a saved state, without reading its tensors; empty where it
    can't be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            numbers = json.loads(file.metadata()[METADATA_KEY])
        return numbers["loss"], numbers["fidelity"]
    except Exception:  # whatever a damaged header leads to
        return [], []


def delete(folder):
    """Delete a run's folder unless a process is at it; returns whether it is gone. Only folders named as ours
    are touched.
    """
    if not folders.is_ours(folder):
        return False
    alone = folders.lock(folder, alone=True)
    if alone is None:
        return False
    # the manifest last: what is cut short is still ours; and the lock when it is closed, as Windows wants it
    with alone:
        for place in sorted(folder.iterdir(), key=lambda f: f.name == folders.MANIFEST):
            if place.is_dir():
                shutil.rmtree(place)
            elif place.name != folders.LOCK:
                place.unlink()
    shutil.rmtree(folder)
    return True
