"""Which of several solvers is handed on, by trajectories that none of them was fitted to.

The best of many on a few samples is often the luckiest. So the automatic solver, and the one that was found
for fewer calls, are left only for one that is nearer by a test that knows how many were tried. Between these
two, neither of which was fitted to so many calls, the nearer in the mean is taken.
"""

import dataclasses
from collections.abc import Sequence

import torch

from .accuracy import student
from .linear import LinearSolver

DOUBT = 0.05  # probability that a solver which is no nearer is chosen
FARTHEST = 1.0  # a sample counts as no farther than this, in deviations: how far is then chance


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A solver and how its runs from M held-out starts went.

    distances  (M,) of the ends from the trajectories' own, in deviations
    losses     (M,) of the whole runs, what the descent makes small
    """

    solver: LinearSolver
    distances: torch.Tensor
    losses: torch.Tensor


def chosen(
    known: Sequence[Candidate], found: Sequence[Candidate], part: torch.Tensor | slice = slice(None)
) -> Candidate:
    """The one to hand on, by the samples `part`.

    Of the `known` (the automatic solver, that of fewer calls) the nearest; of those `found` the best in its
    place, if it is nearer than each of them beyond doubt. The best of as many steps is that of least loss;
    losses of runs of other lengths are no measure of each other, so between them the nearest.
    """
    base = min(known, key=lambda one: _mean(one.distances[part]))
    if not found:
        return base
    of_length = {}
    for one in sorted(found, key=lambda one: _mean(one.losses[part])):
        of_length.setdefault(one.solver.steps, one)
    best = min(of_length.values(), key=lambda one: _mean(one.distances[part]))
    nearer = all(is_nearer(best.distances[part], one.distances[part], len(found)) for one in known)
    return best if nearer else base


def is_nearer(own: torch.Tensor, other: torch.Tensor, tried: int = 1) -> bool:
    """Whether distances (M,) are smaller than others from the same starts beyond doubt: no larger in the
    mean, and smaller in the mean or in the mean logarithm by Student's t, of the best of so many tried
    (Bonferroni).
    """
    if len(own) < 2:
        return False
    farther = float(own.mean()) > float(other.mean())
    own, other = own.clamp(max=FARTHEST), other.clamp(max=FARTHEST)
    least = student(1 - DOUBT / (2 * max(1, tried)), len(own) - 1)
    nearer = _errors(other - own)
    closer = _errors((other + 1e-9).log() - (own + 1e-9).log())
    return not farther and _mean(own) <= _mean(other) and max(nearer, closer) > least


def _mean(values):
    return float(values.clamp(max=FARTHEST).mean())


def _errors(difference):
    """A mean in units of its own standard error; 0 where that is 0."""
    spread = float(difference.std()) / len(difference) ** 0.5
    return float(difference.mean()) / spread if spread > 0 else 0.0
