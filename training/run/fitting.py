"""Fitting solvers to a model: trajectories of the teacher first, then one solver for each step count.

    run = SolverFit(teacher, config, folder)
    for progress in run.progress(): ...     # stop at any time: the trajectories so far are kept in `folder`
    run.recipe(4), run.rows, run.report()

The teacher is a `denoiser.Teacher`: `Guided(denoiser, cfg)`, or any Python function by `fit_denoiser`. No
weight is changed.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from ...diffusion.frozen import normalise
from ...diffusion.schedules import auto, grids
from ...diffusion.solvers.accuracy import accuracy
from ...diffusion.solvers.fit import Fitted, fit, starting
from ...diffusion.solvers.trajectories import Trajectories
from ..formats.checks import check_choice, check_whole
from ..formats.recipe import Recipe
from ..models.denoiser import Teacher, for_sampler
from ..ranks.led import Led
from ..ranks.ranks import ALONE, Ranks
from ..trajectories.cache import DTYPES, LIMIT, CacheSpec, TrajectoryCache
from . import budget, fit_report
from .progress import Progress

MOST_STEPS = 12
EFFORTS = {"quick": 0.25, "standard": 0.75, "thorough": 4.0}  # multiples of the trajectories' own cost
STANDARD = "standard"
SMALL, MOST_MORE = 1024, 8  # numbers of a sample below which more is spent, and how many times as much
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
    calls            budgets of model calls, in the place of steps; where a guided step takes two, what each
                     step asks for is part of the fit (`solvers.patterns`)
    trajectories     of the teacher; three eighths of them are held out
    reference_steps  of its solver (second order with corrector), on the automatic grid; of those below the
                     start, two or more for each step of the longest solver, or they would not be converged
    kept             levels of each trajectory that are stored, at most
    effort           how often the model may be asked for each step count: one of `EFFORTS`, or a multiple of
                     the trajectories' own cost; inf: until nothing improves. Of samples of fewer than 1024
                     numbers, which tell less each, up to 8 times as often
    starts           step grids that are run, and solvers that are refined, at most
    dtype            of the stored trajectories, float32 or float16
    denoise          the model's time at which the solver starts, in (0, 1]: below 1 from a noised picture
                     (image to image, the last part of a split schedule). The trajectories' nearest level is
                     moved there, so that each value has trajectories of its own
    """

    steps: tuple[int, ...] | int = (4,)
    trajectories: int = 64
    reference_steps: int = 60
    kept: int = 60
    effort: str | float = STANDARD
    starts: int = 3
    seed: int = 0
    dtype: str = "float32"
    denoise: float = 1.0
    calls: tuple[int, ...] | int = ()

    def __post_init__(self) -> None:
        normalise(self, steps=_counts("steps", self.steps, MOST_STEPS))
        if self.calls != ():  # () for none
            normalise(self, calls=_counts("calls", self.calls, 2 * MOST_STEPS))
        for name, (least, most) in WHOLE.items():
            check_whole(name, getattr(self, name), least, most)
        named = isinstance(self.effort, str) and self.effort in EFFORTS
        if not named and not (type(self.effort) in (int, float) and self.effort > 0):
            raise BadValue(
                "effort must be one of {efforts}, or a number above 0, got {got!r}.",
                efforts=list(EFFORTS),
                got=self.effort,
            )
        check_choice("dtype", self.dtype, DTYPES)
        if type(self.denoise) not in (int, float) or not 0 < self.denoise <= 1:
            raise BadValue("denoise must be above 0 and at most 1, got {got}.", got=self.denoise)


def _counts(name, given, most):
    """The whole numbers of a setting, ascending and each once."""
    counts = given if isinstance(given, (list, tuple)) else (given,)
    if not counts or not all(type(n) is int and 1 <= n <= most for n in counts):
        raise BadValue(
            "{name} must be whole numbers from 1 to {most}, got {got!r}.", name=name, most=most, got=given
        )
    return tuple(sorted(set(counts)))


