"""Fitting a solver to a model: levels and weights for a few calls, from accurate trajectories, with no
gradient of the model.

    data = trajectories.Trajectories(path, sigmas, states, predictions, denoise)
    for fitted in fit(data, starting(data, grids)): ...    # the first is a classical solver
    fitted.solver                                          # a `linear.LinearSolver`

1. Grids: those given, and one by dynamic programming over the trajectories' own levels (Chen et al. 2024,
   GITS, arXiv:2405.11326). They are compared by runs in which the model's answers are read off the
   trajectories, which cost no model call (`starting`).
2. The best few are run, and each step's weights are then moved to where least squares would bring the run
   back onto the trajectory (`rollout.py`).
3. From the best of these, and from the solver of fewer calls, steps in all weights and levels at once
   (`descent.py`, `tangents.py`).

A part of the trajectories is held out. They say when to stop and what is handed on (`choice.py`). What is
reported of a fitted solver is told crosswise: each eighth of them by the one that the other seven would have
chosen.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from .choice import Candidate, chosen
from .descent import Run, descent, importance
from .linear import GUIDED, LinearSolver, classical, lengthened
from .rollout import rolled_out
from .trajectories import Trajectories, by_dynamic_programming, ranked

FOLDS = 8  # of the held-out trajectories, each told by what the others chose
PATIENCE = 3  # of a descent, in yields without gain on the held-out part
GAIN = 0.002  # relative, of one that counts
PART = 0.5  # what a conditional or unconditional prediction costs, a guided one being 1
COMPARED = 0.1  # share of a limit that the comparison of starts may take, and each roll-out
ROLLS = 20  # as many roll-outs on all the training part must be within what is left, for more than one
FEWEST = 8  # trajectories that a step is worked out on, at least
ROUNDS = 2.5  # of derivatives and steps, for which a limit should do
COPIES = 6  # calls a step that derivatives take, about: perturbed copies and a shifted level
MEMORY = 2**31  # bytes, of the pictures that derivatives are made of


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The solver to hand on, and what held-out trajectories tell of it.

    auto         the automatic solver
    own          (M,) distances from the converged pictures, in units of their deviation, for every held-out
                 trajectory those of the solver that would have been chosen without it; where the automatic
                 one is handed on, its own, and where that of fewer calls is, what was told of it then: a
                 solver has one error
    chosen       (M,) the solver's own for all of them, by which it was chosen: too small
    base         (M,) the automatic solver's
    evaluations  of the model, in samples, that the fit has cost so far
    stage        "classical", "shorter", "start" or "refined": how the solver was found
    tried        solvers beside the automatic one and that of fewer calls
    told         (M,) distances by which it is compared with what has more calls: `own`, and the solver's own
                 where the automatic one would have been chosen, as that is not what it then stands against
    """

    solver: LinearSolver
    auto: LinearSolver
    own: torch.Tensor
    chosen: torch.Tensor
    base: torch.Tensor
    evaluations: float
    stage: str
    tried: int
    told: torch.Tensor


def starting(
    data: Trajectories,
    grids: Sequence[torch.Tensor],
    most: int = 3,
    order: float = 2,
    corrector: bool = True,
) -> list[LinearSolver]:
    """Classical solvers to start from, the automatic one first.

    grids: the first is the automatic one. It and the best of the others, `most` in all, are taken with the
    `order` and `corrector` of the automatic choice, and with a higher order.
    """
    steps = len(grids[0]) - 1
    train, _ = data.split()
    programmed = data.sigmas[by_dynamic_programming(data, steps, train)]
    best = [grids[0], *ranked(data, [*grids[1:], programmed], train)[: most - 1]]
    kinds = (order, corrector), (3 if corrector else 2, True)
    solvers = [classical(grid, data.path, *kind) for grid in best for kind in kinds]
    return list(dict.fromkeys(solvers))  # in one or two steps some are one


