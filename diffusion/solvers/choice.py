"""Which of several solvers is handed on, by trajectories that none of them was fitted to.

The best of many on a few samples is often the luckiest. So the automatic solver, and the one that was found
for fewer calls, are left only for one that is nearer by a test that knows what else was tried. Solvers of one
descent are much alike, and many alike give luck few chances: a test that takes them for independent
(Bonferroni) hands on the automatic solver where one is by far nearer. Between the two that are known before,
neither of which was fitted to so many calls, the nearer in the mean is taken; that of fewer calls goes by
distances that did not choose it.

What is guarded is the typical sample, and the mean as far as these samples tell it: a solver that sends one
of a hundred to another picture looks no worse on twenty-four (`accuracy`).
"""

import dataclasses
from collections.abc import Sequence

import torch

from .accuracy import student
from .linear import LinearSolver

DOUBT = 0.05  # probability that any is chosen where none is nearer
DRAWS = 4000  # of chance
FEW = 12  # samples below which how alike solvers are can't be told
NEAREST = 1e-9  # what is added to a distance before its logarithm is taken
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
    own, every = best.distances[part], [one.distances[part] for one in found]
    nearer = all(is_nearer(own, one.distances[part], every) for one in known)
    return best if nearer else base


def is_nearer(own: torch.Tensor, other: torch.Tensor, tried: Sequence[torch.Tensor] = ()) -> bool:
    """Whether distances (M,) are smaller than others from the same starts beyond doubt: no larger in the
    mean, and smaller in the mean or in the mean logarithm, by more standard errors than any of those `tried`
    would be in 19 of 20 cases if none were nearer. tried: own and all others, nothing for own alone.

    Chance is drawn from the multivariate t distribution with the correlation of the differences (Hothorn,
    Bretz and Westfall 2008, Simultaneous Inference in General Parametric Models, sec. 3). For one alone that
    is Student's t, for independent ones nearly Bonferroni's bound, which is taken for few samples.
    """
    if len(own) < 2:
        return False
    if float(own.mean()) > float(other.mean()) or _mean(own) > _mean(other):
        return False
    gained = _gained([own], other)
    every = _gained(tried, other) if tried else gained
    return float(_errors(gained).max()) > _by_chance(every)


def _gained(tried, other):
    """(M, 2K) how much nearer each of the K solvers' samples are, in distance and in its logarithm."""
    clamped = [distances.double().clamp(max=FARTHEST) for distances in (other, *tried)]
    base, *own = clamped
    by_distance = [base - one for one in own]
    by_logarithm = [(base + NEAREST).log() - (one + NEAREST).log() for one in own]
    return torch.stack([*by_distance, *by_logarithm], 1)


def _by_chance(gained):
    """The largest mean, in its standard errors, that is exceeded in `DOUBT` of cases when columns (M, S) as
    correlated as these have the mean 0: a quantile of the multivariate t distribution.
    """
    if len(gained) < FEW:
        return student(1 - DOUBT / gained.shape[1], len(gained) - 1)
    centred = gained - gained.mean(0)
    _, sizes, directions = torch.linalg.svd(
        centred / centred.norm(dim=0).clamp_min(NEAREST), full_matrices=False
    )
    generator = torch.Generator().manual_seed(0)

    def normal(count):
        return torch.randn(DRAWS, count, generator=generator, dtype=torch.float64)

    errors = normal(len(sizes)) @ (sizes[:, None] * directions)
    variances = normal(len(gained) - 1).square().mean(1)
    return float((errors.amax(1) / variances.sqrt()).quantile(1 - DOUBT))


def _mean(values):
    return float(values.clamp(max=FARTHEST).mean())


def _errors(values):
    """The means over the first axis in units of their standard errors."""
    spread = values.std(0) / len(values) ** 0.5
    return (values.mean(0) / spread).nan_to_num(0, torch.inf, -torch.inf)  # where none gains, 0 of 0
