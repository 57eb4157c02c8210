"""Fitting where to step, and how much of each step is noised afresh, to solvers that draw fresh noise.

A run with fresh noise has no picture of its own to come to, so it is the distance of distributions that is
made small: the sliced Wasserstein distance of its ends to the trajectories', which are the model's own
pictures (Bonneel et al. 2015). Levels and churn of the automatic solver are moved one by one, by as much as
helps (compass search; Kolda et al. 2003), on fixed noises, so that what is compared differs by nothing else.
Starts are drawn anew: from the trajectories' own noise a run without fresh noise would come to the very same
pictures, and seem near for that. It takes hundreds of runs of thousands of samples: for models that are cheap
to ask, as those of `solvers.py` are.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from fewstep.diffusion.samplers import Noise
from fewstep.diffusion.solvers.linear import LinearSolver, classical, solve
from fewstep.diffusion.solvers.trajectories import Trajectories
from fewstep.diffusion.step import fresh_share

DIRECTIONS = 64
LEVEL, CHURN = 0.3, 1.5  # first moves: a share of the gap to a neighbouring level, a factor of the churn
FINEST = 4  # times that the moves are halved
RANGE = 4.0  # churn stays within this factor of the one asked for
FITTED = 2  # draws of noise that a solver is fitted on
DRAWS, AHEAD = 8, 7  # of noise that nothing was fitted on, and in how many of them a fit must be nearer


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A solver with fresh noise, its churn at each step, and distances to the trajectories' ends.

    distance, base  mean over draws of noise that it was not fitted on: its own, and the automatic solver's
    ahead           in how many of `draws` it is the nearer one
    evaluations     of the model, in samples, that the fit has cost so far
    """

    solver: LinearSolver
    churn: tuple[float, ...]
    distance: float
    base: float
    ahead: int
    draws: int
    evaluations: int

    @property
    def gained(self) -> bool:
        """Whether it is nearer beyond chance."""
        return self.ahead >= AHEAD * self.draws / DRAWS


def with_churn(sigmas: Sequence[float], churn: Sequence[float], data: Trajectories) -> LinearSolver:
    """The solver of order 2 with corrector along `sigmas`, with a churn for each step."""
    steps = zip(churn, sigmas, sigmas[1:])
    kappa = {(s, t): float(fresh_share(c, data.path, s, t)) for c, s, t in steps}
    return classical(sigmas, data.path, kappa=lambda s, t: kappa[s, t])


def fit_fresh(
    data: Trajectories,
    grid: torch.Tensor,
    churn: float,
    evaluations: float = math.inf,
    samples: int = 512,
    seed: int = 0,
) -> Iterator[Fresh]:
    """Yield `Fresh`, the automatic solver's first, then one after each round of moves that helped.

    grid     the automatic grid (steps + 1,)
    churn    of the automatic solver; that of each step stays within a factor of `RANGE` of it
    samples  runs that a solver is judged by
    """
    bench = _Bench(data, samples, seed)
    sigmas, shares = [float(level) for level in grid], [churn] * (len(grid) - 1)
    first = with_churn(sigmas, shares, data)
    best, least = first, bench.loss(first)
    base = bench.judged(first)

    def told():
        own = base if best == first else bench.judged(best)
        ahead = sum(a < b for a, b in zip(own, base))
        mean = sum(own) / DRAWS
        return Fresh(best, tuple(shares), mean, sum(base) / DRAWS, ahead, DRAWS, bench.count)

    yield told()
    size = 1.0
    for _ in range(FINEST):
        moved = True
        while moved:
            moved = False
            for change in _moves(len(shares), size):
                if bench.count + FITTED * samples * len(shares) > evaluations:
                    if moved:
                        yield told()
                    return
                trial = change(sigmas, shares, churn)
                solver = with_churn(*trial, data)
                value = bench.loss(solver)
                if value < least:
                    (sigmas, shares), best, least, moved = trial, solver, value, True
            if moved:
                yield told()
        size /= 2


def _moves(steps, size):
    """Functions (sigmas, churn, asked) -> the same with one level or one step's churn changed."""
    for at in range(1, steps):
        for towards in (-1, 1):
            yield lambda sigmas, shares, _, at=at, to=towards: (
                _shifted(sigmas, at, to, LEVEL * size),
                shares,
            )
    for at in range(steps - 1):  # the last step adds no noise
        for factor in (CHURN**size, CHURN**-size):
            yield lambda sigmas, shares, asked, at=at, by=factor: (sigmas, _scaled(shares, at, by, asked))


def _shifted(sigmas, at, towards, share):
    """The levels with one of them moved by a share of the gap to a neighbour."""
    out = list(sigmas)
    out[at] += share * (sigmas[at + towards] - sigmas[at])
    return out


def _scaled(shares, at, by, asked):
    out = list(shares)
    out[at] = min(max(out[at] * by, asked / RANGE), asked * RANGE)
    return out


class _Bench:
    """Runs solvers from noise of its own. State: `count` evaluations so far."""

    def __init__(self, data, samples, seed):
        self.data, self.samples, self.seed, self.count = data, samples, seed, 0
        self.which = torch.arange(samples) % len(data.states)
        ends = data.states[:, -1].flatten(1).double()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(DIRECTIONS, ends.shape[1], generator=generator, dtype=torch.float64)
        self.directions = torch.nn.functional.normalize(directions, dim=1)
        self.quantiles = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
        self.target = self._sorted(ends)

    def _sorted(self, pictures):
        """Quantiles of the pictures (N, D) along each direction."""
        return (pictures @ self.directions.T).quantile(self.quantiles, 0, interpolation="linear")

    def loss(self, solver):
        """The mean distance on the draws that solvers are fitted on."""
        return sum(self.distance(solver, draw) for draw in range(FITTED)) / FITTED

    def judged(self, solver):
        """The distance on each of the others."""
        return [self.distance(solver, FITTED + draw) for draw in range(DRAWS)]

    def distance(self, solver, draw):
        """Sliced Wasserstein-2 to the trajectories' ends, in units of their deviation."""
        generator = torch.Generator().manual_seed(1000 * self.seed + 1 + draw)
        data, like = self.data, self.data.states[self.which, 0]
        scale = float(data.states[:, 0].float().std())
        x = scale * torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        noise = _noise(generator)

        def denoise(x, sigma):
            self.count += len(x)
            return data.denoise(x, sigma, self.which)

        end = solve(solver, denoise, x, noise).flatten(1).double()
        off = self._sorted(end) - self.target
        return float(off.square().mean().sqrt()) / data.deviation


def _noise(generator) -> Noise:
    return lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