class SolverFit:
    """One fit. Its state: the cache, and for each step count, or budget of calls, what was found.

    teacher  a `denoiser.Teacher`
    folder   of trajectory caches, which together take up to `limit` bytes
    seconds  for all step counts together, once the trajectories are there; when they are over, what was found
             so far is the result
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
        self.counts = config.calls or config.steps
        self.apart = budget.in_parts(config.calls, teacher)  # whether guidance is fitted in parts
        self.levels, kept, self.first = _levels(self)
        _check_levels(self, kept)
        spec = CacheSpec(
            **teacher.identity,
            conditions=teacher.conditions,
            path=teacher.path.name,
            shape=tuple(teacher.shape),
            sigmas=tuple(self.levels.tolist()),
            kept=kept,
            noise_scale=teacher.noise_scale,
            seed=config.seed,
            dtype=config.dtype,
        )
        self.cache = TrajectoryCache(folder, spec, limit)
        self.found: dict[int, Fitted] = {}  # by step count, or budget of calls
        self.cut_short: set[int] = set()  # those for which the time was up before anything was tried
        # the name of a guider whose guidance is no number, so that no recipe can make it; "" for others
        self.guider = getattr(teacher, "guider_name", "")
        self.data: Trajectories | None = None

    def grid(self, name: str, steps: int, denoise: float = 1.0) -> torch.Tensor:
        """The grid of that name for the teacher's model; auto by the size of a sample."""
        options = {"dimension": math.prod(self.teacher.shape)} if name == "auto" else {}
        return grids.grid(name, steps, self.teacher.sigma_of, self.teacher.path, denoise, **options)

    @torch.no_grad()
    def progress(self) -> Iterator[Progress]:
        """Yield `Progress`: "sampling the teacher" in hundredths, then a hundred for each step count."""
        config = self.config
        total = 100 * (1 + len(self.counts))
        with contextlib.closing(self.cache):
            for share in self.cache.build(self.teacher.teacher, config.trajectories, self.ranks):
                yield Progress(stage="sampling the teacher", step=int(100 * share), total=total)
            with self.teacher:
                if self.ranks.leads:
                    yield from self._fits(total)

    def _fits(self, total):
        config, self.data, begun = self.config, _trajectories(self), time.monotonic()
        each = self.evaluations()
        what = "calls" if config.calls else "steps"
        for n, steps in enumerate(self.counts):
            left = self.seconds - (time.monotonic() - begun)
            done, part = 100 * (n + 1), left / (len(self.counts) - n)
            deadline = time.monotonic() + part
            for fitted in _fitted(self, steps, each, deadline):
                self.found[steps] = fitted
                share = min(1.0, fitted.evaluations / each) if math.isfinite(each) else 0.5
                yield Progress(
                    stage=f"fitting {steps} {what}",
                    fitting=steps,
                    step=done + 1 + int(98 * share),
                    total=total,
                    fidelity=float(fitted.own.mean()),
                )
            yield Progress(
                stage=f"fitting {steps} {what}",
                fitting=steps,
                step=done + 100,
                total=total,
                fidelity=float(self.found[steps].own.mean()),
            )
            if not self.found[steps].tried and time.monotonic() > deadline:
                self.cut_short.add(steps)

    def evaluations(self) -> float:
        """How many samples the model may be asked for by the fit of one step count."""
        config = self.config
        effort = EFFORTS.get(config.effort, config.effort)
        more = min(MOST_MORE, max(1.0, math.sqrt(SMALL / math.prod(self.teacher.shape))))
        return effort * more * config.trajectories * config.reference_steps

    # ---- results -------------------------------------------------------------------------------

    def gained(self, steps: int) -> bool:
        """Whether what is handed on is nearer than the automatic solver, beyond chance."""
        return fit_report.gained(self.found[steps])

    def recipe(self, steps: int) -> Recipe:
        """The recipe for that step count: the fitted solver, or the automatic one where none is nearer beyond
        doubt.
        """
        fitted, config = self.found[steps], self.config
        told = accuracy(fitted.own, self.data.between, fitted.chosen)
        return Recipe(
            method="classical" if fitted.solver == fitted.auto else "fitted",
            path=self.teacher.path.name,
            sigmas=fitted.solver.sigmas,
            coefficients=fitted.solver.rows,
            asks=fitted.solver.asks,
            fresh=fitted.solver.fresh,
            cfg=self.teacher.cfg,
            base=self.teacher.base,
            errors={
                "held_out": told.mean,
                "low": told.low,
                "high": told.high,
                "median": told.median,
                "elsewhere": told.elsewhere,
                "auto": float(fitted.base.mean()),
            },
            trained={
                "trajectories": config.trajectories,
                "reference_steps": config.reference_steps,
                "seed": config.seed,
                "evaluations": fitted.evaluations,
                **({"guider": self.guider} if self.guider else {}),
                **({"denoise": config.denoise} if config.denoise < 1 else {}),
            },
        )

    @property
    def rows(self) -> list[dict]:
        """What `fit_report.row` tells of each step count, or budget of calls.

        cut_short: whether the time was up before anything was tried; auto_at: of steps or calls, the
        automatic solver's
        """
        cfg, between = None if self.guider else self.teacher.cfg, self.data.between
        rows = [fit_report.row(n, fitted, between, cfg) for n, fitted in sorted(self.found.items())]
        for row in rows:
            row["cut_short"] = row["count"] in self.cut_short
            row["auto_at"] = (row["auto_calls"] if self.config.calls else None) or row["count"]
        return rows

    def report(self) -> str:
        """The table in words."""
        count, held = self.config.trajectories, len(self.data.split()[1])
        size = self.cache.bytes(count)
        start = float(self.data.sigmas[0]) if self.config.denoise < 1 else None
        return fit_report.table(self.rows, count, self.config.reference_steps, held, size, start)


