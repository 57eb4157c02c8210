"""A run: from a denoiser and a config to a LoRA with its recipe.

    run = Run(denoiser, config)
    for progress in run.progress(): ...       # stop at any time: run.lora_tensors() is what has been learnt
                                              so far
    run.save(path)
    run.close()

The loop and its state are here. Who answers is the `student.Student`'s affair, who learns the
`learners.Learners`', what is learnt from the `source.Source`'s, how is the method's (`methods`) and
`descent`'s, how near the student has come the `probe.Probe`'s, and how it is sampled the task's
(`distillation`, `restoration`). `job` keeps a run on disk.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .. import methods
from ..formats.files import save_lora
from ..formats.precision import in_precision
from ..formats.recipe import Recipe
from ..methods.distances import METRICS
from ..methods.matching import SHOWN
from ..methods.method import STUDENT, Batch, Context
from ..methods.phases import Phases
from ..methods.times import Times, Weighting
from ..models.denoiser import Denoiser
from ..ranks.ranks import ALONE, Ranks
from ..trajectories.data import Data
from .average import on_host
from .config import DistilConfig
from .distillation import Distillation
from .interrupts import held_back
from .learners import Learners
from .probe import Eye, Probe, adapter_in
from .progress import Pace, Progress
from .restoration import Restoration
from .sight import Encoder, Sight
from .source import Cache, Pictures, Source, check
from .student import Adapter, Student


class Run:
    """One run. Its state: adapters, average and optimisers, generator, draws, data, history.

    cache   (folder, identity), to keep the teacher's trajectories there: see `source.Source`
    data    to learn from instead of the teacher's trajectories
    metric  a distance (B, ...), (B, ...) -> (B,) in place of the config's, a perceptual one for instance
    warm, encoder   tensors of a LoRA file to begin with; what pictures are compared by: see `sight`
    starts, ranks   of a run from the middle of the way, and of several processes: see `source.Source`
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: DistilConfig,
        *,
        cache: Cache | None = None,
        data: Data | None = None,
        metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        warm: dict[str, torch.Tensor] | None = None,
        starts: torch.Tensor | None = None,
        encoder: Encoder | None = None,
        ranks: Ranks = ALONE,
    ):
        check(denoiser, config, data)
        method = methods.get(config.method)
        self.denoiser, self.config, self.method, self.ranks = denoiser, config, method, ranks
        self.metric, self.times = metric or METRICS[config.metric], Times(config.times)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.kind = denoiser.prediction if method.kind == "own" else method.kind
        self.phases = Phases(config, denoiser.path, denoiser.sigma_of, method.on_the_grid)
        levels = method.level, method.turned_level or method.level
        self.weighting, self.turned_weighting = (_weighting_of(self, level) for level in levels)
        self.student = Student(denoiser, config, warm)
        try:
            source = Pictures if config.restores and data is not None else Source
            self.source = source(self.student, config, method, self.phases, data, cache, starts, ranks)
            task = Restoration if config.restores else Distillation
            self.task = task(self.student, config, method, self.phases)
            self.learners = Learners(self.student, config, method, ranks)
            self.descent = self.learners.descents[STUDENT]
        except BaseException:
            self.student.close()
            raise
        self.probe = _probe_of(self, encoder)
        self.loss: list[tuple[int, float]] = []
        self.stopped, self.label = False, ""  # label: what the recipe calls the run

    @property
    def done(self) -> int:
        """The student's updates so far."""
        return self.descent.done

    def stop(self) -> None:
        """End after the update that is under way, and keep what has been learnt."""
        self.stopped = True

    def progress(self) -> Iterator[Progress]:
        """Yield `Progress`; leaves the adapter attached until `close`."""
        learners, chunks, current, pace = self.learners, self.source.chunks, -1, Pace()
        while (self.done < self.config.updates or self.probe.is_due(self.done)) and not self.stopped:
            config = self.config  # may have changed, by `last`
            number = min(self.done * config.rounds // config.updates, config.rounds - 1)
            if number != current:
                if number and self.done == _first_update(number, config):
                    self.source.pairs_of = on_host(self.student.averaged)
                for share in self.source.gather(number):
                    if self.stopped:
                        return
                    step = chunks * number + round(share * chunks) + self.done
                    yield Progress(stage="sampling the teacher", step=step, total=_total(self))
                self.probe.held = self.probe.held or self.source.held  # a resumed run keeps its own
                current = number
                pace.restart(self.done)
            if self.probe.is_due(self.done):  # at the start, and where a run was cut off while it measured
                self.measure()
                continue
            context, before = self.context(), self.done
            who = learners.due(context)
            loss = self.update(who)
            fidelity = self.measure() if self.done > before and self.probe.is_due(self.done) else None
            if learners.stage(who) != "training" or not self.done:
                pace.restart(self.done)
            yield _told(self, who, number, context.turned, pace, loss, fidelity)

    def context(self, who: str = STUDENT) -> Context:
        """What the method sees at this update of that adapter."""
        return _context_of(self, who)

    def update(self, who: str = STUDENT) -> float:
        """One update of that adapter; returns the loss. Cut off, it leaves the state before or after."""
        context, before, steps = self.context(who), self.generator.get_state(), False
        try:
            batch, losses = self.learners.gradient(who, context)
            with held_back():
                steps = True
                self.learners.step(who, batch, losses, context.turned)
                return _taken_down(self, who, batch, losses)
        except BaseException:
            if not steps:
                self.learners.forget(who)
                self.generator.set_state(before)
            raise

    @torch.no_grad()
    def measure(self) -> float:
        """Fidelity of the averaged adapter on the held-out noise, sampled as the recipe says; rank 0's."""
        drawn = {"": self.task.draw(self.probe.held, self.student.averaged)}
        return self.probe.take(self.ranks.tensors_of(0, drawn)[""], self.done, self.student.averaged)

    # ---- results -------------------------------------------------------------------------------

    @property
    def adapter(self) -> Adapter:
        """The averaged adapter where it measured best, which is the one saved."""
        return self.probe.best.adapter if self.probe.best else self.student.averaged

    def lora_tensors(self) -> dict[str, torch.Tensor]:
        """The saved adapter in ComfyUI's native keys."""
        return self.student.lora.state_dict(self.adapter)

    def recipe(self) -> Recipe:
        """How to sample with it."""
        return _recipe_of(self)

    def save(self, path: str | Path) -> Path:
        """Write the LoRA with its recipe, whole or not at all, in the config's precision."""
        return save_lora(path, in_precision(self.lora_tensors(), self.config.lora_precision), self.recipe())

    # ---- its state -----------------------------------------------------------------------------

    def state(self, finished: bool = False) -> tuple[dict[str, torch.Tensor], dict]:
        """({name: tensor}, JSON-able dict) from which `restore` goes on, bit for bit; finished: without what
        only further updates want.
        """
        tensors, numbers = self.learners.state(finished)
        tensors |= {"generator": self.generator.get_state(), "moments": self.times.moments}
        tensors |= {f"pairs_of.{i}": v for i, v in enumerate(self.source.pairs_of or ())}
        measured, history = self.probe.state()
        return tensors | measured, {**numbers, **history, "loss": self.loss}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
        """Take over what `state` gave."""
        self.learners.restore(tensors, numbers)
        self.generator.set_state(tensors["generator"])
        self.times.moments = tensors["moments"].clone()
        self.source.pairs_of = adapter_in(tensors, "pairs_of", self.student.averaged)
        self.probe.restore(tensors, numbers, self.student.averaged)
        self.loss = [(update, value) for update, value in numbers["loss"]]

    def close(self) -> None:
        """Take the adapters off the model, and let others have the cache."""
        self.student.close()
        self.source.close()


def _total(run):
    """Of what `Progress` counts: shards of the teacher's pictures, and updates."""
    return run.source.chunks * run.config.rounds + run.learners.first + run.config.updates


def _told(run, who, number, turned, pace, loss, fidelity):
    """The `Progress` after an update of that adapter, in a round."""
    config, learners, chunks = run.config, run.learners, run.source.chunks
    return Progress(
        stage=learners.stage(who),
        step=chunks * (number + 1) + learners.ahead + run.done,
        total=_total(run),
        loss=loss if who == STUDENT else None,
        fidelity=fidelity,
        samples_per_second=pace.rate(run.done) * config.batch or None,
        # before it turns, its updates are not those that it will make
        seconds_left=None if turned is None else pace.left(run.done, config.updates),
    )


def last(run: Run, updates: int) -> None:
    """Make a run that many updates long, for whoever has a time to keep: rates and measures follow."""
    run.config = run.learners.config = dataclasses.replace(run.config, updates=updates)
    for descent in run.learners.descents.values():
        descent.config = run.config
    run.probe.updates, run.probe.decides = updates, run.method.last_turn(run.config)


def _first_update(number: int, config: DistilConfig) -> int:
    """The update at which a round begins."""
    return -(-number * config.updates // config.rounds)


def _probe_of(run: Run, encoder: Encoder | None) -> Probe:
    """The run's measurements; what matches distributions is judged by their distance."""
    eye = Eye(run.student, run.task.finished, Sight(run.student.asked, encoder), run.ranks)
    by, decides = "distance" if run.learners.roles else "fidelity", run.method.last_turn(run.config)
    return Probe(run.config.updates, eye, by, decides)


def _taken_down(run: Run, who: str, batch: Batch, losses: torch.Tensor) -> float:
    """The loss of an update that was made; of the student's all that follows it."""
    value = float((losses * batch["weight"]).mean())
    if who == STUDENT:
        run.student.follow(run.done)
        run.times.learn(batch["u"], losses)
        run.loss.append((run.done, value))
    return value


def _weighting_of(run: Run, level: Callable[[Phases, torch.Tensor], torch.Tensor]) -> Weighting:
    sigma_at = functools.partial(level, run.phases)
    return Weighting(run.config.weighting, run.kind, run.denoiser.path, sigma_at, run.times)


def _turned(run: Run) -> int | None:
    """The update from which the roles matter; None: not yet. Once it has come, the run does not turn back,
    whatever length it is given.
    """
    learners = run.learners
    if learners.turned is None:
        learners.turned = run.method.turns(run.config, run.probe.fidelity)
    return learners.turned


def _context_of(run: Run, who: str) -> Context:
    turned = _turned(run)
    return Context(
        path=run.denoiser.path,
        shape=tuple(run.denoiser.shape),
        noise_scale=run.task.noise_scale,
        phases=run.phases,
        data=run.source.data,
        generator=run.generator,
        student=run.student.answer(who),
        asked=run.student.asked_by_name,
        pulled=run.student.pulled_by_name,
        target=run.student.target,
        teacher=run.student.teacher,
        metric=run.metric,
        kind=run.kind,
        times=run.times,
        weighting=run.weighting if turned is None else run.turned_weighting,
        settings=run.config,
        done=run.done,
        turned=turned,
        told=run.learners.told,
        seen=run.task.seen,
    )


def _recipe_of(run: Run) -> Recipe:
    config = run.config
    return Recipe(
        method=config.method,
        path=run.denoiser.path.name,
        sigmas=tuple(run.task.sigmas_for(config.steps).tolist()),
        churn=run.task.churn,
        cfg=1.0,
        shift=config.shift,
        from_percent=config.from_percent,
        to_percent=config.to_percent,
        base=run.denoiser.base,
        trained=_trained(run),
    )


def _trained(run: Run) -> dict:
    """What a recipe tells of the run that made it."""
    config, probe = run.config, run.probe
    trained = {
        "updates": run.done,
        "batch": config.batch,
        "teacher_cfg": config.cfg,
        "phases": config.phases,
        "rank": config.rank,
        "seed": config.seed,
    }
    if probe.best:  # else it was stopped before it was measured
        trained["fidelity"] = probe.best.fidelity
    trained |= probe.told()
    trained |= {name: run.learners.told[name] for name in SHOWN if name in run.learners.told}
    if run.label:
        trained["run"] = run.label
    if run.learners.skipped:
        trained["skipped"] = run.learners.skipped
    return {**trained, **run.task.told()}
