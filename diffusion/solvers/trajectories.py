"""What a fit learns from: a model's accurate trajectories, and what can be read off them without asking the
model again.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from ..faults import BadValue
from ..paths import Path
from ..step import step, weights
from .linear import classical, solve

HELD_OUT = 0.25  # share of the trajectories


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Accurate solutions, N of them.

    sigmas       (K + 1,) levels from the start to 0, float64
    states       (N, K + 1, ...) x at those levels
    predictions  (N, K, ...) the model's x0 there
    denoise      (x, sigma, which) -> x0 for x (B, ...), sigma a float, which (B,) the trajectories that the
                 rows of x belong to
    prompts      (N,) which prompt each was drawn for; None where there is but one
    """

    path: Path
    sigmas: torch.Tensor
    states: torch.Tensor
    predictions: torch.Tensor
    denoise: Callable
    prompts: torch.Tensor | None = None

    @property
    def deviation(self):
        """Standard deviation of the final images, the unit of all errors."""
        return float(self.states[:, -1].float().std())

    def split(self):
        """(training, held-out) indices: every fourth prompt is held out, the last quarter where there are
        fewer than four.

        Raises ValueError for fewer than 4 trajectories.
        """
        every = torch.arange(len(self.states))
        if len(every) < 4:
            raise BadValue(
                "trajectories must be 4 or more, so that some can be held out; got {got}.",
                got=len(every),
            )
        held_out = every >= len(every) - max(1, round(HELD_OUT * len(every)))
        if self.prompts is not None and len(self.prompts.unique()) >= 4:
            held_out = self.prompts.unique(return_inverse=True)[1] % 4 == 3
        return every[~held_out], every[held_out]


def by_dynamic_programming(data, steps):
    """Which of the trajectories' levels to stop at, a list of steps + 1 indices: least sum of the first-order
    steps' errors.

    The error of a step from level i to j is the distance of its end from the trajectory, in units of what x
    is scaled by there, alpha + sigma, so that every path gives the same grid.
    """
    path, levels = data.path, data.sigmas
    last = len(levels) - 1
    if not 1 <= steps <= last:
        raise BadValue(
            "steps must be from 1 to {last}, the steps that the trajectories are kept at; got {got}.",
            last=last,
            got=steps,
        )
    scale = path.alpha(levels) + levels
    cost = torch.full((last + 1, last + 1), math.inf, dtype=torch.float64)
    states, predictions = data.states.flatten(2).float(), data.predictions.flatten(2).float()
    for i in range(last):
        a, b, _ = weights(path, levels[i], levels[i + 1 :])
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


def ranked(data, grids, which):
    """`grids`, the one first whose order-2 run is nearest when the model's answers are read off the
    trajectories.
    """
    times = data.path.flow_time(data.sigmas[:-1])

    def answer(x, sigma):
        time = data.path.flow_time(torch.tensor(sigma, dtype=torch.float64))
        at = int((times > time).sum().clamp(1, len(times) - 1))
        share = float(((times[at - 1] - time) / (times[at - 1] - times[at])).clamp(0, 1))
        return torch.lerp(data.predictions[which, at - 1].to(x), data.predictions[which, at].to(x), share)

    def error(grid):
        off = solve(classical(grid, data.path), answer, data.states[which, 0]) - data.states[which, -1]
        return float(off.flatten(1).square().mean(1).sqrt().mean())

    return sorted(_distinct(grids), key=error)


def _distinct(grids):
    """Those that differ by more than 1 % somewhere from all before."""
    kept = []
    for grid in grids:
        if not any(torch.allclose(grid, other, rtol=0.01) for other in kept):
            kept.append(grid)
    return kept


def at_levels(data, sigmas, which):
    """The trajectories' states at sigmas[1:], each by the line through the predictions on either side of it."""
    levels = data.sigmas.tolist()
    out = []
    for sigma in sigmas[1:]:
        at = max(i for i, level in enumerate(levels) if level >= sigma)
        if levels[at] == sigma:
            out.append(data.states[which, at])
            continue
        a, before, after, x = (
            levels[at],
            data.predictions[which, at],
            data.states[which, at + 1],
            data.states[which, at],
        )
        guess, end = (step(x, before, data.path, a, to) for to in (sigma, levels[at + 1]))
        share = (a - sigma) / (a - levels[at + 1])
        out.append(
            guess + share**2 * (after - end)
        )  # a first-order step's error grows with the square of its length
    return out
