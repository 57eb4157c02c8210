"""How near the student has come: its pictures from held-out noise beside what they should be.

Quality has three faces, measured together: fidelity, the RMSE of the two from the same noise, in model space;
the distance of their distributions; and diversity, both as `sight` sees them. All are measured at the start,
at the end, MEASURED times between, and where the method has to decide by them.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import torch

from ...diffusion.faults import NoMemory
from ..models.memory_errors import recover
from ..ranks.ranks import ALONE, Ranks
from ..reports import distances
from ..reports.distances import UNKNOWN, Estimate
from .average import on_host
from .sight import Faces, Sight, are_alike, compare, has_left
from .student import Adapter, Student

MEASURED = 12
FACES = ("distance", "diversity")
SEEN = ("probe.seen", "probe.mean", "probe.deviation")  # of a saved state: features of the reference, scale
GAIN, ALIKE, NONE = "gain", "alike", "none"  # what came of a run
PARTS = ("probe.noise", "probe.condition", "probe.reference")  # of a saved state


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """noise (P, ...), condition (P,), and the reference (P, ...) that it should become; never learnt from.

    beside   pictures that are learnt from and their conditions, which fix the scale of features
    """

    noise: torch.Tensor
    condition: torch.Tensor
    reference: torch.Tensor
    beside: tuple[torch.Tensor, torch.Tensor] | None = None

    def first(self, count: int) -> "HeldOut":
        """The first `count` of them."""
        return HeldOut(
            noise=self.noise[:count], condition=self.condition[:count], reference=self.reference[:count]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The averaged adapter where it measured best, and what it was judged by: lower is better."""

    fidelity: float
    adapter: Adapter
    update: int
    judged: float


class Eye:
    """What the run's pictures are compared by: `sight`, without the adapter, of pictures that are `finished`.

    seen     features of the reference; scale: of features. None until they were needed
    """

    def __init__(self, student: Student, finished: Callable, sight: Sight, ranks: Ranks = ALONE):
        self.student, self.finished, self.sight, self.ranks = student, finished, sight, ranks
        self.seen: torch.Tensor | None = None
        self.scale: tuple[torch.Tensor, torch.Tensor] | None = None

    def compare(self, drawn: torch.Tensor, held: HeldOut) -> Faces:
        """The other faces of pictures drawn from the held-out noise; unknown ones where memory is short."""
        try:
            with self.student.lora.off():
                if self.seen is None:
                    pictures, condition = held.beside or (held.reference, held.condition)
                    self.scale = distances.scale(self._features(pictures, condition))
                    self.seen = self._features(held.reference, held.condition)
                features = self._features(drawn, held.condition)
        except NoMemory:
            if self.ranks.world > 1:  # the others wait for this one
                raise
            recover()
            return Faces()
        return compare(features, self.seen, held.condition, self.scale, (drawn, held.reference))

    def _features(self, latents, condition):
        """Rank 0's, as all decide by them."""
        features = self.sight.features(self.finished(latents, condition), condition)
        return self.ranks.tensors_of(0, {"": features})[""]


