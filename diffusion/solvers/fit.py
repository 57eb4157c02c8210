"""Fitting a solver to a model: step grid and weights for a few steps, from accurate trajectories, with no
gradient of the model.

    data = trajectories.Trajectories(path, sigmas, states, predictions, denoise)
    for fitted in fit(data, grids): ...          # the first is a classical solver, each later one is better
    fitted.solver                                # a `linear.LinearSolver`

1. Grids: those given, and one by dynamic programming over the trajectories' own levels (Chen et al. 2024,
   GITS, arXiv:2405.11326). They are compared by runs in which the model's answers are read off the
   trajectories, which cost no model call.
2. The best few are run, each with the classical weights of order 2 and 3, and each step's weights are then
   moved to where least squares would bring the run back onto the trajectory (the solver's own roll-out, Kim
   et al. 2025, S4S, arXiv:2502.17423).
3. From the best of these, damped Gauss-Newton steps (Levenberg-Marquardt) in all weights and levels at once,
   towards the end of each trajectory; derivatives are differences of runs. The loss is pseudo-Huber in each
   sample's distance, so that the few that end at another picture do not outweigh all others (fitting all
   weights and levels: Shaul et al. 2024, BNS, arXiv:2403.01329).

A part of the trajectories is held out: it says which candidate is kept, when to stop, and whether there is a
gain at all.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from .linear import GUIDED, LinearSolver, classical, follow, solve_apart
from .refine import NormalEquations, Parameter, differences, moved, parameters
from .rollout import rolled_out
from .trajectories import Trajectories, by_dynamic_programming, ranked

REAL = 1.5  # standard errors of a gain that is taken for real
ORDERS = (2, 3)  # of the classical solvers, with corrector
PATIENCE = 3  # steps without gain on the held-out part
GAIN = 0.002  # relative, of a step that counts as one
SOFT = 0.8  # quantile of the distances beyond which a sample counts by its distance, not by its square
FINEST, COARSEST = 1e-4, 0.03  # perturbations: as large as the median distance, within these
REUSES = 4  # steps taken with the derivatives of one point
DAMPING = 0.01  # of the first Gauss-Newton step, in units of each parameter's own size
DAMPINGS = (1.0, 8.0, 64.0)  # tried in turn, as multiples of the current damping
PART = 0.5  # what a conditional or unconditional prediction costs, a guided one being 1
EASED, STIFFENED = 6, 100  # what the damping is divided by after a step, multiplied by where none is found


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solver and its errors on the held-out trajectories, in units of the images' deviation.

    error        RMSE over all of them
    base         the first grid's classical solver of order 2, or the best of those run where it is better
                 beyond chance
    classical    the base's error
    auto         that of the first grid's classical solver of order 2
    gain         mean difference of their distances or log distances, base minus this, in standard errors: the
                 larger of the two, as a few samples that now end at the right picture show in the first, a
                 closer fit of all in the second
    evaluations  of the model, in samples, that the fit has cost so far
    stage        "classical", "start" or "refined": how the solver was found
    """

    solver: LinearSolver
    error: float
    base: LinearSolver
    classical: float
    auto: float
    gain: float
    evaluations: int
    stage: str


def fit(
    data: Trajectories,
    grids: Sequence[torch.Tensor],
    evaluations: float = math.inf,
    starts: int = 3,
    seed: int = 0,
    others: Sequence[LinearSolver] = (),
) -> Iterator[Fitted]:
    """Yield `Fitted` solvers, better and better on the held-out part; the first is a classical one.

    grids        step grids (steps + 1,) of one length to start from, the first the automatic one
    evaluations  how many samples the model may be asked for, the first comparison of classical solvers apart
    starts       how many of the grids are run
    others       solvers of as many steps to start from too, such as that of fewer steps, `linear.lengthened`
    Raises ValueError for too few trajectories.
    """
    bench = _Bench(data, evaluations, seed)
    steps = len(grids[0]) - 1
    programmed = data.sigmas[by_dynamic_programming(data, steps)]
    chosen = [grids[0], *ranked(data, [*grids[1:], programmed], bench.train)[: starts - 1]]
    orders = ORDERS[: max(1, steps - 1)]
    solvers = [classical(grid, data.path, order) for grid in chosen for order in orders]
    known = sorted(solvers, key=bench.score)
    bench.auto = bench.base = solvers[0]
    if bench.gain(known[0]) > REAL:
        bench.base = known[0]
    yield bench.fitted(bench.base, "classical")
    rolled = [bench.rolled_out(solver) for solver in known[: 1 if bench.short(0.5) else starts]]
    best = known[0]
    for start in sorted([*known, *rolled, *others], key=bench.score)[:starts]:
        for solver, stage in _candidates(bench, start):
            if bench.score(solver) < bench.score(best):
                best = solver
                yield bench.fitted(best, stage)


