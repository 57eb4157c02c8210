"""Fitting solvers to a model: trajectories of the teacher first, then one solver for each step count.

    run = SolverFit(teacher, config, folder)
    for progress in run.progress(): ...     # stop at any time: the trajectories so far are kept in `folder`
    run.recipe(4), run.rows, run.report()

The teacher is a `denoiser.Teacher`: `Guided(denoiser, cfg)`, or any Python function by `fit_denoiser`. No
weight is changed.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ...diffusion.faults import BadValue, Message, lines
from ...diffusion.frozen import normalise
from ...diffusion.schedules import grids
from ...diffusion.solvers.fit import REAL, Fitted, fit
from ...diffusion.solvers.linear import lengthened
from ...diffusion.solvers.trajectories import Trajectories
from ..formats.checks import check_choice, check_whole
from ..formats.recipe import Recipe
from ..models.denoiser import Teacher, for_sampler
from ..ranks.led import Led
from ..ranks.ranks import ALONE, Ranks
from ..trajectories.cache import DTYPES, LIMIT, CacheSpec, TrajectoryCache
from .progress import Progress

MOST_STEPS = 12
WHOLE = {
    "trajectories": (4, 10**6),
    "reference_steps": (2 * MOST_STEPS, 10_000),
    "kept": (MOST_STEPS, 10_000),
    "starts": (1, 100),
    "seed": (0, 2**64 - 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit; raises ValueError for a value out of range, naming it.

    steps            step counts to fit a solver for
    trajectories     of the teacher; a quarter of them is held out
    reference_steps  of its solver (second order with corrector), on the automatic grid
    kept             levels of each trajectory that are stored, at most
    effort           how often the model may be asked for each step count, as a multiple of the trajectories'
                     own cost; inf: until nothing improves
    starts           step grids that are run before the best is refined
    dtype            of the stored trajectories, float32 or float16
    """

    steps: tuple[int, ...] | int = (4,)
    trajectories: int = 64
    reference_steps: int = 60
    kept: int = 60
    effort: float = 0.5
    starts: int = 3
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        counts = self.steps if isinstance(self.steps, (list, tuple)) else (self.steps,)
        if not counts or not all(type(n) is int and 1 <= n <= MOST_STEPS for n in counts):
            raise BadValue(
                "steps must be whole numbers from 1 to {most}, got {got!r}.",
                most=MOST_STEPS,
                got=self.steps,
            )
        normalise(self, steps=tuple(sorted(set(counts))))
        for name, (least, most) in WHOLE.items():
            check_whole(name, getattr(self, name), least, most)
        if type(self.effort) not in (int, float) or not self.effort > 0:
            raise BadValue("effort must be above 0, got {got!r}.", got=self.effort)
        check_choice("dtype", self.dtype, DTYPES)