class Probe:
    """Measurements of one run.

    held       what they are made on; None until the data are there
    drawn      the pictures of the last measurement
    fidelity   [(update, RMSE)]
    faces      {update: the `Faces` of the same pictures}
    best       None until something was learnt and measured
    eye        how other faces than fidelity are seen; None: they are not measured
    by         what is best: the least "fidelity", or for what does not follow the teacher's own paths the
               latest whose "distance" is not above the least beyond chance, and whose pictures are as varied,
               or that is nearer beyond chance
    decides    an update after which a measurement is made beside the others; None: no such
    """

    def __init__(
        self, updates: int, eye: Eye | None = None, by: str = "fidelity", decides: int | None = None
    ):
        self.updates, self.eye, self.by, self.decides = updates, eye, by, decides
        self.held: HeldOut | None = None
        self.drawn: torch.Tensor | None = None
        self.best: Best | None = None
        self.fidelity: list[tuple[int, float]] = []
        self.faces: dict[int, Faces] = {}

    def is_due(self, done: int) -> bool:
        """Whether a measurement has to be made now."""
        every = max(1, self.updates // MEASURED)
        at_rest = done % every == 0 or done in (self.updates, self.decides)
        return at_rest and (not self.fidelity or self.fidelity[-1][0] != done)

    def take(self, drawn: torch.Tensor, done: int, adapter: Adapter) -> float:
        """Take down the pictures that this adapter made after `done` updates; returns their fidelity."""
        self.drawn = drawn
        if self.eye:
            self.faces[done] = self.eye.compare(drawn, self.held)
        value = float((drawn - self.held.reference).square().mean().sqrt())
        judged = self._judged(done, value)
        if done and math.isfinite(judged) and self._is_kept(done, judged):
            self.best = Best(fidelity=value, adapter=on_host(adapter), update=done, judged=judged)
        self.fidelity.append((done, value))  # last: cut off before it, the measurement is made again
        return value

    @property
    def outcome(self) -> str:
        """GAIN where the best is nearer to the teacher than what the run began with, also where one of the
        two is not known; ALIKE where they can't be told apart by their distances' intervals; else NONE.
        """
        first = self._judged(*self.fidelity[0]) if self.fidelity else math.nan
        if self.best is None or not math.isfinite(first):
            return GAIN
        if self.by == "distance" and not self._distance(self.best.update).apart(self._distance(0)):
            return ALIKE
        return GAIN if self.best.judged < first else NONE

    def _is_kept(self, update, judged):
        """Whether a measurement's adapter takes the best one's place. Of distances the least of several is
        chance more than gain: a later adapter is kept unless its interval lies above that of the least, or
        its pictures are less varied, or spoiled where those of the best are not. What is nearer beyond
        chance is kept in any case.
        """
        if self.best is None or not math.isfinite(self.best.judged):
            return True
        now, best = self._distance(update), self._distance(self.best.update)
        if self.by == "fidelity" or not (now.known and best.known):
            return judged < self.best.judged
        if now.high < best.low:
            return True
        spoiled = _are_spoiled(self.faces, update) and not _are_spoiled(self.faces, self.best.update)
        if spoiled or self._is_less_varied(update):
            return False
        found = [faces.distance for at, faces in self.faces.items() if at and faces.distance.known]
        return now.low <= min(found, key=lambda each: each.value).high

    def _is_less_varied(self, update):
        """Than the best, beyond the intervals; never where one of them is not known."""
        return self.faces[update].diversity.high < self.faces[self.best.update].diversity.low

    def _distance(self, update):
        faces = self.faces.get(update)
        return faces.distance if faces else UNKNOWN

    def _judged(self, update, fidelity):
        """What decides which adapter is kept; not finite where it isn't known."""
        if self.by == "fidelity" or not math.isfinite(fidelity):
            return fidelity
        return self._distance(update).value

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """({name: tensor}, JSON-able dict) for `restore`."""
        tensors = {f"best.{i}": v for i, v in enumerate(self.best.adapter if self.best else ())}
        if self.held:
            tensors |= dict(zip(PARTS, (self.held.noise, self.held.condition, self.held.reference)))
        numbers = {"best": self.best and self.best.fidelity, "fidelity": self.fidelity}
        if self.eye and self.eye.seen is not None:
            tensors |= dict(zip(SEEN, (self.eye.seen, *self.eye.scale)))
            faces = {str(update): dataclasses.asdict(faces) for update, faces in self.faces.items()}
            numbers |= {"faces": faces, "seen_in": self.eye.sight.seen_in}
        return tensors, numbers

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict, like: Adapter) -> None:
        """Take over what `state` gave; like: an adapter of the same model."""
        if PARTS[0] in tensors:
            noise, condition, reference = (tensors[name] for name in PARTS)
            self.held = HeldOut(noise=noise, condition=condition, reference=reference)
        else:
            self.held = None
        self.fidelity = [(update, value) for update, value in numbers["fidelity"]]
        with contextlib.suppress(LookupError):  # of states from before there were other faces
            self._restore_faces(tensors, numbers)
        best = adapter_in(tensors, "best", like)
        self.best = self._best_of(numbers["best"], best) if best else None

    def _best_of(self, fidelity, adapter):
        """The best that a state holds, which names it by its fidelity."""
        update = next((at for at, value in self.fidelity if at and value == fidelity), self.fidelity[-1][0])
        judged = self._judged(update, fidelity)
        return Best(fidelity=fidelity, adapter=adapter, update=update, judged=judged)

    def _restore_faces(self, tensors, numbers):
        """What was seen, if it was seen in what sees now."""
        seen_in, (seen, *scale) = numbers["seen_in"], (tensors[name] for name in SEEN)
        if self.eye and self.eye.sight.sees_as(seen_in):
            self.eye.seen, self.eye.scale = seen, tuple(scale)
            self.faces = {int(update): faces_of(found) for update, found in numbers["faces"].items()}

    def told(self) -> dict:
        """What a recipe tells of the other faces of the adapter that is kept: [value, low, high] of each."""
        if self.best is None or self.best.update not in self.faces:
            return {}
        faces = {name: getattr(self.faces[self.best.update], name) for name in FACES}
        known = {name: list(dataclasses.astuple(e)) for name, e in faces.items() if e.known}
        return {**known, "seen_in": self.eye.sight.seen_in} if known else {}

    def points(self, name: str) -> list[tuple[int, float, float, float]]:
        """[(update, value, low, high)] of one of FACES, where it is known."""
        found = [(update, getattr(faces, name)) for update, faces in sorted(self.faces.items())]
        return [(update, e.value, e.low, e.high) for update, e in found if e.known]


def _are_spoiled(faces, update):
    """Whether the pictures after that update are alike, or have left the teacher's."""
    until = {at: one for at, one in faces.items() if at <= update}
    return has_left(until) or are_alike(until)


def faces_of(found: dict) -> Faces:
    """The `Faces` that a state holds."""
    return Faces(**{**found, **{name: Estimate(**found[name]) for name in FACES}})


def adapter_in(tensors: dict[str, torch.Tensor], name: str, like: Adapter) -> list[torch.Tensor] | None:
    """The adapter, with as many tensors as `like`, that a state has under that name; None if it has none."""
    if f"{name}.0" not in tensors:
        return None
    return on_host([tensors[f"{name}.{i}"] for i in range(len(like))])
