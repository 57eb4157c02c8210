"""Who of several processes is still there, and what ended the first that is not.

Each beats twice a second: it writes a row into the store that PyTorch's rendezvous brought them together by.
Rank 0 looks at all rows, the others at its row alone. Whoever can't go on leaves a note there, the first of
which counts; who was killed leaves none, and is known by a row that stands still. Some silence is no proof
(a process can be busy loading a model), so that it counts after SOON only where there is a reason: a
connection broke, or somebody was told to end, as torchrun tells all others when one has died.
"""

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

from ...diffusion.faults import Failed, Message

SAVING = 20.0  # seconds that a state may take to be written, once a run ends
BEAT = 0.5  # seconds from one beat to the next
SOON, LATE = 6, 120  # beats of silence that count, where there is a reason for doubt and where there is none
NOTE, DOUBT = "note", "doubt"
RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


class Ended(Failed):
    """What ended one of the processes, on each of them. tells: whether this is the one to tell the user."""

    def __init__(self, key: str | Message, /, tells: bool = True, **fields: Any):
        super().__init__(key, **fields)
        self.tells = tells


class Watch:
    """The watch of one process; store: a client of its own, as others may wait in theirs.

    told   what its row says beside the beat
    note   what ended one of them, once there is something
    rows   of those it looks at
    """

    def __init__(self, store: Any, rank: int, world: int):
        self.store, self.rank, self.world, self.beat = store, rank, world, BEAT
        self.told: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "state": RUNNING}
        self.note: dict[str, Any] | None = None
        self.rows: dict[int, dict[str, Any]] = {}
        self._watched = [r for r in range(world) if r != rank] if rank == 0 else [0]
        self._count, self._silent, self._doubted = 0, dict.fromkeys(self._watched, 0), None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fewstep-watch", daemon=True)
        self._beat()
        self._thread.start()

    # ---- in its thread -------------------------------------------------------------------------

    def _run(self):
        while not self._closing.wait(self.beat):
            try:
                self._beat()
                self._look()
            except (RuntimeError, OSError, ValueError):  # the store went with whoever kept it
                if not self._closing.is_set() and self.note is None:
                    self.note = {**self._died(0), "by": 1}  # the others can't settle any more who tells it
                return

    def _beat(self):
        self._count += 1
        self.store.set(f"beat/{self.rank}", json.dumps({**self.told, "beat": self._count}))

    def _look(self):
        if self.note is None and self.store.check([NOTE]):
            self.note = json.loads(self.store.get(NOTE))
        if self._doubted is None and self.store.check([DOUBT]):
            self._since = self._count  # first: the run's thread reads both
            self._doubted = {r: self.rows.get(r, {}).get("beat") for r in self._watched}
        for rank in self._watched:
            self._look_at(rank)
        limit = LATE if self._doubted is None else SOON
        for rank in self._watched:
            if self._silent[rank] >= limit and self.rows.get(rank, {}).get("state") == RUNNING:
                self.post(self._died(rank))
        if self.note is None and self._all_there() and _has_left(self):
            self.post({"stopped": True})

    def _look_at(self, rank):
        key, before = f"beat/{rank}", self.rows.get(rank, {})
        if self.store.check([key]):
            self.rows[rank] = json.loads(self.store.get(key))
        same = self.rows.get(rank, {}).get("beat") == before.get("beat")
        self._silent[rank] = self._silent[rank] + 1 if same else 0
        if self.rows.get(rank, {}).get("state") == STOPPED and self._doubted is None:
            self.store.set(DOUBT, "1")

    def _died(self, rank):
        row = self.rows.get(rank, {})
        message = Message(
            "Process {rank} of {world} ({host}, pid {pid}) has gone without a word: it was killed, or its "
            "machine was lost. What was learnt up to the last state is kept; start the same again to go on.",
            rank=rank,
            world=self.world,
            host=str(row.get("host", "?")),
            pid=str(row.get("pid", "?")),
        )
        return {"rank": rank, "by": self.rank, "host": self.told["host"], "message": message.to_dict()}

    # ---- asked by the run ----------------------------------------------------------------------

    def post(self, note: dict[str, Any]) -> None:
        """Leave a note, unless there is one."""
        with contextlib.suppress(RuntimeError, ValueError):
            found = self.store.compare_set(NOTE, "", json.dumps(note))
            note = json.loads(found) if found else note
        self.note = self.note or note

    def fail(self, message: Message) -> None:
        """Leave the note of what ended this process."""
        whole = Message(
            "Process {rank} of {world} on {host}: {message}",
            rank=self.rank,
            world=self.world,
            host=self.told["host"],
            message=message,
        )
        host = self.told["host"]
        self.post({"rank": self.rank, "by": self.rank, "host": host, "message": whole.to_dict()})

    def ended(self, local: int = 0) -> BaseException:
        """The exception for that note; local: this process's number on its machine."""
        if "stopped" in self.note:
            return KeyboardInterrupt()
        elsewhere = self.note["host"] != self.told["host"] and local == 0
        message = Message.from_dict(self.note["message"])
        return Ended(message, tells=self.note["by"] == self.rank or elsewhere)

    def doubt(self, most: float, until_all_there: bool) -> None:
        """Somebody may have died: wait for the note, at most so many seconds, or until all have beaten."""
        with contextlib.suppress(RuntimeError):
            self.store.set(DOUBT, "1")
        self._doubted = None  # looked at anew: an older doubt says nothing of now
        until = time.monotonic() + most
        while self.note is None and time.monotonic() < until:
            if until_all_there and self._all_there():
                break
            time.sleep(self.beat / 5)
        if self.note is None and _has_left(self):
            self.post({"stopped": True})

    def _all_there(self):
        """Whether all that it looks at have beaten twice since the doubt, or left in order."""
        if self._doubted is None or self._count < self._since + 3:
            return False
        return all(
            row.get("state") != RUNNING or row["beat"] >= (self._doubted[rank] or 0) + 2
            for rank, row in ((rank, self.rows.get(rank, {})) for rank in self._watched)
        )

    def leave(self, state: str) -> None:
        """Say that this one ends in order, and stop looking. Where a fault ends all, torchrun ends the others
        as soon as one has gone: so they wait for rank 0, which saves the run's state, and rank 0 for them.
        """
        if self.rank and self.note is not None:
            _wait(self, _is_saving, SAVING)
        self.told["state"] = state
        if self.rank == 0:
            _wait(self, _others_run, SOON * self.beat)
        self._closing.set()
        self._thread.join(5)
        with contextlib.suppress(RuntimeError, OSError):
            self._beat()


def _wait(watch, going_on, most):
    until = time.monotonic() + most
    while going_on(watch) and time.monotonic() < until:
        time.sleep(watch.beat / 5)


def _is_saving(watch):
    """Whether rank 0 is still there to save the state."""
    gone = watch.note.get("rank") == 0 and watch.note.get("by") != 0
    return not gone and watch._thread.is_alive() and _runs(watch, 0)


def _others_run(watch):
    """Whether others may still save or say something; not who is known to be dead."""
    note = watch.note or {}
    dead = note.get("rank") if note.get("by") != note.get("rank") else None
    return any(_runs(watch, rank) for rank in watch._watched if rank != dead)


def _runs(watch, rank):
    return watch.rows.get(rank, {}).get("state", RUNNING) == RUNNING


def _has_left(watch):
    """Whether one of them ends in order."""
    return any(row.get("state") == STOPPED for row in watch.rows.values())
