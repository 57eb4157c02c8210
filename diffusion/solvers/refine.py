"""The weights and levels of a solver as parameters, how far they may move, and the least squares that say
where to.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..paths import Path
from .linear import LinearSolver

LEVEL_STEP = 0.05  # least change of lambda that is tried: discrete models know no finer noise levels
FARTHEST = 0.4  # share of the gap to a neighbour by which a level may move at once
CLOSEST = 1e-4  # relative distance of neighbouring levels below which they no longer descend


class Parameter(NamedTuple):
    """What can be changed of a solver: the weight at a `place` of a step's row, or, where that is None, the
    lambda of the step's level.
    """

    step: int
    place: int | None


def shifted(path: Path, sigma: float, change: float) -> float:
    """The level whose lambda is that of `sigma` plus `change`."""
    return float(path.sigma(path.log_snr(torch.tensor(sigma, dtype=torch.float64)) + change))


# ---- parameters ------------------------------------------------------------------------------------


def parameters(solver: LinearSolver, names: Sequence[Parameter], path: Path) -> torch.Tensor:
    """The values of those parameters, float64 (P,)."""
    lambdas = path.log_snr(torch.tensor(solver.sigmas, dtype=torch.float64)).tolist()
    rows = _full_rows(solver)
    values = [lambdas[i] if place is None else rows[i][place] for i, place in names]
    return torch.tensor(values, dtype=torch.float64)


def moved(
    solver: LinearSolver, names: Sequence[Parameter], change: torch.Tensor, path: Path
) -> LinearSolver | None:
    """The solver with those parameters changed; None if levels stop descending or a number is not finite.

    A level moves by at most a share of the way to its neighbours; rows are given all the places that they can
    have.
    """
    rows, sigmas = _full_rows(solver), list(solver.sigmas)
    for (i, place), value in zip(names, change.tolist()):
        if place is None:
            sigmas[i] = _bounded(path, solver.sigmas, i, value)
        else:
            rows[i][place] += value
    if any(b >= a * (1 - CLOSEST) for a, b in zip(sigmas, sigmas[1:])):
        return None
    try:
        return dataclasses.replace(solver, sigmas=tuple(sigmas), rows=tuple(rows))
    except ValueError:  # not finite
        return None


def _full_rows(solver):
    """The solver's rows, lists with a place for every prediction there is."""
    most = itertools.accumulate((len(asked) for asked in solver.asked), initial=1)
    next(most)
    return [[*row, *[0.0] * (count - len(row))] for row, count in zip(solver.rows, most)]


def _bounded(path, sigmas, i, change):
    """Level i with its lambda changed, at most `FARTHEST` of the way to either neighbour."""
    wanted = shifted(path, sigmas[i], change)
    low = sigmas[i] + FARTHEST * (sigmas[i + 1] - sigmas[i])
    high = sigmas[i] + FARTHEST * (sigmas[i - 1] - sigmas[i])
    return min(max(wanted, low), high)


# ---- least squares ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NormalEquations:
    """Those of the least squares sum_k c_k term_k = missing, with each term brought to unit size; float64.

    size (K,) norms of the terms; gram (K, K) their inner products; slope (K,) those with what is missing
    """

    size: torch.Tensor
    gram: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def of(cls, terms: torch.Tensor, missing: torch.Tensor) -> "NormalEquations":
        """For terms (K, N, ...) and what is missing (N, D)."""
        flat = terms.flatten(1)
        gram = (flat @ flat.T).double().cpu()
        slope = (flat @ missing.flatten()).double().cpu()
        return cls.scaled(gram, slope)

    @classmethod
    def scaled(cls, gram: torch.Tensor, slope: torch.Tensor) -> "NormalEquations":
        """Those of inner products (K, K) and slope (K,) as they are."""
        size = gram.diagonal().sqrt().clamp_min(1e-30)
        return cls(size, gram / size[:, None] / size, slope / size)

    def solution(self, damping: float) -> torch.Tensor:
        """c (K,), with `damping` added to the diagonal (ridge regression; Levenberg 1944, Marquardt 1963)."""
        damped = self.gram + damping * torch.eye(len(self.slope), dtype=self.gram.dtype)
        return torch.linalg.solve(damped, self.slope) / self.size
