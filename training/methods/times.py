"""Where in time a batch looks: levels of a grid or times in (0, 1], weighted to keep the expectation right.

distribution   density over u in (0, 1)
uniform        1
logit-normal   logit(u) ~ N(0, 1)              (Esser et al. 2024, arXiv:2403.03206, eq. 19)
adaptive       sqrt(E[loss^2]) in each of BINS bins, a share of it uniform
                                               (Nichol & Dhariwal 2021, arXiv:2102.09672, sec. 3.3)

u is what the method makes of it: the place in a grid from noise to data, or the time. Adaptive draws are
divided by their density (importance sampling: the expected gradient stays that of uniform draws, with less
variance), logit-normal ones are not: there the density is the point.
"""

import math
from collections.abc import Callable

import torch

from ...diffusion.faults import BadValue
from ...diffusion.paths import Path
from ...diffusion.weightings import mse_factor, weighting

BINS = 20
DISTRIBUTIONS = ("uniform", "logit-normal", "adaptive")
UNIFORM_SHARE = 0.1  # of adaptive draws, so that no bin is forgotten
MEMORY = 0.9  # of the running second moment


class Times:
    """Draws of u; its state `moments` (BINS,) is each bin's running mean squared loss (0: not seen yet)."""

    def __init__(self, distribution: str = "uniform"):
        if distribution not in DISTRIBUTIONS:
            raise BadValue(
                "times must be one of {distributions}, got {got!r}.",
                distributions=list(DISTRIBUTIONS),
                got=distribution,
            )
        self.distribution = distribution
        self.moments = torch.zeros(BINS)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """u (count,) in [0, 1) and the weights (count,) of their losses."""
        u = torch.rand(count, generator=generator)
        if self.distribution == "logit-normal":
            u = torch.sigmoid(torch.randn(count, generator=generator)).clamp(1e-4, 1 - 1e-4)
            return u, torch.ones(count)
        if self.distribution == "uniform" or not (self.moments > 0).all():
            return u, torch.ones(count)
        p = self.moments.sqrt() / self.moments.sqrt().sum() * (1 - UNIFORM_SHARE) + UNIFORM_SHARE / BINS
        which = torch.multinomial(p, count, replacement=True, generator=generator)
        return ((which + u) / BINS).clamp_max(1 - 1e-6), 1 / (BINS * p[which])

    def learn(self, u: torch.Tensor, loss: torch.Tensor) -> None:
        """Take the losses (count,) found at u into account."""
        if self.distribution != "adaptive":
            return
        u, loss = u[u >= 0], loss[u >= 0]
        which = (u * BINS).long().clamp_max(BINS - 1)
        for number in which.unique().tolist():
            found = loss[which == number].double().square().mean().float()
            if found.isfinite():
                old = self.moments[number]
                self.moments[number] = found if old == 0 else MEMORY * old + (1 - MEMORY) * found

    def density(self, u: torch.Tensor) -> torch.Tensor:
        """p(u), of the draws as far as they are not weighted back to uniform."""
        if self.distribution != "logit-normal":
            return torch.ones_like(u)
        u = u.clamp(1e-4, 1 - 1e-4)
        return torch.exp(-0.5 * torch.logit(u).square()) / (math.sqrt(2 * math.pi) * u * (1 - u))


def warm_up_then_cosine(done: int, updates: int) -> float:
    """The share of the peak learning rate after `done` of `updates`: it rises over 5 % of them, then falls
    to 0 along a cosine, and stays there.
    """
    warm_up = min(1.0, (done + 1) / max(1, 0.05 * updates))
    return warm_up * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done / updates)))


def levels_at(done: int, updates: int, most: int, least: int = 10) -> int:
    """How many intervals the grid of neighbouring points has after `done` of `updates`.

    They double from `least` to `most`:
    N(k) = min(s0 2^floor(k / K'), s1), K' = floor(K / (log2 floor(s1/s0) + 1)) (Song & Dhariwal 2023,
    arXiv:2310.14189, eq. 14).
    """
    if most <= least:
        return most
    stage = max(1, int(updates / (math.log2(most // least) + 1)))
    return min(least * 2 ** (done // stage), most)


class Weighting:
    """The weight of a loss on `kind` predictions that makes the run follow one of `diffusion.weightings`.

        weight(u) = w(lambda) |dlambda/du| / (mse_factor(kind) p(u)),   its mean over the draws 1

    so that the sum over draws of p(u) is that weighting, however they are drawn.
    sigma_at: u -> noise level, falling. "none" is 1 everywhere.
    """

    SLOPE, MARGIN, POINTS = 1e-4, 1e-3, 512

    def __init__(
        self,
        name: str,
        kind: str,
        path: Path,
        sigma_at: Callable[[torch.Tensor], torch.Tensor],
        times: Times,
    ):
        self.name, self.kind, self.path = name, kind, path
        self.sigma_at, self.times, self.mean = sigma_at, times, 1.0
        if name != "none":
            u = (torch.arange(self.POINTS, dtype=torch.float64) + 0.5) / self.POINTS
            self.mean = float((self(u) * times.density(u)).mean())

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Weights (B,) float32 of draws u (B,)."""
        if self.name == "none":
            return torch.ones(len(u))
        u = u.double().clamp(self.MARGIN, 1 - self.MARGIN)
        middle, before, after = (
            self.path.log_snr(self.sigma_at(v)) for v in (u, u - self.SLOPE, u + self.SLOPE)
        )
        slope = (after - before).abs() / (2 * self.SLOPE)
        factor = mse_factor(self.kind, middle)
        return (weighting(self.name, middle) * slope / (factor * self.times.density(u)) / self.mean).float()