class SolverFit:
    """One fit. Its state: the cache, and for each step count what was found.

    teacher  a `denoiser.Teacher`
    folder   of trajectory caches, which together take up to `limit` bytes
    seconds  for trajectories and all step counts together; when they are over, what was found so far is the
             result
    ranks    of several processes all solve trajectories and answer for the model; rank 0 alone has a result
    """

    def __init__(
        self,
        teacher: Teacher,
        config: FitConfig,
        folder: str | Path,
        limit: int = LIMIT,
        seconds: float = math.inf,
        ranks: Ranks = ALONE,
    ):
        self.teacher, self.config, self.seconds, self.ranks = Led(teacher, ranks), config, seconds, ranks
        if teacher.conditions < 1:
            raise BadValue("The fit needs at least one conditioning (a prompt or a label), got none.")
        fine = self.grid("auto", config.reference_steps)
        count = min(config.kept, config.reference_steps) + 1
        kept = torch.linspace(0, config.reference_steps, count).round().int().tolist()
        spec = CacheSpec(
            **teacher.identity,
            conditions=teacher.conditions,
            path=teacher.path.name,
            shape=tuple(teacher.shape),
            sigmas=tuple(fine.tolist()),
            kept=tuple(sorted(set(kept))),
            noise_scale=teacher.noise_scale,
            seed=config.seed,
            dtype=config.dtype,
        )
        self.cache = TrajectoryCache(folder, spec, limit)
        self.found: dict[int, Fitted] = {}  # by step count
        self.data: Trajectories | None = None

    def grid(self, name: str, steps: int) -> torch.Tensor:
        """The grid of that name for the teacher's model; auto by the size of a sample."""
        options = {"dimension": math.prod(self.teacher.shape)} if name == "auto" else {}
        return grids.grid(name, steps, self.teacher.sigma_of, self.teacher.path, **options)

    @torch.no_grad()
    def progress(self) -> Iterator[Progress]:
        """Yield `Progress`: "sampling the teacher" in hundredths, then a hundred for each step count."""
        config, begun = self.config, time.monotonic()
        total = 100 * (1 + len(config.steps))
        for share in self.cache.build(self.teacher.teacher, config.trajectories, self.ranks):
            yield Progress(stage="sampling the teacher", step=int(100 * share), total=total)
        with self.teacher:
            if self.ranks.leads:
                yield from self._fits(begun, total)

    def _fits(self, begun, total):
        config, self.data = self.config, _trajectories(self)
        each = config.effort * config.trajectories * config.reference_steps
        for n, steps in enumerate(config.steps):
            left = self.seconds - (time.monotonic() - begun)
            done, part = 100 * (n + 1), left / (len(config.steps) - n)
            for fitted in self._fit(steps, each, time.monotonic() + part):
                self.found[steps] = fitted
                share = min(1.0, fitted.evaluations / each) if math.isfinite(each) else 0.5
                yield Progress(
                    stage=f"fitting {steps} steps",
                    fitting=steps,
                    step=done + 1 + int(98 * share),
                    total=total,
                    fidelity=fitted.error,
                )
            yield Progress(
                stage=f"fitting {steps} steps",
                fitting=steps,
                step=done + 100,
                total=total,
                fidelity=self.found[steps].error,
            )

    def _fit(self, steps, evaluations, deadline):
        names = [name for name in grids.NAMES if name != "auto"]
        starts = [self.grid(name, steps) for name in ("auto", *names)]
        # the solver of fewer steps, lengthened, so that more are no worse
        others = [self.found[n].solver for n in sorted(self.found)[-1:]]
        while others and others[0].steps < steps:
            others = [lengthened(others[0], self.teacher.path)]
        for fitted in fit(self.data, starts, evaluations, self.config.starts, self.config.seed, others):
            yield fitted
            if time.monotonic() > deadline:
                return

    # ---- results -------------------------------------------------------------------------------

    def gained(self, steps: int) -> bool:
        """Whether the fitted solver beats the classical one on what was held out, beyond chance."""
        fitted = self.found[steps]
        return fitted.gain > REAL and fitted.error < fitted.classical

    def recipe(self, steps: int) -> Recipe:
        """The recipe for that step count: the fitted solver, or the classical one where there was no gain."""
        fitted, config = self.found[steps], self.config
        gained = self.gained(steps)
        solver = fitted.solver if gained else fitted.base
        return Recipe(
            method="fitted" if gained else "classical",
            path=self.teacher.path.name,
            sigmas=solver.sigmas,
            coefficients=solver.rows,
            cfg=self.teacher.cfg,
            base=self.teacher.base,
            errors={"held_out": fitted.error if gained else fitted.classical, "classical": fitted.classical},
            trained={
                "trajectories": config.trajectories,
                "reference_steps": config.reference_steps,
                "seed": config.seed,
                "evaluations": fitted.evaluations,
            },
        )

    @property
    def rows(self) -> list[dict]:
        """[{steps, fitted, classical, auto, gain, gained, evaluations}], errors in deviations of pictures."""
        return [
            {
                "steps": n,
                "fitted": f.error if self.gained(n) else f.classical,
                "classical": f.classical,
                "auto": f.auto,
                "gain": f.gain,
                "gained": self.gained(n),
                "evaluations": f.evaluations,
            }
            for n, f in sorted(self.found.items())
        ]

    def report(self) -> str:
        """The table in words, in English."""
        return str(self.told())

    def told(self) -> Message:
        """The table in words."""
        head = Message(
            "{count} trajectories of {steps} steps, a quarter of them held out; {size:.1f} MiB. Errors: RMSE "
            "to the converged picture, share of the pictures' spread.",
            count=self.config.trajectories,
            steps=self.config.reference_steps,
            size=self.cache.bytes(self.config.trajectories) / 2**20,
        )
        return lines(head, Message("steps   fitted     auto  classical"), *map(_row_in_words, self.rows))


def _row_in_words(row):
    errors = {name: row[name] for name in ("steps", "fitted", "auto", "classical")}
    if row["gained"]:
        return Message("{steps:5} {fitted:8.4f} {auto:8.4f} {classical:10.4f}", **errors)
    return Message(
        "{steps:5} {fitted:8.4f} {auto:8.4f} {classical:10.4f}  no gain: the classical solver is returned",
        **errors,
    )


def _trajectories(run):
    """What a fit is made from, once it is drawn."""
    count, spec = run.config.trajectories, run.cache.spec
    states, predictions = run.cache.read(count)
    condition = run.cache.conditions(count)
    levels = torch.tensor(spec.sigmas, dtype=torch.float64)[list(spec.kept)]

    def denoise(x, sigma, which):
        return for_sampler(run.teacher, condition[which], dtype=torch.float64)(x, sigma)

    def apart(x, sigma, which, kinds):
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        return run.teacher.apart(x, level, condition[which], kinds)

    parts = apart if getattr(run.teacher, "apart", None) and run.teacher.cfg != 1 else None
    return Trajectories(run.teacher.path, levels, states, predictions, denoise, condition, parts)
