"""Damped Gauss-Newton steps (Levenberg-Marquardt) in all of a solver's weights and levels at once.

The loss of a run is that of its end and, by a share of `ON_THE_WAY`, of the states on its way: each one's
distance from the trajectory at its level, in units of what x is scaled by there. The end alone would do for
most samples; where one is near to the border between two pictures, it is the state on the way that decides,
and there are few such samples to learn from (fitting all weights and levels to the end: Shaul et al. 2024,
BNS, arXiv:2403.01329). It is pseudo-Huber in the distance, so that the few samples that end at another
picture do not outweigh all others.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch

from ..paths import Path
from .linear import Ask, LinearSolver, follow
from .refine import NormalEquations, Parameter, moved, parameters, shifted
from .tangents import tangents
from .trajectories import Trajectories, at_levels

ON_THE_WAY = 0.3  # what all states on the way weigh together in 3 steps, the end weighing 1; of more steps,
# which come nearer in any case, it grows with their square
SOFT = 0.8  # quantile of the distances beyond which a sample counts by its distance, not by its square
FINEST, COARSEST = 1e-4, 0.03  # perturbations: as large as the median distance, within these
SLIGHT = 0.02  # change of lambda by which the trajectory's slope is taken
REUSES = 4  # steps taken with the derivatives of one point
DAMPING = 0.01  # of the first step, in units of each parameter's own size
DAMPINGS = (1.0, 8.0, 64.0)  # tried in turn, as multiples of the current damping
EASED, STIFFENED = 6, 100  # what the damping is divided by after a step, multiplied by where none is found
GAIN = 0.02  # relative, of the loss: what less than that is gained from one point counts as none
STUCK = 3  # points in a row from which nothing is gained


@dataclasses.dataclass(frozen=True)
class Run:
    """A solver's run from the starts of the trajectories `which` (B,).

    trace      the steps, as `linear.follow` yields them
    missing    for each step what its state lacks of the trajectory (B, D)
    distances  (steps, B) float64: RMS of that, in units of the pictures' deviation and of alpha + sigma
    """

    solver: LinearSolver
    trace: list
    missing: list[torch.Tensor]
    distances: torch.Tensor

    @classmethod
    def of(cls, solver: LinearSolver, data: Trajectories, which: torch.Tensor, ask: Ask) -> "Run":
        """The run, with ask answering for those trajectories."""
        trace = list(follow(solver, ask, data.states[which, 0]))
        targets = at_levels(data, solver.sigmas, which)
        missing = [(target - step.x).flatten(1) for target, step in zip(targets, trace)]
        off = torch.stack([lack.double().square().mean(1).sqrt().cpu() for lack in missing])
        off = off / scales(solver, data)[:, None]
        return cls(solver, trace, missing, off.nan_to_num(1e6, 1e6))

    def is_finite(self) -> torch.Tensor:
        """(B,) whether all states and predictions of a sample's run are."""
        every = [part for step in self.trace for part in (step.x, *step.predictions)]
        return torch.stack([part.flatten(1).isfinite().all(1) for part in every]).all(0)

    def only(self, rows: torch.Tensor) -> "Run":
        """The runs of some samples."""
        trace = [
            step._replace(
                x0=step.x0[rows], x=step.x[rows], predictions=tuple(part[rows] for part in step.predictions)
            )
            for step in self.trace
        ]
        return Run(self.solver, trace, [lack[rows] for lack in self.missing], self.distances[:, rows.cpu()])


def scales(solver: LinearSolver, data: Trajectories) -> torch.Tensor:
    """(steps,) of the states after each step: alpha + sigma times the pictures' deviation."""
    levels = torch.tensor(solver.sigmas[1:], dtype=torch.float64)
    return (data.path.alpha(levels) + levels) * data.deviation


def importance(steps: int) -> torch.Tensor:
    """(steps, 1): what the states after each step weigh in a loss, the last one 1."""
    on_the_way = ON_THE_WAY * (steps / 3) ** 2
    out = torch.full((steps, 1), on_the_way / max(1, steps - 1), dtype=torch.float64)
    out[-1] = 1
    return out


