"""The grid along which teacher and student step, and which of its points a run keeps.

A place u in [0, 1) in time stands for a noise level in one of six ways, each of which some methods use:

    shifted_level   the time 1 - u of the run's shifted grid
    kept_level      u of the way through the kept levels, linear in flow time between them
    edge_level      the same through the phases' edges
    step_level      the same through those levels that the student is sampled from
    flow_level      flow time (1 - u) of the largest
    own_level       the model's own time 1 - u

A run may be of a part of the way alone, as a model that others go before or after wants it: from
`from_percent` to `to_percent` of the model's own time, in the host's convention (percent_to_sigma): 0 is the
largest noise level, 1 the data. The grids and the first four of these levels then lie inside that part; what
goes by the other two learns the whole way alone.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from ...diffusion.paths import FLOW, Path
from ...diffusion.schedules.grids import grid, shifted

NEAREST = 1e-3  # to the data that pairs are looked at, in time: the predictions of all kinds are finite there


class GridSettings(Protocol):
    """What the grid follows from (`run.config.DistilConfig` says what they mean)."""

    steps: int
    phases: int
    image_steps: int
    between: int
    shift: float
    from_percent: float
    to_percent: float


class Phases:
    """The grid on which the teacher is solved, and the points of it that are kept: the phases' edges,
    `between` points inside each, and those from which the student is sampled.

    own, sigma_of   t -> sigma: the model's, and with the run's shift; t in (0, 1] of the run's part
    end             the level that the part ends at, 0 for the data
    fine (n,)       the solver's levels, from noise to `end`. The first step, where most of the error of a
                    solver arises, is halved
    kept            which of them are kept
    levels (k,)     sigma of every kept point, float32
    edges           which of the kept are edges of phases
    ends (k - 1,)   for every kept point the edge that ends its phase
    sampled (steps + 1,)    which of the kept the student is sampled from, if the grid keeps them
    """

    def __init__(
        self,
        settings: GridSettings,
        path: Path,
        sigma_of: Callable[[torch.Tensor], torch.Tensor],
        on_the_grid: bool = False,
    ):
        """on_the_grid: keep the levels, too, from which the student is sampled (`method.Method`)."""
        self.path, self.own = path, sigma_of
        self.part = 1 - settings.from_percent, 1 - settings.to_percent  # in the model's own time
        whole = shifted(sigma_of, settings.shift)
        top, low = (_unshifted(t, settings.shift) for t in self.part)
        self.sigma_of = between(whole, top, low)
        self.end = float(whole(torch.tensor([low], dtype=torch.float64))[0]) if low else 0.0
        steps = settings.image_steps
        length = steps // settings.phases
        edges = range(0, steps + 1, length)
        inside = torch.linspace(0, length, settings.between + 2).round().int().tolist()
        sampled = range(0, steps + 1, steps // settings.steps) if on_the_grid else ()
        kept = sorted({a + k for a in edges[:-1] for k in inside}.union(sampled))
        self.edges = torch.tensor([kept.index(e) for e in edges])
        places = torch.arange(len(kept) - 1)
        self.ends = self.edges[torch.searchsorted(self.edges, places, right=True)]
        self.sampled = torch.tensor([kept.index(k) for k in sampled], dtype=torch.long)
        times = torch.tensor([0, 0.5, *range(1, steps)], dtype=torch.float64) / steps
        self.fine = torch.cat([self.sigma_of(1 - times).to(torch.float64), times.new_tensor([self.end])])
        coarse = self.sigmas_for(steps)
        self.kept = [int((self.fine - coarse[k]).abs().argmin()) for k in kept]
        self.levels = self.fine[self.kept].float()

    def sigmas_for(self, steps: int) -> torch.Tensor:
        """The grid for sampling in that many steps; with as many steps as phases, the phases' edges."""
        return self._grid(steps, self.sigma_of)

    def plain(self, steps: int) -> torch.Tensor:
        """The same without the run's shift, as the model itself would be sampled."""
        return self._grid(steps, between(self.own, *self.part))

    def _grid(self, steps: int, sigma_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        levels = grid("uniform", steps, sigma_of, self.path)
        levels[-1] = self.end
        return levels


def between(
    sigma_of: Callable[[torch.Tensor], torch.Tensor], top: float, low: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`sigma_of` of the times from `low` to `top` alone: t -> sigma_of(top - (top - low) (1 - t))."""
    if (top, low) == (1, 0):
        return sigma_of
    return lambda t: sigma_of(top - (top - low) * (1 - t))


def _unshifted(t: float, shift: float) -> float:
    """The time that `shifted` makes t of: shift u / (1 + (shift - 1) u) = t."""
    return t if t in (0, 1) else t / (shift - (shift - 1) * t)


def shifted_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at the time 1 - u of the run's shifted grid."""
    return phases.sigma_of(1 - u.double())


def kept_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at u of the way through the kept levels, linear in flow time between them."""
    return _along(phases.levels, phases.path, u)


def edge_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at u of the way through the phases, linear in flow time within each."""
    return _along(phases.levels[phases.edges], phases.path, u)


def step_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at u of the way through the student's steps, linear in flow time within each."""
    return _along(phases.levels[phases.sampled], phases.path, u)


def _along(levels, path, u):
    times = path.flow_time(levels.double())
    place = u.double() * (len(times) - 1)
    low = place.long().clamp_max(len(times) - 2)
    return path.at_flow_time(torch.lerp(times[low], times[low + 1], place - low).clamp_min(0))


def flow_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at which flow time is (1 - u) of the largest."""
    top = phases.path.flow_time(phases.own(torch.ones(1, dtype=torch.float64)))
    return phases.path.at_flow_time(((1 - u.double()) * top).clamp_min(NEAREST))


def own_level(phases: Phases, u: torch.Tensor) -> torch.Tensor:
    """Noise level at which the model's own time is 1 - u."""
    return phases.own((1 - u.double()).clamp_min(NEAREST))


def usual_shift(path: Path, sigma_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """What the training grid is shifted by: 3 in all, of which a flow model's own shift,
    sigma/(1 - sigma) at t = 1/2, is part.
    """
    if path is not FLOW:
        return 3.0
    middle = float(sigma_of(torch.tensor([0.5], dtype=torch.float64)))
    return max(1.0, min(3.0, 3.0 * (1 - middle) / middle))
