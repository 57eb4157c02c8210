"""Fitting a solver to a model: step grid and weights for a few steps, from accurate trajectories, with no
gradient of the model.

    data = trajectories.Trajectories(path, sigmas, states, predictions, denoise)
    for fitted in fit(data, grids): ...          # the first is a classical solver, each later one is better
    fitted.solver                                # a `linear.LinearSolver`

1. Grids: those given, and one by dynamic programming over the trajectories' own levels (Chen et al. 2024,
   GITS, arXiv:2405.11326).
   They are compared by runs in which the model's answers are read off the trajectories, which cost no model
   call.
2. The best few are run, each with the classical weights of order 2 and 3, and each step's weights are then
   moved to where least
   squares would bring the run back onto the trajectory (the solver's own roll-out, Kim et al. 2025, S4S,
   arXiv:2502.17423).
3. From the best of these, damped Gauss-Newton steps (Levenberg-Marquardt) in all weights and levels at once,
   towards the end of
   each trajectory; derivatives are differences of runs. The loss is pseudo-Huber in each sample's distance,
   so that the few that
   end at another picture do not outweigh all others (fitting all weights and levels: Shaul et al. 2024, BNS,
   arXiv:2403.01329).

A part of the trajectories is held out: it says which candidate is kept, when to stop, and whether there is a
gain at all.
"""

import dataclasses
import itertools
import math

import torch

from .linear import LinearSolver, classical, run, solve
from .refine import differences, moved, parameters, solve_damped
from .trajectories import at_levels, by_dynamic_programming, ranked

