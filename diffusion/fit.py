"""Fitting a solver to a model: step grid and weights for a few steps, from accurate trajectories, with no gradient of the model.

    data = Trajectories(path, sigmas, states, predictions, denoise)
    for fitted in fit(data, grids): ...          # the first is the best classical solver, each later one is better
    fitted.solver                                # a `linear.LinearSolver`

1. Grids: those given, and one by dynamic programming over the trajectories' own levels (Chen et al. 2024, GITS, arXiv:2405.11326).
   They are compared by runs in which the model's answers are read off the trajectories, which cost no model call.
2. The best few are run, each with the classical weights of order 2 and 3, and each step's weights are then moved to where least
   squares would bring the run back onto the trajectory (the solver's own roll-out, Kim et al. 2025, S4S, arXiv:2502.17423).
3. From the best of these, damped Gauss-Newton steps (Levenberg-Marquardt) in all weights and levels at once, towards the end of
   each trajectory; derivatives are differences of runs. The loss is pseudo-Huber in each sample's distance, so that the few
   samples that end at another picture do not outweigh all others (non-stationary solvers: Shaul et al. 2024, BNS, arXiv:2403.01329).

A part of the trajectories is held out: it says which candidate is kept, when to stop, and whether there is a gain at all.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from .linear import LinearSolver, classical, run
from .paths import Path
from .refine import differences, moved, solve_damped

HELD_OUT = 0.25         # share of the trajectories
ORDERS = (2, 3)         # of the classical solvers, with corrector
RIDGE = 1e-3            # of the least squares of a roll-out, in units of each term's own size
PATIENCE = 3            # steps without gain on the held-out part
DAMPINGS = (1.0, 8.0, 64.0)     # tried in turn, as multiples of the current damping


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Accurate solutions, N of them.

    sigmas       (K + 1,) levels from the start to 0, float64
    states       (N, K + 1, ...) x at those levels
    predictions  (N, K, ...) the model's x0 there
    denoise      (x, sigma, which) -> x0 for x (B, ...), sigma a float, which (B,) the trajectories that the rows of x belong to
    """

    path: Path
    sigmas: torch.Tensor
    states: torch.Tensor
    predictions: torch.Tensor
    denoise: Callable

    @property
    def deviation(self):
        """Standard deviation of the final images, the unit of all errors."""
        return float(self.states[:, -1].float().std())

    def split(self):
        """(training, held-out) indices: the last quarter is held out. Raises ValueError for fewer than 4 trajectories."""
        count = len(self.states)
        if count < 4:
            raise ValueError(f"trajectories must be 4 or more, so that some can be held out; got {count}.")
        kept = count - max(1, round(HELD_OUT * count))
        return torch.arange(kept), torch.arange(kept, count)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solver and its errors on the held-out trajectories, in units of the images' deviation.

    error        RMSE over all of them
    base         the best classical solver that was run, and `classical`, its error; auto: the error of the first grid's, order 2
    gain         mean difference of their log distances, base minus this, in standard errors; what is above 1 is no accident
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


def fit(data, grids, evaluations=math.inf, starts=3, seed=0):
    """Yield `Fitted` solvers, better and better on the held-out part; the first is the best classical one.

    data: `Trajectories`; grids: step grids (steps + 1,) of one length to start from, the first the automatic one; evaluations: about how many samples the model
    may be asked for; starts: how many grids are run. Raises ValueError for too few trajectories.
    """
    bench = _Bench(data, evaluations, seed)
    steps = len(grids[0]) - 1
    others = _ranked(data, [*grids[1:], data.sigmas[by_dynamic_programming(data, steps)]], bench.train)[:starts - 1]
    solvers = [classical(grid, data.path, order) for grid in [grids[0], *others] for order in ORDERS[:max(1, steps - 1)]]
    scored = sorted(((bench.score(s), i, s) for i, s in enumerate(solvers)), key=lambda item: item[:2])
    bench.auto, bench.base = _rms(bench.distances(solvers[0])), (scored[0][2], bench.distances(scored[0][2]))
    yield bench.fitted(scored[0][2], "classical")
    fresh = [bench.roll_out(solver) for _, _, solver in scored[:1 if bench.short(0.5) else starts]]
    pool = [*scored, *((bench.score(s), len(scored) + i, s) for i, s in enumerate(fresh))]
    best = scored[0]
    tried = sorted(pool, key=lambda item: item[:2])[:1 if bench.short(math.inf) else starts]
    for start in tried:
        if start[0] < best[0]:
            best = start
            yield bench.fitted(best[2], "least squares")
        for score, solver in bench.descend(start[2], start[0]):
            if score < best[0]:
                best = (score, 0, solver)
                yield bench.fitted(solver, "refined")


