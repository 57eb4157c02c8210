"""Where a run's data come from.

Unless the user brings data, they are the teacher's own trajectories, solved once at its guidance, of which a
few anchors are kept: no data set is needed. Some of them (`held_out`) are held out to measure on, two for
each of their prompts where that can be had; with data of the user's only these are drawn.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from .. import methods
from ..methods.method import Method
from ..methods.phases import Phases
from ..models.denoiser import Denoiser, Guided
from ..ranks.ranks import ALONE, Ranks
from ..reports.distances import LEAST
from ..trajectories.data import Data, from_trajectories
from ..trajectories.noises import as_noise, noises
from ..trajectories.sampling import SHARD, teacher_cache, trajectories
from . import optimisers
from .config import DistilConfig
from .probe import HeldOut
from .student import Adapter, Student

PROBES = 8  # held-out noises, at least
MOST_PROBES = 32  # and at most
BESIDE = 64  # pictures that fix the scale of what is measured
Cache = tuple[str | Path, dict]  # folder, identity: see `Source`


def check(denoiser: Denoiser, config: DistilConfig, data: Data | None = None) -> None:
    """Raise ValueError for a model without conditionings, and for data that do not fit model and method."""
    if denoiser.conditions < 1:
        raise BadValue("The run needs at least one conditioning (a prompt or a label), got none.")
    optimisers.check(config.optimizer, getattr(denoiser, "device", "cpu"))
    if data is not None:
        data.check(denoiser, methods.get(config.method).needs)
    elif config.to_percent < 1 and methods.get(config.method).needs == "images":
        raise BadValue(
            "the method {method} needs pictures to learn a part of the way that does not end at one "
            "(to_percent {end:g}), got none. Give it pictures, or choose phased.",
            method=config.method,
            end=config.to_percent,
        )


def check_batch(config: DistilConfig, ranks: Ranks) -> None:
    """Raise ValueError where a batch has no sample for each process."""
    if ranks.world > config.batch:
        raise BadValue(
            "batch must be {world} or more for {world} processes, got {batch}: each learns from its share of "
            "it. Start fewer processes, or set a larger batch.",
            world=ranks.world,
            batch=config.batch,
        )


def held_out(config: DistilConfig) -> int:
    """How many trajectories are held out: more where a run is so long that they are not felt."""
    more = min(config.images // 64, config.updates * config.batch // 512, MOST_PROBES - PROBES)
    return PROBES + max(0, more // 2 * 2)


def held_numbers(count: int, held: int, conditions: int) -> torch.Tensor:
    """Which of `count` trajectories are held out: the last ones, or, where these are of different prompts,
    the last half and those of the same prompts a round earlier.
    """
    half, last = held // 2, torch.arange(count - held, count)
    if held < 2 * LEAST or conditions < half or count < conditions + 2 * held:
        return last
    return torch.cat([last[half:] - conditions, last[half:]])


def _put_last(numbers: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
    """Exchange rows, in place and no more than need be, so that those are the last of each tensor; returns
    which row each of the last ones was.
    """
    last = torch.arange(len(tensors[0]) - len(numbers), len(tensors[0]))
    there, back = numbers[~torch.isin(numbers, last)], ~torch.isin(last, numbers)
    for tensor in tensors:
        rows = tensor[there].clone()
        tensor[there] = tensor[last[back]]
        tensor[last[back]] = rows
    return last.masked_scatter(back, there)


def starts_wanted(config: DistilConfig, given: bool = False) -> int:
    """How many states a run from the middle of the way has to be given, to draw its pictures from; given:
    data of the user's.
    """
    images = 0 if given else config.images
    return SHARD * math.ceil((images + held_out(config)) / SHARD)


def _checked_starts(starts, denoiser, config, data):
    """`starts` as given, or None for noise. Raises ValueError where the run can't begin with them."""
    if config.from_percent == 0:
        if starts is not None:
            raise BadValue("a run from from_percent 0 starts from noise, and needs no other states.")
        return None
    shape = (starts_wanted(config, data is not None), *denoiser.shape)
    got = None if starts is None else tuple(starts.shape)
    if got != shape:
        raise BadValue(
            "a run from from_percent {start:g} needs states to start from, which the model before has drawn, "
            "of the shape {wanted}, got {got}. Train it as a node with first_stage wired, or set "
            "from_percent to 0.",
            start=config.from_percent,
            wanted=shape,
            got=got,
        )
    return starts


def wanted(config: DistilConfig, given: Data | None = None) -> int:
    """Trajectories that a run wants of the teacher; given: data of the user's."""
    if given is not None and config.restores:
        return 0
    return (config.images if given is None else 0) + held_out(config)