REAL = 1.5  # standard errors of a gain that is taken for real
ORDERS = (2, 3)  # of the classical solvers, with corrector
RIDGE = 1e-3  # of the least squares of a roll-out, in units of each term's own size
PATIENCE = 3  # steps without gain on the held-out part
SOFT = (
    0.8  # quantile of the distances above which a sample counts in proportion to its distance, not its square
)
FINEST, COARSEST = 1e-4, 0.03  # perturbations: as large as the median distance, within these
REUSES = 4  # steps taken with the derivatives of one point
DAMPING = 0.01  # of the first Gauss-Newton step, in units of each parameter's own size
DAMPINGS = (1.0, 8.0, 64.0)  # tried in turn, as multiples of the current damping


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solver and its errors on the held-out trajectories, in units of the images' deviation.

    error        RMSE over all of them
    base         the first grid's classical solver of order 2, or the best of those run where it is better
                 beyond chance
    classical    the base's error; auto: that of the first grid's of order 2
    gain         mean difference of their distances or log distances, base minus this, in standard errors: the
                 larger of the two,
                 as a few samples that now end at the right picture tell in the first, a closer fit of all in
                 the second
    evaluations  of the model, in samples, that the fit has cost so far
    """

    solver: LinearSolver
    error: float
    base: LinearSolver
    classical: float
    auto: float
    gain: float
    evaluations: int
    stage: str


def fit(data, grids, evaluations=math.inf, starts=3, seed=0, others=()):
    """Yield `Fitted` solvers, better and better on the held-out part; the first is a classical one.

    data         `Trajectories`
    grids        step grids (steps + 1,) of one length to start from, the first the automatic one
    evaluations  how many samples the model may be asked for, the first comparison of classical solvers apart
    starts       how many of the grids are run
    others       solvers of as many steps to start from too, such as that of fewer steps, `linear.lengthened`
    Raises ValueError for too few trajectories.
    """
    bench = _Bench(data, evaluations, seed)
    steps = len(grids[0]) - 1
    more = ranked(data, [*grids[1:], data.sigmas[by_dynamic_programming(data, steps)]], bench.train)[
        : starts - 1
    ]
    solvers = [
        classical(grid, data.path, order)
        for grid in [grids[0], *more]
        for order in ORDERS[: max(1, steps - 1)]
    ]
    known = sorted(solvers, key=bench.score)
    bench.auto = bench.base = solvers[0]
    if bench.gain(known[0]) > REAL:
        bench.base = known[0]
    yield bench.fitted(bench.base, "classical")
    fresh = [bench.roll_out(solver) for solver in known[: 1 if bench.short(0.5) else starts]]
    best = known[0]
    for start in sorted([*known, *fresh, *others], key=bench.score)[:starts]:
        for stage, solver in itertools.chain(
            [("start", start)], (("refined", s) for s in bench.descend(start))
        ):
            if bench.score(solver) < bench.score(best):
                best = solver
                yield bench.fitted(best, stage)


# ---- the bench -------------------------------------------------------------------------------------


class _Bench:
    """Runs solvers on the trajectories. State: evaluations so far, the generator, solvers to compare with,
    known distances.
    """

    def __init__(self, data, evaluations, seed):
        self.data, self.limit, self.count = data, evaluations, 0
        self.train, self.held_out = data.split()
        self.deviation = data.deviation
        self.generator = torch.Generator().manual_seed(seed)
        self.auto, self.base, self.known = None, None, {}

    def short(self, share):
        """Whether a limit is set and no more than that share of it is left."""
        return math.isfinite(self.limit) and self.limit - self.count <= share * self.limit

    def model(self, which):
        """(x, sigma) -> x0 for rows that belong to the trajectories `which`, perhaps several times over."""

        def call(x, sigma):
            self.count += len(x)
            return self.data.denoise(x, sigma, which.repeat(len(x) // len(which)))

        return call

    def end(self, solver, which):
        """Where runs from those trajectories' starts end."""
        return solve(solver, self.model(which), self.data.states[which, 0])

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
        return max(
            _standard_errors(theirs - own), _standard_errors((theirs + 1e-9).log() - (own + 1e-9).log())
        )

    def fitted(self, solver, stage):
        """What is reported of a solver."""
        own, base, auto = (_rms(self.held_out_distances(s)) for s in (solver, self.base, self.auto))
        return Fitted(solver, own, self.base, base, auto, self.gain(solver), self.count, stage)

    def roll_out(self, solver):
        """The solver whose every step goes by least squares to the trajectory's state at the next level."""
        which, data = self.train, self.data
        targets = at_levels(data, solver.sigmas, which)
        x, held, rows, model = data.states[which, 0], [], [], self.model(which)
        for i, row in enumerate(solver.rows):
            held.insert(0, model(x, solver.sigmas[i]))
            terms = torch.stack([x, *held]).flatten(2)
            prior = torch.zeros(len(terms), dtype=torch.float64)
            prior[: len(row)] = torch.tensor(row, dtype=torch.float64)
            missing = targets[i].flatten(1) - torch.einsum("k,knd->nd", prior.to(terms), terms)
            size, gram, slope = _normal_equations(terms, missing)
            row = prior + solve_damped(gram, slope, RIDGE) / size
            rows.append(row.tolist())
            x = torch.einsum("k,knd->nd", row.to(terms), terms).reshape(x.shape)
        return LinearSolver(solver.sigmas, tuple(rows))

    def descend(self, solver):
        """Damped Gauss-Newton steps from a solver; yields the solver after each.

        The derivatives of one point serve a few steps, corrected by what each step was seen to do (Broyden
        1965, eq. 4.5).
        """
        damping, idle, path, score = DAMPING, 0, self.data.path, self.score(solver)
        while idle < PATIENCE:
            which = self._subset(solver.steps)
            if which is None:
                return
            model, first, target = self.model(which), self.data.states[which, 0], self.data.states[which, -1]
            trace = list(run(solver, model, first))
            end = trace[-1].x
            near = float(self.distances(end, which).median())
            columns, names = differences(solver, path, model, first, trace, min(max(near, FINEST), COARSEST))
            for reuse in range(REUSES):
                before = self.distances(end, which)
                soft = float(before.quantile(SOFT)) + 1e-9
                weight = (1 + (before / soft).square()).pow(-0.25).to(end).reshape(-1, *[1] * (end.ndim - 1))
                size, gram, slope = _normal_equations(columns * weight, ((target - end) * weight).flatten(1))
                for times in DAMPINGS[: 1 if reuse else None]:
                    if self.count + solver.steps * (len(which) + len(self.held_out)) > self.limit:
                        return
                    change = solve_damped(gram, slope, damping * times) / size
                    better = moved(solver, names, change, path)
                    if better is None:
                        continue
                    reached = self.end(better, which)
                    if _loss(self.distances(reached, which), soft) < _loss(before, soft):
                        break
                else:
                    if not reuse:
                        damping, idle = damping * 100, idle + 1
                    break
                taken = parameters(better, names, path) - parameters(solver, names, path)
                seen = taken.to(end) * size.to(end) ** 2
                missed = reached - end - torch.einsum("k,k...->...", taken.to(end), columns)
                columns += torch.einsum("k,...->k...", seen / (taken.to(end) @ seen), missed)
                damping, solver, end = max(damping * times / 6, 1e-10), better, reached
                now = self.score(solver)
                idle, score = (0, now) if now < score * 0.998 else (idle + 1, score)
                yield solver

    def _subset(self, steps):
        """Training trajectories for one Gauss-Newton step: all, or as many as leave evaluations for two more;
        None when spent.
        """
        if math.isinf(self.limit):
            return self.train
        each = sum((i + 2 + (i > 0)) * (steps - 1 - i) for i in range(steps)) + 4 * steps
        left = self.limit - self.count - 2 * steps * len(self.held_out)
        size = min(len(self.train), max(int(left / (2.5 * each)), min(8, len(self.train))))
        if size * each > left:
            return None
        return self.train[torch.randperm(len(self.train), generator=self.generator)[:size]]


def _normal_equations(terms, missing):
    """(size, gram, slope) of least squares for `missing` (N, D) in `terms` (K, N, D), each term brought to
    unit size; float64.
    """
    flat = terms.flatten(1)
    gram = (flat @ flat.T).double().cpu()
    slope = (flat @ missing.flatten()).double().cpu()
    size = gram.diagonal().sqrt().clamp_min(1e-30)
    return size, gram / size[:, None] / size, slope / size


def _standard_errors(difference):
    """The mean of a sample in units of its own uncertainty; 0 where that is 0 or unknown."""
    spread = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) / spread if spread > 0 else 0.0


def _rms(distances):
    return float(distances.square().mean().sqrt())


def _loss(distances, soft):
    """Pseudo-Huber, mean over samples."""
    return float(((1 + (distances / soft).square()).sqrt() - 1).mean())