def _levels(run):
    """(the trajectories' levels, float64; which are kept; which of them a solver starts from)."""
    config, first = run.config, 0
    levels = run.grid("auto", config.reference_steps)
    count = min(config.kept, config.reference_steps) + 1
    kept = torch.linspace(0, config.reference_steps, count).round().int().tolist()
    if config.denoise < 1:
        begun = torch.tensor([config.denoise], dtype=torch.float64)
        times = grids.time_of(run.teacher.sigma_of, levels[1:-1])
        first = 1 + int((times - begun).abs().argmin())
        levels[first] = run.teacher.sigma_of(begun).double()[0]
        kept[min(range(1, count - 1), key=lambda i: abs(kept[i] - first))] = first
    return levels, tuple(kept), first


def _check_levels(run, kept):
    """Raise ValueError where the trajectories have too few levels for the longest solver."""
    config = run.config
    both = run.apart and run.teacher.cfg != 0  # are asked for in the first step
    most, left = max(run.counts) - both, len(run.levels) - 1 - run.first
    if left < 2 * most and config.denoise == 1:
        raise BadValue(
            "reference_steps must be {least} or more, twice the {steps} steps that the longest solver may "
            "take, got {got}. Raise it, or ask for fewer steps or calls.",
            least=2 * most,
            steps=most,
            got=config.reference_steps,
        )
    if left < 2 * most:
        raise BadValue(
            "denoise must leave {least} or more of the {reference} reference_steps, twice the {steps} steps "
            "that the longest solver may take; {got:g} leaves {left}. Raise either, or ask for fewer steps "
            "or calls.",
            least=2 * most,
            reference=config.reference_steps,
            steps=most,
            got=config.denoise,
            left=left,
        )
    left = sum(place > run.first for place in kept)
    if left < most:
        raise BadValue(
            "kept must leave a level of the trajectories for each of {steps} steps, {got} leaves {left}. "
            "Raise kept.",
            steps=most,
            got=config.kept,
            left=left,
        )


def _fitted(run, count, evaluations, deadline):
    """Yield `Fitted` for a step count, or a budget of calls."""
    steps = count // 2 if run.apart else count
    every = _grids(run, steps)
    own = auto.solver(every[0], run.teacher.path, _strength(run.teacher))
    starts = starting(run.data, every, run.config.starts, own["order"], own["corrector"])
    # what was found for fewer, so that more are no worse
    shorter = [run.found[n] for n in sorted(run.found)[-1:]]
    asked = 0.0

    def over():
        return time.monotonic() > deadline

    if run.apart and not over():
        solvers = [one.solver for one in shorter]
        found, asked = budget.starts(run, count, solvers, lambda n: _grids(run, n)[0], evaluations, over)
        starts, evaluations = starts + found, evaluations - asked
    config = run.config
    for fitted in fit(run.data, starts, evaluations, config.starts, config.seed, shorter, over):
        yield dataclasses.replace(fitted, evaluations=fitted.evaluations + asked)


def _strength(teacher):
    """Of its guidance, what the automatic solver goes by: the CFG, or what a teacher has beside it."""
    return getattr(teacher, "strength", teacher.cfg)


def _grids(run, steps):
    """Those that a fit starts from, all beginning where its trajectories do; the automatic one first."""
    names = ("auto", *(name for name in grids.NAMES if name != "auto"))
    return [run.grid(name, steps, run.config.denoise) for name in names]


def _trajectories(run):
    """What a fit is made from, once it is drawn: the part of the way that it is for."""
    count, spec = run.config.trajectories, run.cache.spec
    states, predictions = run.cache.read(count)
    condition = run.cache.conditions(count)
    levels, first = run.levels[list(spec.kept)], spec.kept.index(run.first)
    levels, states, predictions = levels[first:], states[:, first:], predictions[:, first:]

    def denoise(x, sigma, which):
        return for_sampler(run.teacher, condition[which], dtype=torch.float64)(x, sigma)

    def apart(x, sigma, which, kinds):
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        return run.teacher.apart(x, level, condition[which], kinds)

    parts = apart if budget.has_parts(run.teacher) else None
    return Trajectories(run.teacher.path, levels, states, predictions, denoise, condition, parts)