# ---- grids -----------------------------------------------------------------------------------------

def by_dynamic_programming(data, steps):
    """Which of the trajectories' levels to stop at, a list of steps + 1 indices: least sum of the first-order steps' errors.

    The error of a step from level i to j is the distance of its end from the trajectory, in units of what x is scaled by there,
    alpha + sigma, so that every path gives the same grid.
    """
    path, levels = data.path, data.sigmas
    last = len(levels) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"steps must be from 1 to {last}, the steps that the trajectories are kept at; got {steps}.")
    scale = path.alpha(levels) + levels
    cost = torch.full((last + 1, last + 1), math.inf, dtype=torch.float64)
    states, predictions = data.states.flatten(2).float(), data.predictions.flatten(2).float()
    for i in range(last):
        ends = levels[i + 1:]
        a = ends / levels[i]
        b = path.alpha(ends) - a * path.alpha(levels[i])
        for j in range(i + 1, last + 1):
            k = j - i - 1
            off = float(a[k]) * states[:, i] + float(b[k]) * predictions[:, i] - states[:, j]
            cost[i, j] = float(off.square().mean(1).sqrt().mean()) / float(scale[j])
    total, back = torch.full((last + 1,), math.inf, dtype=torch.float64), []
    total[0] = 0
    for _ in range(steps):
        total, came = (total[:, None] + cost).min(0)
        back.append(came)
    places = [last]
    for came in reversed(back):
        places.append(int(came[places[-1]]))
    return places[::-1]


def _ranked(data, grids, which):
    """`grids`, the one first whose order-2 run is nearest when the model's answers are read off the trajectories."""
    log = data.path.flow_time(data.sigmas[:-1])

    def error(grid):
        held, x = [], data.states[which, 0]
        for i, row in enumerate(classical(grid, data.path).rows):
            time = data.path.flow_time(torch.as_tensor(grid[i], dtype=torch.float64))
            at = int((log > time).sum().clamp(1, len(log) - 1))
            share = float(((log[at - 1] - time) / (log[at - 1] - log[at])).clamp(0, 1))
            held.insert(0, torch.lerp(data.predictions[which, at - 1].to(x), data.predictions[which, at].to(x), share))
            x = row[0] * x + sum(w * p for w, p in zip(row[1:], held))
        return float((x - data.states[which, -1]).flatten(1).square().mean(1).sqrt().mean())

    return sorted(_distinct(grids), key=error)


def _distinct(grids):
    """Those that differ by more than 1 % somewhere from all before."""
    kept = []
    for grid in grids:
        if not any(torch.allclose(grid, other, rtol=0.01) for other in kept):
            kept.append(grid)
    return kept


# ---- the bench -------------------------------------------------------------------------------------

