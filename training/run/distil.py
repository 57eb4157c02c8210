"""A distillation run: from a denoiser and a config to a LoRA with its recipe.

    run = Distillation(denoiser, config)
    for progress in run.progress(): ...       # stop at any time: run.lora_tensors() is what has been learnt
                                              so far
    run.save(path)

Teacher and student are one model, with the adapter off and on. Unless the user brings data, they are the
teacher's own trajectories, solved once at its guidance, of which a few anchors are kept: no data set is
needed. What is learnt from them is the method's (`methods`), how is `descent`'s, and `job` keeps the run on
disk.
"""

import functools
import math
import time

import torch

from ...diffusion.faults import BadValue
from ..adapter.lora import Lora
from ..adapter.warm_start import warm_start
from ..formats.files import save_lora
from ..formats.recipe import Recipe
from ..methods.distances import METRICS
from ..methods.methods import METHODS
from ..methods.times import Times, Weighting
from ..models.denoiser import Guided, InParts, guided
from ..trajectories.noises import noises
from ..trajectories.sampling import SHARD, in_chunks, teacher_cache, teacher_samples, trajectories
from .data import from_trajectories
from .descent import Descent
from .interrupts import held_back
from .phases import Phases
from .progress import Progress

PROBES = 8  # held-out noises on which fidelity is measured
MEASURED = 12  # times in a run
PROBE = ("probe.noise", "probe.condition", "probe.reference")


