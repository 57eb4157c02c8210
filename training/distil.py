"""A distillation run: from a denoiser and a config to a LoRA with its recipe.

    run = Distillation(denoiser, config)
    for progress in run.progress(): ...       # stop at any time: run.lora_tensors() is what has been learnt so far
    run.save(path)

Teacher and student are one model, with the adapter off and on. The data are the teacher's own trajectories, solved once
at its guidance, of which a few anchors are kept: training needs no further teacher call, and no data set.
"""

import dataclasses
import logging
import math
import time

import torch

from ..diffusion.grids import grid, shifted
from ..diffusion.samplers import batch_noise, sample
from .cache import CacheSpec, TrajectoryCache, recorded, start
from .denoiser import Guided, bound
from .files import save_lora
from .lora import Lora
from .objectives.consistency import METRICS, consistency
from .recipe import Recipe

PROBES = 8              # held-out noises on which fidelity is measured
CHUNK = 32              # samples of one forward call, where nobody says


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run: `stage` ("sampling the teacher" or "training"), and step of total in the whole run."""

    stage: str
    step: int
    total: int
    loss: float | None = None
    fidelity: float | None = None       # RMSE to the teacher from the same noise, model space, when it was just measured
    seconds_left: float | None = None


class Distillation:
    """One run. Its state: adapter, averaged adapter, optimiser, generator, data, history.

    cache: (folder, identity), to keep the teacher's trajectories in a `cache.TrajectoryCache` there, for a run that was stopped and
    for others that ask alike. identity: its spec's `patches` and `conditioning`, and what else of it is not this run's (`seed`).
    """

    def __init__(self, denoiser, config, cache=None):
        self.denoiser, self.config = denoiser, config
        if denoiser.conditions < 1:
            raise ValueError("The run needs at least one conditioning (a prompt or a label), got none.")
        self.generator = torch.Generator().manual_seed(config.seed)
        self._lay_phases()
        self.cache = self._cache(*cache) if cache else None
        self.lora = Lora(denoiser.module, config.rank, config.alpha, seed=config.seed)
        self.averaged = [p.detach().clone() for p in self.lora.parameters()]
        self.optimiser = torch.optim.AdamW(self.lora.parameters(), lr=config.lr, weight_decay=0.0, betas=(0.9, 0.99))
        self.anchors, self.condition, self.probe, self.done = None, None, None, 0
        self.scale = 2.0 ** math.floor(math.log2(config.batch * math.prod(denoiser.shape)))    # of the loss, see _descend
        self.overwrites = False                 # the model was seen to write over saved activations
        self.loss, self.fidelity = [], []       # [(update, value)]

    # ---- the run -------------------------------------------------------------------------------

    def progress(self):
        """Yield `Progress`; leaves the adapter attached until `close`."""
        config = self.config
        chunks = math.ceil((config.images + PROBES) / config.chunk)
        total = chunks + config.updates
        for share in self._sample_data():
            yield Progress(stage="sampling the teacher", step=round(share * chunks), total=total)
        self._measure()
        started = time.perf_counter()
        while self.done < config.updates:
            loss = self.update()
            fidelity = self._measure() if self.done % max(1, config.updates // 12) == 0 or self.done == config.updates else None
            rate = (time.perf_counter() - started) / self.done
            yield Progress(stage="training", step=chunks + self.done, total=total, loss=loss, fidelity=fidelity,
                           seconds_left=rate * (config.updates - self.done) if self.done >= 10 else None)

    @torch.no_grad()
    def _sample_data(self):
        """The teacher's trajectories: anchors for training, and the probes' references. Yields the share that is done."""
        config, denoiser = self.config, self.denoiser
        count = config.images + PROBES
        condition = torch.arange(count) % denoiser.conditions
        parts = []
        with self.lora.off():
            if self.cache:
                yield from self.cache.build(Guided(denoiser, config.cfg), count)
                noise, parts = self.cache.noise(count), [self.cache.read(count)[0]]
            else:
                noise = torch.randn(count, *denoiser.shape, generator=self.generator)
                for part in trajectories(denoiser, noise, condition, config.cfg, self.fine, self.kept, order=2,
                                         corrector=True, chunk=config.chunk):
                    parts.append(part)
                    yield len(parts) / math.ceil(count / config.chunk)
        anchors = torch.cat(parts)      # (N, kept, ...), from noise to picture
        self.anchors, self.condition = anchors[:config.images], condition[:config.images]
        self.probe = noise[config.images:], condition[config.images:], anchors[config.images:, -1]

    def _cache(self, folder, identity):
        """The trajectory cache for this run's data; None where it would be larger than caches may be."""
        config, denoiser = self.config, self.denoiser
        own = dict(model=denoiser.base, conditions=denoiser.conditions, guidance=f"CFG {config.cfg:g}", path=denoiser.path.name,
                   shape=tuple(denoiser.shape), sigmas=tuple(self.fine.tolist()), kept=tuple(self.kept), order=2, corrector=True,
                   noise_scale=denoiser.noise_scale, seed=config.seed, shard=config.chunk, predictions=False)
        cache = TrajectoryCache(folder, CacheSpec(**{**own, **identity}))
        size = cache.bytes(config.images + PROBES)
        if size <= cache.limit:
            return cache
        logging.warning("Fewstep: the teacher's trajectories take %.1f GiB, above the %.1f for such files, and are kept in memory "
                        "alone.", size / 2**30, cache.limit / 2**30)
        return None

    def _lay_phases(self):
        """The grid on which the teacher is solved, and which of its points are kept.

        Kept are the phases' edges and `between` points inside each. The first step, where most of the error of a solver
        arises, is halved.
        """
        config = self.config
        length = config.image_steps // config.phases
        edges = range(0, config.image_steps + 1, length)
        inside = torch.linspace(0, length, config.between + 2).round().int().tolist()
        kept = sorted({a + k for a in edges[:-1] for k in inside})
        self.edges = torch.tensor([kept.index(e) for e in edges])                   # which of the kept are edges
        places = torch.arange(len(kept) - 1)
        self.ends = self.edges[torch.searchsorted(self.edges, places, right=True)]  # the edge that ends each one's phase
        times = torch.tensor([0, 0.5, *range(1, config.image_steps)], dtype=torch.float64) / config.image_steps
        self.fine = torch.cat([shifted(self.denoiser.sigma_of, config.shift)(1 - times).to(torch.float64), torch.zeros(1)])
        coarse = self.sigmas_for(config.image_steps)
        self.kept = [int((self.fine - coarse[k]).abs().argmin()) for k in kept]
        self.levels = self.fine[self.kept].float()                                  # sigma of every kept point

    def sigmas_for(self, steps):
        """The grid for sampling in that many steps; with as many steps as phases, the phases' edges."""
        return grid("uniform", steps, shifted(self.denoiser.sigma_of, self.config.shift), self.denoiser.path)

    def update(self):
        """One optimiser update; returns the loss."""
        config, g = self.config, self.generator
        levels, last = self.levels, len(self.levels) - 1
        pick = torch.randint(config.images, (config.batch,), generator=g)
        index = torch.randint(last, (config.batch,), generator=g)
        after, end = index + 1, self.ends[index]
        whole = torch.arange(config.batch) < round(config.one_step * config.batch)
        index[whole], after[whole], end[whole] = 0, last, last
        condition = self.condition[pick]

        def student(x, sigma, rows):
            return self.denoiser(x, sigma, condition if rows is None else condition[rows])

        def target(x, sigma, rows):
            if config.target == "stop-gradient":
                return student(x, sigma, rows)
            with self.lora.using(self.averaged):
                return student(x, sigma, rows)

        def compute():
            return consistency(student, target, self.denoiser.path, self.anchors[pick, index], self.anchors[pick, after],
                               levels[index], levels[after], levels[end], metric=METRICS[config.metric])

        loss = self._backward(lambda: compute() * self.scale) / self.scale
        self._descend()
        self.done += 1
        decay = min(config.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for a, p in zip(self.averaged, self.lora.parameters()):
                a.lerp_(p, 1 - decay)
        value = float(loss.detach())
        self.loss.append((self.done, value))
        return value

    def _descend(self):
        """One step of the optimiser. The gradient carries `scale`, a power of 2 that keeps it within half precision.

        Where it overflowed the step is left out and the scale lowered; raises ArithmeticError when there is none left to lower.
        """
        for p in self.lora.parameters():
            if p.grad is not None:
                p.grad.div_(self.scale)
        norm = torch.nn.utils.clip_grad_norm_(self.lora.parameters(), 1.0)
        if norm.isfinite():
            self.optimiser.param_groups[0]["lr"] = self.config.lr * self._lr_factor()
            self.optimiser.step()
        elif self.scale > 1:
            self.scale = max(1.0, self.scale / 16)
        else:
            raise ArithmeticError(f"The gradient must be finite; it is not at update {self.done + 1}. Lower lr "
                                  f"({self.config.lr:g}), or run the model in float32 or bfloat16.")
        self.optimiser.zero_grad(set_to_none=True)

    def _backward(self, compute):
        """The loss with its gradient in the adapter, also for models that write over activations which autograd has saved.

        Flux and its kin add to their residual streams in place. PyTorch notices and refuses; from then on saved tensors are
        copied when something overwrites them, which is exact and slower.
        """
        if not self.overwrites:
            try:
                loss = compute()
                loss.backward()
                return loss
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                self.overwrites = True
                self.optimiser.zero_grad(set_to_none=True)
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            loss = compute()
            loss.backward()
        return loss

    def _lr_factor(self):
        share = self.done / self.config.updates
        return min(1.0, (self.done + 1) / max(1, 0.05 * self.config.updates)) * (0.5 + 0.5 * math.cos(math.pi * share))

    @torch.no_grad()
    def _measure(self):
        """Fidelity: RMSE of the student's samples to the teacher's from the same held-out noise, without churn."""
        noise, condition, reference = self.probe
        x = self.student_samples(noise, condition, self.sigmas_for(self.config.steps))
        value = float((x - reference).square().mean().sqrt())
        self.fidelity.append((self.done, value))
        return value

    # ---- results -------------------------------------------------------------------------------

    @torch.no_grad()
    def student_samples(self, noise, condition, sigmas, churn=0.0, seed=0):
        """Images (model space) of the averaged adapter from starting noise (B, ...)."""
        with self.lora.using(self.averaged):
            return in_chunks(self.denoiser, noise, condition, 1.0, sigmas, churn=churn, seed=seed, chunk=self.config.chunk)

    def lora_tensors(self):
        """The averaged adapter in ComfyUI's native keys."""
        return self.lora.state_dict(self.averaged)

    def recipe(self):
        """How to sample with it."""
        config = self.config
        trained = {"updates": self.done, "batch": config.batch, "teacher_cfg": config.cfg, "phases": config.phases,
                   "rank": config.rank, "seed": config.seed}
        if self.fidelity:
            trained["fidelity"] = self.fidelity[-1][1]
        return Recipe(method=config.method, path=self.denoiser.path.name, sigmas=tuple(self.sigmas_for(config.steps).tolist()),
                      churn=0.0, cfg=1.0, base=self.denoiser.base, trained=trained)

    def save(self, path):
        """Write the LoRA with its recipe, whole or not at all."""
        return save_lora(path, self.lora_tensors(), self.recipe())

    def close(self):
        """Take the adapter off the model."""
        self.lora.remove()


def trajectories(denoiser, noise, condition, cfg, sigmas, kept=(-1,), *, churn=0.0, seed=0, chunk=CHUNK, **solver):
    """Sample from unit noise (B, ...) along `sigmas`; yield `chunk` samples at a time (b, len(kept), ...), model space.

    kept: which of the len(sigmas) states of each trajectory, rising; 0 is the first, of noise, -1 the image alone.
    solver: order and corrector of `samplers.sample`.
    """
    kept = [k % len(sigmas) for k in kept]
    for i in range(0, len(noise), chunk):
        fresh = batch_noise(seed + i)
        x = start(noise[i:i + chunk], sigmas, denoiser.path, denoiser.noise_scale)
        states = [x] if 0 in kept else []
        run = sample(bound(denoiser, condition[i:i + chunk], cfg), x, sigmas, denoiser.path, churn=churn, **solver,
                     noise=lambda x, fresh=fresh: denoiser.noise_scale * fresh(x))
        for _ in recorded(run, kept, states, []):
            pass
        yield torch.stack(states, 1)


def in_chunks(denoiser, noise, condition, cfg, sigmas, **options):
    """The images at the end of `trajectories`, (B, ...), float32."""
    return torch.cat(list(trajectories(denoiser, noise, condition, cfg, sigmas, **options)))[:, 0]


@torch.no_grad()
def teacher_samples(lora, denoiser, noise, condition, cfg, steps, order=2, chunk=CHUNK):
    """Images of the base model, adapter off, by the deterministic solver of that order; steps: uniform times, or a grid."""
    sigmas = grid("uniform", steps, denoiser.sigma_of, denoiser.path) if isinstance(steps, int) else steps
    with lora.off():
        return in_chunks(denoiser, noise, condition, cfg, sigmas, order=order, chunk=chunk)