class _Bench:
    """Runs solvers on the trajectories, counting evaluations. State: the count, the generator, the classical solver's distances."""

    def __init__(self, data, evaluations, seed):
        self.data, self.limit, self.count = data, evaluations, 0
        self.train, self.held_out = data.split()
        self.deviation = data.deviation
        self.generator = torch.Generator().manual_seed(seed)
        self.auto, self.base = math.nan, None

    def short(self, share):
        """Whether a limit is set and no more than that share of it is left."""
        return math.isfinite(self.limit) and self.limit - self.count <= share * self.limit

    def model(self, which):
        """(x, sigma) -> x0 for rows that belong to the trajectories `which`, perhaps several times over."""
        def call(x, sigma):
            self.count += len(x)
            return self.data.denoise(x, sigma, which.repeat(len(x) // len(which)))

        return call

    def ends(self, which):
        """The accurate images of those trajectories."""
        return self.data.states[which, -1]

    def distances(self, solver, which=None):
        """Of every held-out sample (or `which`) from its trajectory's end: RMSE in units of the deviation, float64."""
        which = self.held_out if which is None else which
        for state in run(solver, self.model(which), self.data.states[which, 0]):
            x = state.x
        off = (x - self.ends(which)).flatten(1).double().square().mean(1).sqrt() / self.deviation
        return off.nan_to_num(1e6, 1e6)

    def score(self, solver):
        """The mean distance on the held-out part, by which solvers are chosen."""
        return float(self.distances(solver).mean())

    def fitted(self, solver, stage):
        """What is reported of a solver."""
        own = self.distances(solver)
        base, theirs = self.base
        difference = (theirs + 1e-9).log() - (own + 1e-9).log()
        spread = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        gain = float(difference.mean()) / spread if 0 < spread < math.inf else 0.0
        return Fitted(solver, _rms(own), base, _rms(theirs), self.auto, gain, self.count, stage)

    def roll_out(self, solver):
        """The solver whose every step goes by least squares to the trajectory's state at the next level."""
        which, data = self.train, self.data
        targets = _at_levels(data, solver.sigmas, which)
        x, held, rows, model = data.states[which, 0], [], [], self.model(which)
        for i, row in enumerate(solver.rows):
            held.insert(0, model(x, solver.sigmas[i]))
            terms = torch.stack([x, *held]).flatten(2)
            prior = torch.zeros(len(terms), dtype=torch.float64)
            prior[:len(row)] = torch.tensor(row, dtype=torch.float64)
            missing = targets[i].flatten(1) - torch.einsum("k,knd->nd", prior.to(terms), terms)
            size, gram, slope = _normal_equations(terms, missing)
            row = prior + solve_damped(gram, slope, RIDGE) / size
            rows.append(row.tolist())
            x = torch.einsum("k,knd->nd", row.to(terms), terms).reshape(x.shape)
        return LinearSolver(solver.sigmas, tuple(rows))

    def descend(self, solver, score):
        """Damped Gauss-Newton steps from a solver; yields (held-out score, solver) after each."""
        damping, idle = 0.1, 0
        while idle < PATIENCE:
            which = self._subset(solver.steps)
            if which is None:
                return
            before = self.distances(solver, which)
            soft = float(before.quantile(0.6)) + 1e-9
            path, step = self.data.path, min(max(float(before.median()), 1e-4), 0.03)
            columns, names, end = differences(solver, path, self.model(which), self.data.states[which, 0], step)
            weight = (1 + (before / soft).square()).pow(-0.25)
            shape = (-1, *[1] * (end.ndim - 1))
            weighted = torch.stack([c * weight.to(c).reshape(shape) for c in columns]).flatten(2)
            missing = ((self.ends(which) - end) * weight.to(end).reshape(shape)).flatten(1)
            size, gram, slope = _normal_equations(weighted, missing)
            del columns, weighted
            for times in DAMPINGS:
                better = moved(solver, names, solve_damped(gram, slope, damping * times) / size, path)
                if better is not None and _loss(self.distances(better, which), soft) < _loss(before, soft):
                    break
            else:
                damping, idle = damping * 100, idle + 1
                continue
            damping, solver = max(damping * times / 6, 1e-10), better
            now = self.score(solver)
            idle, score = (0, now) if now < score * 0.998 else (idle + 1, score)
            yield now, solver

    def _subset(self, steps):
        """Training trajectories for one Gauss-Newton step: all, or as many as leave evaluations for two more; None when spent."""
        if math.isinf(self.limit):
            return self.train
        each = sum((i + 2 + (i > 0)) * (steps - 1 - i) for i in range(steps)) + 4 * steps
        left = self.limit - self.count - 2 * steps * len(self.held_out)
        size = min(len(self.train), max(int(left / (2.5 * each)), min(8, len(self.train))))
        if size * each > left:
            return None
        return self.train[torch.randperm(len(self.train), generator=self.generator)[:size]]


def _at_levels(data, sigmas, which):
    """The trajectories' states at sigmas[1:], each by the line through the predictions on either side of it."""
    levels = data.sigmas.tolist()
    out = []
    for sigma in sigmas[1:]:
        at = max(i for i, level in enumerate(levels) if level >= sigma)
        if levels[at] == sigma:
            out.append(data.states[which, at])
            continue
        a, before, after, x = levels[at], data.predictions[which, at], data.states[which, at + 1], data.states[which, at]
        part = [classical([a, to, 0.0] if to > 0 else [a, 0.0], data.path, 1).rows[0] for to in (sigma, levels[at + 1])]
        guess, end = (r[0] * x + r[1] * before for r in part)
        share = (a - sigma) / (a - levels[at + 1])
        out.append(guess + share**2 * (after - end))      # a first-order step's error grows with the square of its length
    return out


def _normal_equations(terms, missing):
    """(size, gram, slope) of least squares for `missing` (N, D) in `terms` (K, N, D), each term brought to unit size; float64."""
    flat = terms.flatten(1)
    gram = (flat @ flat.T).double().cpu()
    slope = (flat @ missing.flatten()).double().cpu()
    size = gram.diagonal().sqrt().clamp_min(1e-30)
    return size, gram / size[:, None] / size, slope / size


def _rms(distances):
    return float(distances.square().mean().sqrt())


def _loss(distances, soft):
    """Pseudo-Huber, mean over samples."""
    return float(((1 + (distances / soft).square()).sqrt() - 1).mean())