def descent(
    solver: LinearSolver,
    data: Trajectories,
    model: Callable[[torch.Tensor], Ask],
    pick: Callable[[LinearSolver], torch.Tensor | None],
    affords: Callable[[int], bool],
) -> Iterator[tuple[LinearSolver, bool]]:
    """Yield (solver, whether new derivatives come next) after each step from the one given; ends where no
    damping leads nearer. Trajectories whose run is not finite are left out; where all are, it ends.

    The derivatives of one point serve a few steps, corrected by what each step was seen to do.
    model(which) -> the `Ask` of some trajectories; pick(solver) -> those for the next derivatives and steps,
    or None to end; affords(samples) -> whether the model may be asked for so many more.
    """
    damping, stuck = DAMPING, 0
    while stuck < STUCK:
        which = pick(solver)
        if which is None:
            return
        first = Run.of(solver, data, which, model(which))
        finite = first.is_finite()
        if not finite.any():
            return
        if not finite.all():
            which, first = which[finite.to(which.device)], first.only(finite)

        def run(solver, which=which):
            return Run.of(solver, data, which, model(which))

        enough = functools.partial(affords, solver.steps * len(which))
        here = first
        known = _linearised(here, data, which, model(which))
        whole = _Problem.of(first, known, data)
        for reuse in range(REUSES):
            problem = _Problem.of(here, known, data) if reuse else whole
            tried = DAMPINGS[:1] if reuse else DAMPINGS
            there, damping = _nearer(problem, here, known, run, enough, damping, tried)
            if there is None:
                break
            _correct(known, here, there, problem.equations.size, data.path)
            here = there
            if reuse < REUSES - 1:
                yield here.solver, False
        if here.solver is solver:
            stuck += 1
            continue
        gained = whole.loss(here.distances) < (1 - GAIN) * whole.loss(first.distances)
        solver, stuck = here.solver, 0 if gained else stuck + 1
        yield solver, True


def _nearer(problem, here, known, run, enough, damping, tried):
    """(the `Run` of less loss that one of the dampings leads to, or None, the damping to go on with)."""
    for times in tried:
        if not enough():
            return None, damping
        change = problem.equations.solution(damping * times)
        solver = moved(here.solver, known.parameters, change, problem.path)
        if solver is None:
            continue
        there = run(solver)
        if problem.loss(there.distances) < problem.loss(here.distances):
            return there, max(damping * times / EASED, 1e-10)
    return None, damping * STIFFENED if len(tried) > 1 else damping


def _linearised(here, data, which, ask):
    """The `Tangents` of what a run's states are off the trajectories by, which run with the levels."""
    nearest = float(here.distances[-1].median())
    step = min(max(nearest, FINEST), COARSEST)
    known = tangents(here.solver, data.path, ask, data.states[which, 0], here.trace, step)
    first = here.solver.sigmas[0]
    for i, sigma in list(enumerate(here.solver.sigmas))[1:-1]:
        parameter = Parameter(i, None)
        if parameter in known.parameters:
            levels = (sigma, shifted(data.path, sigma, SLIGHT))
            before, after = (at_levels(data, [first, level], which)[0] for level in levels)
            known.add(i - 1, parameter, (before - after).flatten(1) / SLIGHT)
    return known


def _correct(known, here, there, size, path):
    """Correct the derivatives by what was seen on the way from one `Run` to another (Broyden 1965, eq. 4.5,
    in parameters scaled by `size`).
    """
    taken = parameters(there.solver, known.parameters, path) - parameters(here.solver, known.parameters, path)
    scaled = taken * size**2
    seen = [before - after for before, after in zip(here.missing, there.missing)]
    off = [picture - expected for picture, expected in zip(seen, known.moved(taken))]
    known.corrected(scaled / (taken @ scaled), off)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """One Gauss-Newton step on the loss as reweighted least squares.

    soft (steps, 1) distances below which the loss is quadratic; weight (steps, 1) of each state
    """

    path: Path
    soft: torch.Tensor
    weight: torch.Tensor
    equations: NormalEquations

    @classmethod
    def of(cls, run, known, data):
        soft = run.distances.quantile(SOFT, dim=1, keepdim=True) + 1e-9
        weight = importance(run.solver.steps)
        # a square's share is the loss's slope over the square's
        shares = weight * (1 + (run.distances / soft).square()).rsqrt()
        shares = shares / scales(run.solver, data)[:, None].square()
        return cls(data.path, soft, weight, NormalEquations.scaled(*known.equations(run.missing, shares)))

    def loss(self, distances):
        """Pseudo-Huber, mean over samples, of all states."""
        each = self.soft.square() * ((1 + (distances / self.soft).square()).sqrt() - 1)
        return float((self.weight * each).sum(0).mean())