def fit(
    data: Trajectories,
    starts: Sequence[LinearSolver],
    evaluations: float = math.inf,
    descents: int = 3,
    seed: int = 0,
    shorter: Sequence[Fitted] = (),
    over: Callable[[], bool] = lambda: False,
) -> Iterator[Fitted]:
    """Yield `Fitted`, first the best of what is known already, then better ones as they are found.

    starts       solvers of as many calls to start from; the first is the automatic one
    evaluations  how many samples the model may be asked for, the first comparison of solvers apart
    descents     how many of the starts are refined, at most
    shorter      what was found for fewer calls; it is handed on as it is where nothing is nearer, and
                 lengthened to start from
    over         whether the time is up, after which nothing more is tried
    Raises ValueError for too few trajectories.
    """
    bench = _Bench(data, evaluations, seed, over, starts)
    auto = bench.candidate(starts[0])
    before = {one.solver: one for one in shorter}
    seen = {solver: bench.candidate(solver) for solver in before}
    fewer = [dataclasses.replace(one, distances=before[solver].told) for solver, one in seen.items()]
    stages = {auto.solver: "classical", **dict.fromkeys(before, "shorter")}
    known, found = [auto, *fewer], []

    def fitted():
        best = chosen(known, found)
        own = told = best.distances
        if any(best is one for one in fewer):
            own = before[best.solver].own
        elif best is not auto:
            own, fold = own.clone(), torch.arange(len(own)) % FOLDS
            for part in [fold == k for k in fold.unique()]:
                own[part] = chosen(known, found, ~part).distances[part]
            told = torch.where(own == auto.distances, told, own)
        return Fitted(
            solver=best.solver,
            auto=auto.solver,
            own=own,
            chosen=seen.get(best.solver, best).distances,
            base=auto.distances,
            evaluations=bench.count,
            stage=stages[best.solver],
            tried=len(found),
            told=told,
        )

    latest = fitted()
    yield latest
    if over():
        return
    order = sorted(starts, key=bench.loss)
    rolls = descents if bench.affords(ROLLS * order[0].steps * len(bench.train)) else 1
    plain = [solver for solver in order[:rolls] if not solver.asks]  # patterns are rolled out already
    better = [bench.rolled_out(solver) for solver in plain if not over()]
    longer = [_of_length(solver, starts[0].steps, data) for solver in before if not solver.asks]
    for start in sorted([*order, *better, *longer], key=bench.loss)[:descents]:
        if over():
            return
        if start not in stages:
            stages[start] = "start"
            found.append(bench.candidate(start))
            latest = fitted()
            yield latest
        idle, least = 0, math.inf
        for solver, settled in descent(start, data, bench.model, bench.pick, bench.affords):
            if not settled:  # nothing more is known yet
                yield dataclasses.replace(latest, evaluations=bench.count)
                continue
            stages.setdefault(solver, "refined")
            found.append(bench.candidate(solver))
            latest = fitted()
            yield latest
            loss = float(found[-1].losses.mean())
            idle, least = (0, loss) if loss < least * (1 - GAIN) else (idle + 1, least)
            if idle == PATIENCE:
                break


def _of_length(solver, steps, data):
    """The solver with its longest steps taken in two, until it has so many."""
    while solver.steps < steps:
        solver = lengthened(solver, data.path)
    return solver


class _Bench:
    """Runs solvers on the trajectories and counts what that costs.

    State: `count` evaluations so far, the generator, and the training losses that are known.
    """

    def __init__(self, data, evaluations, seed, over, starts):
        self.data, self.limit, self.count, self.over = data, evaluations, 0, over
        self.train, self.held_out = data.split()
        self.generator = torch.Generator().manual_seed(seed)
        most = COMPARED * evaluations / sum(solver.steps for solver in starts)
        self.sample = self._random(max(FEWEST, int(min(most, len(self.train) // 2))))
        self.known = {}

    def _random(self, count):
        """So many of the training trajectories."""
        return self.train[torch.randperm(len(self.train), generator=self.generator)[:count]]

    def model(self, which):
        """(x, sigma, kinds) -> predictions, for rows that belong to the trajectories `which`, perhaps several
        times over.
        """

        def ask(x, sigma, kinds):
            self.count += len(x) * sum(1 if kind == GUIDED else PART for kind in kinds)
            return self.data.ask(x, sigma, which.repeat(len(x) // len(which)), kinds)

        return ask

    def run(self, solver, which):
        return Run.of(solver, self.data, which, self.model(which))

    def candidate(self, solver):
        """The solver's runs from the held-out starts."""
        run = self.run(solver, self.held_out)
        losses = (importance(solver.steps) * run.distances.clamp(max=1).square()).sum(0).sqrt()
        return Candidate(solver, run.distances[-1], losses)

    def loss(self, solver):
        """Of a start, on some of the training part; of those that the time is up for, infinite."""
        if self.over() and solver not in self.known:
            return math.inf
        if solver not in self.known:
            distances = self.run(solver, self.sample).distances.clamp(max=1)
            self.known[solver] = float((importance(solver.steps) * distances.square()).sum(0).sqrt().mean())
        return self.known[solver]

    def rolled_out(self, solver):
        """The solver with weights from its own roll-out on training trajectories, all that are afforded; as
        it is where none is finite.
        """
        most = COMPARED * self.limit / solver.steps
        which = self._random(max(FEWEST, int(min(most, len(self.train)))))
        return rolled_out(self.data, solver, which, self.model(which)) or solver

    # -- what may still be asked

    def affords(self, samples):
        """Whether the model may be asked for so many samples more."""
        return self.count + samples <= self.limit and not self.over()

    def pick(self, solver):
        """Training trajectories for the next steps of a descent: all, or as many as leave evaluations for
        more; None when the limit is spent.
        """
        if self.over():
            return None
        pictures = solver.steps * (COPIES + 6)
        numbers = self.data.states[0, 0].numel()
        most = min(len(self.train), max(FEWEST, MEMORY // (4 * pictures * numbers)))
        if math.isinf(self.limit):
            return self._random(most)
        held = solver.steps * len(self.held_out)
        each = solver.steps * (COPIES + 4)
        left = self.limit - self.count - held
        size = min(most, max(int((left - held) / (ROUNDS * each)), min(FEWEST, len(self.train))))
        return self._random(size) if size * each <= left else None