def _candidates(bench, start):
    """(solver, stage) of a start and of what is found from it."""
    yield start, "start"
    for solver in _descent(bench, start):
        yield solver, "refined"


# ---- the bench -------------------------------------------------------------------------------------


class _Bench:
    """Runs solvers on the trajectories and counts what that costs.

    State: `count` evaluations so far, the generator, the solvers to compare with (`auto`, `base`), and the
    held-out distances that are known.
    """

    def __init__(self, data, evaluations, seed):
        self.data, self.limit, self.count = data, evaluations, 0
        self.train, self.held_out = data.split()
        self.deviation = data.deviation
        self.generator = torch.Generator().manual_seed(seed)
        self.auto, self.base, self.known = None, None, {}

    def model(self, which):
        """(x, sigma, kinds) -> predictions, for rows that belong to the trajectories `which`, perhaps several
        times over.
        """

        def ask(x, sigma, kinds):
            self.count += len(x) * sum(1 if kind == GUIDED else PART for kind in kinds)
            return self.data.ask(x, sigma, which.repeat(len(x) // len(which)), kinds)

        return ask

    def end(self, solver, which):
        """Where runs from those trajectories' starts end."""
        return solve_apart(solver, self.model(which), self.data.states[which, 0])

    def rolled_out(self, solver):
        """The solver with weights from its own roll-out on the training part."""
        return rolled_out(self.data, solver, self.train, self.model(self.train))

    def distances(self, end, which):
        """Of the ends of runs from those trajectories' own, RMSE in units of the deviation, float64 (B,)."""
        off = (end - self.data.states[which, -1]).flatten(1).double().square().mean(1).sqrt() / self.deviation
        return off.nan_to_num(1e6, 1e6)

    def held_out_distances(self, solver):
        """`distances` of the held-out part, remembered."""
        if solver not in self.known:
            self.known[solver] = self.distances(self.end(solver, self.held_out), self.held_out)
        return self.known[solver]

    def score(self, solver):
        """The mean distance on the held-out part, by which solvers are chosen."""
        return float(self.held_out_distances(solver).mean())

    def gain(self, solver):
        """How much nearer than the base a solver is, in standard errors."""
        own, theirs = self.held_out_distances(solver), self.held_out_distances(self.base)
        nearer = _standard_errors(theirs - own)
        closer = _standard_errors((theirs + 1e-9).log() - (own + 1e-9).log())
        return max(nearer, closer)

    def fitted(self, solver, stage):
        """What is reported of a solver."""
        return Fitted(
            solver=solver,
            error=_rms(self.held_out_distances(solver)),
            base=self.base,
            classical=_rms(self.held_out_distances(self.base)),
            auto=_rms(self.held_out_distances(self.auto)),
            gain=self.gain(solver),
            evaluations=self.count,
            stage=stage,
        )

    # -- what may still be asked

    def short(self, share):
        """Whether a limit is set and no more than that share of it is left."""
        return math.isfinite(self.limit) and self.limit - self.count <= share * self.limit

    def affords_step(self, steps, which):
        """Whether one more run of those trajectories and of the held-out ones stays within the limit."""
        return self.count + steps * (len(which) + len(self.held_out)) <= self.limit

    def subset(self, steps):
        """Training trajectories for one Gauss-Newton step: all, or as many as leave evaluations for two more;
        None when the limit is spent.
        """
        if math.isinf(self.limit):
            return self.train
        # step i has i + 2 weights and, but for the first, a level: each is carried through the later steps
        derivatives = sum((i + 2 + (i > 0)) * (steps - 1 - i) for i in range(steps))
        each = derivatives + 4 * steps
        left = self.limit - self.count - 2 * steps * len(self.held_out)
        size = min(len(self.train), max(int(left / (2.5 * each)), min(8, len(self.train))))
        if size * each > left:
            return None
        return self.train[torch.randperm(len(self.train), generator=self.generator)[:size]]


def _standard_errors(difference):
    """The mean of a sample in units of its own uncertainty; 0 where that is 0 or unknown."""
    spread = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) / spread if spread > 0 else 0.0


def _rms(distances):
    return float(distances.square().mean().sqrt())


# ---- descent ---------------------------------------------------------------------------------------


def _descent(bench, solver):
    """Yield the solver after each damped Gauss-Newton step from the one given.

    The derivatives of one point serve a few steps, corrected by what each step was seen to do.
    """
    damping, idle, best = DAMPING, 0, bench.score(solver)
    while idle < PATIENCE:
        which = bench.subset(solver.steps)
        if which is None:
            return
        point = _linearised(bench, solver, which)
        for reuse in range(REUSES):
            problem = _Problem.at(bench, point)
            for times in DAMPINGS[:1] if reuse else DAMPINGS:
                if not bench.affords_step(solver.steps, which):
                    return
                change = problem.equations.solution(damping * times)
                better = moved(solver, point.parameters, change, bench.data.path)
                if better is None:
                    continue
                end = bench.end(better, which)
                if problem.loss(bench.distances(end, which)) < problem.loss(problem.distances):
                    break
            else:  # no damping leads nearer
                if not reuse:
                    damping, idle = damping * STIFFENED, idle + 1
                break
            point.move(better, end, problem.equations.size, bench.data.path)
            damping, solver = max(damping * times / EASED, 1e-10), better
            score = bench.score(solver)
            if score < best * (1 - GAIN):
                idle, best = 0, score
            else:
                idle += 1
            yield solver


@dataclasses.dataclass
class _Point:
    """A solver, and where its runs end as a linear function of its parameters.

    which       (B,) trajectories that the runs begin with
    end         (B, ...) where they end
    columns     (P, B, ...) derivatives of the end in the parameters
    """

    solver: LinearSolver
    which: torch.Tensor
    end: torch.Tensor
    columns: torch.Tensor
    parameters: list[Parameter]

    def move(self, solver, end, size, path):
        """Go on to a solver whose runs end there, and correct the derivatives by what was seen on the way
        (Broyden 1965, eq. 4.5, in parameters scaled by `size`).
        """
        taken = parameters(solver, self.parameters, path) - parameters(self.solver, self.parameters, path)
        taken = taken.to(end)
        scaled = taken * size.to(end) ** 2
        missed = end - self.end - torch.einsum("k,k...->...", taken, self.columns)
        self.columns += torch.einsum("k,...->k...", scaled / (taken @ scaled), missed)
        self.solver, self.end = solver, end


def _linearised(bench, solver, which):
    """The `_Point` of a solver on those trajectories."""
    model, first = bench.model(which), bench.data.states[which, 0]
    trace = list(follow(solver, model, first))
    end = trace[-1].x
    near = float(bench.distances(end, which).median())
    step = min(max(near, FINEST), COARSEST)
    columns, names = differences(solver, bench.data.path, model, first, trace, step)
    return _Point(solver, which, end, columns, names)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """One Gauss-Newton step on the pseudo-Huber loss of `distances` (B,), as reweighted least squares.

    The loss is quadratic below `soft`.
    """

    distances: torch.Tensor
    soft: float
    equations: NormalEquations

    @classmethod
    def at(cls, bench, point):
        end, target = point.end, bench.data.states[point.which, -1]
        distances = bench.distances(end, point.which)
        soft = float(distances.quantile(SOFT)) + 1e-9
        # its square is the loss's slope over the square
        weight = (1 + (distances / soft).square()).pow(-0.25)
        weight = weight.to(end).reshape(-1, *[1] * (end.ndim - 1))
        missing = ((target - end) * weight).flatten(1)
        return cls(distances, soft, NormalEquations.of(point.columns * weight, missing))

    def loss(self, distances):
        """Pseudo-Huber, mean over samples."""
        return float(((1 + (distances / self.soft).square()).sqrt() - 1).mean())