class Distillation:
    """One run. Its state: adapter and optimiser (`descent`), generator, draws, data, history.

    cache: (folder, identity), to keep the teacher's trajectories in a `cache.TrajectoryCache` there, for a
    run that was stopped and for others that ask alike. identity: its spec's `patches` and `conditioning`, and
    what else of it is not this run's (`seed`). data: `Data` to learn from instead of the teacher's
    trajectories. metric: a distance (B, ...), (B, ...) -> (B,) in place of the config's, a perceptual one for
    instance. warm: tensors of a LoRA file to begin with.
    """

    def __init__(self, denoiser, config, cache=None, data=None, metric=None, warm=None):
        self.denoiser, self.config, self.method, self.given = denoiser, config, METHODS[config.method], data
        self.path = denoiser.path
        self.metric = metric or METRICS[config.metric]
        if denoiser.conditions < 1:
            raise BadValue("The run needs at least one conditioning (a prompt or a label), got none.")
        if data is not None:
            data.check(denoiser, self.method.needs)
        self.kind = denoiser.prediction if self.method.kind == "own" else self.method.kind
        self.generator = torch.Generator().manual_seed(config.seed)
        self.times = Times(config.times)
        self.phases = Phases(config, denoiser)
        level = functools.partial(self.method.level, self.phases)
        self.weighting = Weighting(config.weighting, self.kind, self.path, level, self.times)
        self.asked = InParts(denoiser, config.chunk)  # where nothing is trained
        # one phase ends at the data: what is sampled in several steps is a consistency function, which wants
        # fresh noise
        self.churn = math.inf if self.method.kind == "x0" and config.phases == 1 < config.steps else 0.0
        self.noise_seed, self.cache = config.seed, None
        if cache and data is None:
            folder, identity = cache
            self.noise_seed = identity.get("seed", config.seed)
            self.cache = teacher_cache(
                denoiser,
                cfg=config.cfg,
                sigmas=self.phases.fine,
                kept=self.phases.kept,
                count=self.count,
                seed=config.seed,
                folder=folder,
                identity=identity,
            )
        self.lora = Lora(
            denoiser.module, config.rank, config.alpha, config.include, config.exclude, seed=config.seed
        )
        try:
            if warm is not None:
                warm_start(self.lora, warm)
            self.descent = Descent(
                self.lora, denoiser.module, config, config.batch * math.prod(denoiser.shape)
            )
        except BaseException:
            self.lora.remove()
            raise
        self.data, self.probe, self.drawn, self.label = (
            None,
            None,
            None,
            "",
        )  # drawn: when last measured; label: for the recipe
        self.pairs_of = (
            None  # adapter whose samples the data are, after the first round; None: the base model
        )
        self.best, self.stopped, self.loss, self.fidelity = None, False, [], []  # best: (fidelity, adapter)

    # ---- the run -------------------------------------------------------------------------------

    @property
    def done(self):
        """Updates so far."""
        return self.descent.done

    @property
    def count(self):
        """Trajectories that the run wants of the teacher."""
        return (self.config.images if self.given is None else 0) + PROBES

    def stop(self):
        """End after the update that is under way, and keep what has been learnt."""
        self.stopped = True

    def progress(self):
        """Yield `Progress`; leaves the adapter attached until `close`."""
        config, current = self.config, -1
        chunks = math.ceil(self.count / SHARD)
        total = chunks * config.rounds + config.updates
        while (self.done < self.config.updates or self._is_due()) and not self.stopped:
            number = min(self.done * config.rounds // config.updates, config.rounds - 1)
            if number != current:
                if number and self.done == self._begins(number):
                    self.pairs_of = [a.clone() for a in self.descent.averaged]
                for share in self._sample_data(number):
                    if self.stopped:
                        return
                    step = chunks * number + round(share * chunks) + self.done
                    yield Progress(stage="sampling the teacher", step=step, total=total)
                current, started, first = number, time.perf_counter(), self.done
            if self._is_due():  # at the start, and where a run was cut off while it measured
                self.measure()
                continue
            loss = self.update()
            fidelity = self.measure() if self._is_due() else None
            rate = (self.done - first) / (time.perf_counter() - started)
            yield Progress(
                stage="training",
                step=chunks * (number + 1) + self.done,
                total=total,
                loss=loss,
                fidelity=fidelity,
                samples_per_second=rate * config.batch,
                seconds_left=(config.updates - self.done) / rate if self.done - first >= 10 else None,
            )

    def _is_due(self):
        """Whether fidelity has to be measured now: at the start, the end, and MEASURED times between."""
        every = max(1, self.config.updates // MEASURED)
        at_rest = self.done % every == 0 or self.done == self.config.updates
        return at_rest and (not self.fidelity or self.fidelity[-1][0] != self.done)

    def _begins(self, number):
        """The update at which a round begins."""
        return -(-number * self.config.updates // self.config.rounds)

    def update(self):
        """One optimiser update; returns the loss. Cut off in the middle it leaves the state as it was before,
        or after.
        """
        before = self.generator.get_state()
        try:
            batch = self.method.draw(self)
            losses = self.descent.gradient(batch, lambda part: self.method.loss(self, part))
        except BaseException:
            self.generator.set_state(before)
            raise
        with held_back():
            self.descent.step(losses)
            self.times.learn(batch["u"], losses)
            value = float((losses * batch["weight"]).mean())
            self.loss.append((self.done, value))
        return value

    # ---- who answers: (x, sigma, rows) -> x0 for a batch ----------------------------------------

    def student(self, batch):
        """The model with the adapter."""
        return lambda x, sigma, rows: self.denoiser(x, sigma, _rows(batch, rows))

    def target(self, batch):
        """What the student learns from: itself, or its average."""
        if self.config.target == "stop-gradient":
            return self.student(batch)

        def call(x, sigma, rows):
            with self.lora.using(self.descent.averaged):
                return self.denoiser(x, sigma, _rows(batch, rows))

        return call

    def teacher(self, batch):
        """The model without the adapter, guided."""

        def call(x, sigma, rows):
            with self.lora.off():
                return guided(self.denoiser, x, sigma, _rows(batch, rows), self.config.cfg)

        return call

    # ---- data ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _sample_data(self, number=0):
        """Trajectories: anchors for training, and the probes' references. Yields the share that is done."""
        config, denoiser, count = self.config, self.denoiser, self.count
        condition = torch.arange(count) % denoiser.conditions
        cfg, parts = config.cfg if self.pairs_of is None else 1.0, []
        with self.lora.off() if self.pairs_of is None else self.lora.using(self.pairs_of):
            if self.cache and number == 0:
                yield from self.cache.build(Guided(self.asked, config.cfg), count)
                noise, parts = self.cache.noise(count), [self.cache.read(count)[0]]
            else:
                noise = noises(self.noise_seed, range(number * count, (number + 1) * count), denoiser.shape)
                for part in trajectories(
                    self.asked,
                    noise,
                    condition,
                    cfg,
                    self.phases.fine,
                    self.phases.kept,
                    order=2,
                    corrector=True,
                    chunk=SHARD,
                ):
                    parts.append(part)
                    yield len(parts) / math.ceil(count / SHARD)
        anchors = torch.cat(parts)  # (N, kept, ...), from noise to picture
        self.data = self.given
        if self.given is None:
            self.data = from_trajectories(
                anchors[:-PROBES], condition[:-PROBES], self.method.needs, self.path, self.phases.fine[0]
            )
        if number == 0:
            self.probe = noise[-PROBES:], condition[-PROBES:], anchors[-PROBES:, -1].clone()

    def sigmas_for(self, steps):
        """The grid for sampling in that many steps."""
        return self.phases.sigmas_for(steps)

    # ---- results -------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self):
        """Fidelity: RMSE of the student's samples to the teacher's from the same held-out noise, sampled as
        the recipe says.
        """
        self.drawn = self.of_probe(self.descent.averaged)
        value = float((self.drawn - self.probe[2]).square().mean().sqrt())
        if self.done and math.isfinite(value) and (self.best is None or value < self.best[0]):
            self.best = value, [a.clone() for a in self.descent.averaged]
        self.fidelity.append((self.done, value))  # last: cut off before it, the measurement is made again
        return value

    def of_probe(self, adapter):
        """What those adapter weights make of the held-out noise, sampled as the recipe says."""
        noise, condition, _ = self.probe
        return self.student_samples(noise, condition, self.sigmas_for(self.config.steps), adapter=adapter)

    def before(self, count):
        """What the model itself makes of the first `count` held-out noises in as many steps, guided."""
        config, (noise, condition, _) = self.config, (v[:count] for v in self.probe)
        return teacher_samples(
            self.lora, self.denoiser, noise, condition, config.cfg, config.steps, order=1, chunk=config.chunk
        )

    @property
    def adapter(self):
        """The averaged adapter where it measured best, which is the one saved."""
        return self.descent.averaged if self.best is None else self.best[1]

    @torch.no_grad()
    def student_samples(self, noise, condition, sigmas, churn=None, seed=0, adapter=None):
        """Images (model space) of the saved adapter, or another, from starting noise (B, ...); churn: None
        for the recipe's.
        """
        with self.lora.using(adapter or self.adapter):
            return in_chunks(
                self.asked,
                noise,
                condition,
                1.0,
                sigmas,
                chunk=SHARD,
                seed=seed,
                churn=self.churn if churn is None else churn,
            )

    def lora_tensors(self):
        """The saved adapter in ComfyUI's native keys."""
        return self.lora.state_dict(self.adapter)

    def recipe(self):
        """How to sample with it."""
        config = self.config
        return Recipe(
            method=config.method,
            path=self.path.name,
            sigmas=tuple(self.sigmas_for(config.steps).tolist()),
            churn=self.churn,
            cfg=1.0,
            shift=config.shift,
            base=self.denoiser.base,
            trained=self._trained(),
        )

    def _trained(self):
        """What the recipe tells of the run."""
        config = self.config
        trained = {
            "updates": self.done,
            "batch": config.batch,
            "teacher_cfg": config.cfg,
            "phases": config.phases,
            "rank": config.rank,
            "seed": config.seed,
        }
        fidelity = self.best[0] if self.best else self.fidelity[-1][1] if self.fidelity else math.nan
        if math.isfinite(fidelity):
            trained["fidelity"] = fidelity
        if self.label:
            trained["run"] = self.label
        if self.descent.skipped:
            trained["skipped"] = self.descent.skipped
        return trained

    def save(self, path):
        """Write the LoRA with its recipe, whole or not at all."""
        return save_lora(path, self.lora_tensors(), self.recipe())

    # ---- its state -----------------------------------------------------------------------------

    def state(self):
        """({name: tensor}, JSON-able dict) from which `restore` goes on bit by bit as if nothing had
        happened.
        """
        tensors, numbers = self.descent.state()
        tensors |= {"generator": self.generator.get_state(), "moments": self.times.moments}
        for name, adapter in (("best", self.best and self.best[1]), ("pairs_of", self.pairs_of)):
            tensors |= {f"{name}.{i}": v for i, v in enumerate(adapter or ())}
        if self.probe:
            tensors |= dict(zip(PROBE, self.probe))
        return tensors, {
            **numbers,
            "best": self.best and self.best[0],
            "loss": self.loss,
            "fidelity": self.fidelity,
        }

    def restore(self, tensors, numbers):
        """Take over what `state` gave."""
        self.descent.restore(tensors, numbers)
        self.generator.set_state(tensors["generator"])
        self.times.moments = tensors["moments"].clone()
        best, self.pairs_of = (
            _adapter(tensors, name, self.descent.averaged) for name in ("best", "pairs_of")
        )
        self.best = (numbers["best"], best) if best else None
        self.probe = tuple(tensors[name] for name in PROBE) if PROBE[0] in tensors else None
        self.loss, self.fidelity = ([tuple(v) for v in numbers[name]] for name in ("loss", "fidelity"))

    def close(self):
        """Take the adapter off the model, and let others have the cache."""
        self.lora.remove()
        if self.cache:
            self.cache.close()


def _rows(batch, rows):
    return batch["condition"] if rows is None else batch["condition"][rows]


def _adapter(tensors, name, like):
    """The tensors of that name as a list on the device of `like`, None when there are none."""
    if f"{name}.0" not in tensors:
        return None
    return [tensors[f"{name}.{i}"].to(v).clone() for i, v in enumerate(like)]
