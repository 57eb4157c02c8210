"""How far two sets of pictures are apart as distributions, and how varied they are, each with an interval.

A set is features (N, D), float. Row i of both sets belongs to one prompt and, where it can be had, to one
noise; apart from that rows are independent. Every figure is a mean over pairs of rows i != j, a U-statistic
of order two (Hoeffding 1948), and so unbiased: two sets of one distribution are 0 apart in the mean, below it
as often as above. As only pairs i != j are taken, in all terms alike, row i may be the same noise in both
sets: then what chance has done to the one it has done to the other, and the interval is several times shorter
than between sets from different noises. Prompts that come round in turn add no bias either.

Intervals are the jackknife's (Arvesen 1969, Ann. Math. Stat. 40:2076) with Student's t, of 95 %: right where
distributions differ, too long where they do not. What they cover is tested (`tests/training/reports`).
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from ...diffusion.faults import BadValue
from ...diffusion.solvers.accuracy import CONFIDENCE, student

LEAST = 4  # rows, below which nothing is estimated


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def apart(self, other: "Estimate") -> bool:
        """Whether the two intervals have nothing in common."""
        return self.low > other.high or other.low > self.high

    @property
    def known(self) -> bool:
        """Whether it is a number with an interval, which it is not where there were too few rows."""
        return math.isfinite(self.low + self.value + self.high)


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


# ---- what pictures are compared by -----------------------------------------------------------------


def scale(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, deviation) (D,) of the features of a reference set (M, D)."""
    reference = reference.double()
    return reference.mean(0), reference.std(0)


def scaled_by(mean: torch.Tensor, deviation: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map of features (N, D) to comparable ones, by the mean and deviation of a reference.

    z = (f - mean) / deviation, then sign(z) log(1 + |z|), so that no single feature and no single picture
    makes the whole distance. A feature that does not vary in the reference is left out.
    """
    varies = deviation > 1e-6 * deviation.max()

    def scaled(features: torch.Tensor) -> torch.Tensor:
        z = ((features.double() - mean) / deviation)[:, varies]
        return z.sign() * z.abs().log1p()

    return scaled


def scale_of(reference: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """`scaled_by` a reference set (M, D), which is never the one that is judged."""
    return scaled_by(*scale(reference))


# ---- pairs of rows -------------------------------------------------------------------------------------
# Matrices (N, N), symmetric, of what two rows give; `share` makes an estimate of two of them.


def energy_pairs(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """h (N, N) whose mean over i != j estimates the energy distance of two sets (N, D).

    h_ij = |x_i - y_j| + |x_j - y_i| - |x_i - x_j| - |y_i - y_j|: Szekely & Rizzo 2013, J. Stat. Plan.
    Inference 143:1249, eq. 2.
    """
    across = torch.cdist(features, reference)
    return across + across.T - torch.cdist(features, features) - torch.cdist(reference, reference)


def known_pairs(
    features: torch.Tensor, prompts: torch.Tensor, known: torch.Tensor, of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`energy_pairs` to, distances within) a distribution that is known whole, both (N, N).

    Prompt p's is the rows of known (M, D) where of (M,) = p. Expectations over it are exact, so that only the
    chance of the features (N, D), for prompts (N,), is in the interval. Raises ValueError for a prompt
    without a row.
    """
    names, place = prompts.unique(return_inverse=True)
    if missing := sorted(set(names.tolist()) - set(of.tolist())):
        raise BadValue(
            "every prompt must have known pictures, and these have none: {missing}.", missing=missing
        )
    members = torch.stack([(of == name).to(known) / (of == name).sum() for name in names])  # (P, M)
    across = (torch.cdist(features, known) @ members.T)[:, place]  # of x_i to the prompt of row j
    within = (members @ torch.cdist(known, known) @ members.T)[place][:, place]
    return across + across.T - torch.cdist(features, features) - within, within


def share(top: torch.Tensor, bottom: torch.Tensor) -> Estimate:
    """Mean of one matrix of pairs over i != j, divided by that of another.

    Of a difference of two `energy_pairs`: by how much one set is nearer than another to the same reference.
    """
    over, of_over = _sums(top)
    under, of_under = _sums(bottom)
    if len(top) < LEAST or not (under - 2 * of_under > 0).all():
        return UNKNOWN
    return _jackknife(over / under, (over - 2 * of_over) / (under - 2 * of_under))


# ---- the figures ---------------------------------------------------------------------------------------


def distance(features: torch.Tensor, reference: torch.Tensor) -> Estimate:
    """The energy distance of two sets (N, D), as a share of the mean distance within the reference."""
    return share(energy_pairs(features, reference), torch.cdist(reference, reference))


def diversity(features: torch.Tensor, reference: torch.Tensor, prompts: torch.Tensor) -> Estimate:
    """Mean distance between two pictures of one prompt (N,), as a share of the reference's; 1 is the same.

    Both sets (N, D). Unknown where too few rows share a prompt.
    """
    same = prompts[:, None] == prompts
    return share(torch.cdist(features, features) * same, torch.cdist(reference, reference) * same)


def rmse(a: torch.Tensor, b: torch.Tensor) -> Estimate:
    """Root mean squared difference over all entries of two sets (N, ...), in their units."""
    squares = (a.double() - b.double()).square().flatten(1).mean(1)
    total, count = squares.sum(), len(squares)
    if count < LEAST:
        return Estimate(float((total / count).sqrt()), math.nan, math.nan)
    return _jackknife((total / count).sqrt(), ((total - squares) / (count - 1)).clamp_min(0).sqrt())


def _sums(pairs):
    """(sum over i != j, the same for each i) of a matrix of pairs."""
    each = pairs.sum(1) - pairs.diagonal()
    return each.sum(), each


def _jackknife(value, without):
    """The interval of an estimate, by the same without each row (N,)."""
    count = len(without)
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    reach = float(student((1 + CONFIDENCE) / 2, count - 1) * error)
    return Estimate(float(value), float(value) - reach, float(value) + reach)