class Source:
    """Trajectories of the teacher; in further rounds of reflow, of the student.

    given    data of the user's, in place of the teacher's trajectories
    starts   of a run from the middle of the way: `starts_wanted` states (N, ...) at its first level, in the
             order of the conditions, which whatever goes before has drawn
    cache    (folder, identity) to keep trajectories in a `TrajectoryCache` there, for a run that was stopped
             and for others that ask alike. identity: its spec's `patches` and `conditioning`, and what else
             of it is not this run's (`seed`). With a `guidance` in it the trajectories were drawn beforehand,
             by another teacher than the model itself: they are read, and nothing is drawn
    ranks    the processes that share the work
    data, held   what `gather` brought
    pairs_of     the adapter whose samples the data are, after the first round; None: the base model
    """

    def __init__(
        self,
        student: Student,
        config: DistilConfig,
        method: Method,
        phases: Phases,
        given: Data | None = None,
        cache: Cache | None = None,
        starts: torch.Tensor | None = None,
        ranks: Ranks = ALONE,
    ):
        check_batch(config, ranks)
        self.ranks = ranks
        self.student, self.config, self.method, self.phases = student, config, method, phases
        self.given, self.seed, self.cache = given, config.seed, None
        denoiser, starts = student.denoiser, _checked_starts(starts, student.denoiser, config, given)
        self.starts = None
        if starts is not None:
            self.starts = as_noise(starts, phases.fine, denoiser.path, denoiser.noise_scale)
        self.data: Data | None = None
        self.held: HeldOut | None = None
        self.pairs_of: Adapter | None = None
        self.drawn = cache is not None and "guidance" in cache[1]
        if cache and (given is None or self.drawn):
            folder, identity = cache
            self.seed = identity.get("seed", config.seed)
            self.cache = teacher_cache(
                denoiser,
                cfg=config.cfg,
                sigmas=phases.fine,
                kept=phases.kept,
                count=self.count,
                seed=config.seed,
                folder=folder,
                identity=identity,
                starts=self.starts,
            )

    @property
    def count(self) -> int:
        """Trajectories that are wanted of the teacher."""
        return wanted(self.config, self.given)

    @property
    def chunks(self) -> int:
        """How many calls of the solver they take."""
        return math.ceil(self.count / SHARD)

    @torch.no_grad()
    def gather(self, number: int = 0) -> Iterator[float]:
        """Draw the data of that round, and in the first the held-out ones; yields the share that is done."""
        denoiser, count = self.student.denoiser, self.count
        condition = torch.arange(count) % denoiser.conditions
        if self.cache and number == 0:
            if not self.drawn:
                with self.student.lora.off():
                    teacher = Guided(self.student.asked, self.config.cfg)
                    yield from self.cache.build(teacher, count, self.ranks)
            noise, anchors = self.cache.noise(count), self.cache.read(count)[0]
        else:
            noise = self._noise(range(number * count, (number + 1) * count))
            parts, mine = [], self.ranks.share({"noise": noise, "condition": condition})
            for part in self._solve(mine["noise"], mine["condition"]):
                parts.append(part)
                yield min(1.0, len(parts) * SHARD * self.ranks.world / count)
            for _ in self.ranks.all_come():
                yield 1.0
            none = torch.zeros(0, len(self.phases.kept), *denoiser.shape)
            anchors = self.ranks.merged(torch.cat([none, *parts]), count)  # (N, kept, ...), noise to picture
        held = held_out(self.config)
        numbers = _put_last(held_numbers(count, held, denoiser.conditions), anchors, condition)
        self.data = self.given
        if self.given is None:
            self.data = from_trajectories(
                anchors[:-held],
                condition[:-held],
                self.method.needs,
                self.phases.path,
                self.phases.fine[0],
            )
        if number == 0:
            self.held = HeldOut(
                noise=noise[numbers],
                condition=condition[-held:],
                reference=anchors[-held:, -1].clone(),
                beside=self._beside(anchors[:-held, -1], condition[:-held]),
            )

    def first(self) -> HeldOut | None:
        """The first of the trajectories that are being drawn, once they are on disk; None before, where they
        are kept elsewhere, and of several processes, which would have to wait for one another.
        """
        if self.cache is None or self.drawn or self.ranks.world > 1:
            return None
        try:
            anchors = self.cache.read(SHARD)[0]
        except BadValue:
            return None
        noise, condition = self.cache.noise(SHARD), self.cache.conditions(SHARD)
        return HeldOut(noise=noise, condition=condition, reference=anchors[:, -1])

    def _beside(self, pictures, condition):
        """Some pictures that are learnt from, and their conditions; None where there are too few."""
        if self.given is not None:
            pictures, condition = self.given.images, self.given.condition
        few = len(pictures) < 2 * PROBES
        return None if few else (pictures[:BESIDE].clone(), condition[:BESIDE])

    def _noise(self, numbers):
        if self.starts is None:
            return noises(self.seed, numbers, self.student.denoiser.shape)
        return self.starts[numbers.start : numbers.stop]

    def _solve(self, noise, condition):
        """The trajectories from that noise, SHARD at a time: of the teacher, or of the round before."""
        lora, cfg = self.student.lora, self.config.cfg if self.pairs_of is None else 1.0
        with lora.off() if self.pairs_of is None else lora.using(self.pairs_of):
            yield from trajectories(
                self.student.asked,
                noise,
                condition,
                cfg,
                self.phases.fine,
                self.phases.kept,
                order=2,
                corrector=True,
                chunk=SHARD,
            )

    def close(self) -> None:
        """Let others have the cache."""
        if self.cache:
            self.cache.close()


class Pictures(Source):
    """Pictures that are given and nothing else, of which an eighth, at most PROBES, are held out."""

    @property
    def count(self) -> int:
        """None is wanted of the teacher."""
        return 0

    def gather(self, number: int = 0) -> Iterator[float]:
        """Part the pictures; there is nothing to wait for."""
        total = len(self.given.images)
        held = torch.linspace(0, total - 1, max(1, min(PROBES, total // 8))).round().long()
        kept = torch.ones(total, dtype=torch.bool)
        kept[held] = total == 1
        self.data = Data(images=self.given.images[kept], condition=self.given.condition[kept])
        self.held = HeldOut(
            noise=noises(self.seed, range(len(held)), self.student.denoiser.shape),
            condition=self.given.condition[held],
            reference=self.given.images[held],
        )
        yield from ()
