"""What a fit learns from: a model's accurate trajectories, and what they tell without another model call."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from ..faults import BadValue
from ..paths import Path
from ..step import step, weights
from .linear import GUIDED, classical, solve

HELD_OUT = 3 / 8  # share of the trajectories
ALIKE = 0.01  # relative difference of levels below which grids count as one


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Accurate solutions, N of them.

    sigmas       (K + 1,) levels from the start to 0, float64
    states       (N, K + 1, ...) x at those levels
    predictions  (N, K, ...) the model's x0 there
    denoise      (x, sigma, which) -> x0 for x (B, ...), sigma a float, which (B,) the trajectories that the
                 rows of x belong to
    prompts      (N,) which prompt each was drawn for; None where there is but one
    apart        (x, sigma, which, kinds) -> one prediction for each letter of kinds, "c" the conditional and
                 "u" the unconditional one (`linear.KINDS`); None where guidance has no such parts
    """

    path: Path
    sigmas: torch.Tensor
    states: torch.Tensor
    predictions: torch.Tensor
    denoise: Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]
    prompts: torch.Tensor | None = None
    apart: Callable[[torch.Tensor, float, torch.Tensor, str], Sequence[torch.Tensor]] | None = None

    def ask(self, x: torch.Tensor, sigma: float, which: torch.Tensor, kinds: str) -> Sequence[torch.Tensor]:
        """One prediction of x0 for each letter of kinds."""
        if kinds == GUIDED:
            return [self.denoise(x, sigma, which)]
        return self.apart(x, sigma, which, kinds)

    @property
    def deviation(self) -> float:
        """Standard deviation of the final images, the unit of all errors; where they are all one number,
        their size.
        """
        ends = self.states[:, -1].float()
        return float(ends.std()) or float(ends.abs().max()) or 1.0

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(training, held-out) indices: three of eight prompts are held out.

        Of fewer than four prompts, or where that would be one trajectory, it is the last three eighths of
        the trajectories. Raises ValueError for fewer than 4 trajectories.
        """
        every = torch.arange(len(self.states))
        if len(every) < 4:
            raise BadValue(
                "trajectories must be 4 or more, so that some can be held out; got {got}.", got=len(every)
            )
        held_out = every >= len(every) - max(1, round(HELD_OUT * len(every)))
        if self.prompts is not None and len(self.prompts.unique()) >= 4:
            _, numbers = self.prompts.unique(return_inverse=True)
            by_prompt = (numbers % 8 == 2) | (numbers % 8 == 5) | (numbers % 8 == 7)
            held_out = by_prompt if int(by_prompt.sum()) > 1 else held_out  # one alone tells nothing
        return every[~held_out], every[held_out]

    @property
    def between(self) -> float:
        """The median distance of two of the final images, RMS in units of the deviation; 1 where it is 0."""
        ends = self.states[:, -1].flatten(1).double()
        apart = torch.pdist(ends) / (ends.shape[1] ** 0.5 * self.deviation)
        return float(apart.median()) or 1.0


# ---- where to stop ---------------------------------------------------------------------------------


def by_dynamic_programming(data: Trajectories, steps: int, which: torch.Tensor) -> list[int]:
    """Which of the levels to stop at, steps + 1 indices: least sum of the errors of first-order steps along
    the trajectories `which`, as `_step_errors` has them.
    """
    last = len(data.sigmas) - 1
    if not 1 <= steps <= last:
        raise BadValue(
            "steps must be from 1 to {last}, the steps that the trajectories are kept at; got {got}.",
            last=last,
            got=steps,
        )
    cost = _step_errors(data, which)
    least = torch.full((last + 1,), math.inf, dtype=torch.float64)  # to reach each level in so many steps
    least[0] = 0
    origins = []
    for _ in range(steps):
        least, origin = (least[:, None] + cost).min(0)
        origins.append(origin)
    places = [last]
    for origin in reversed(origins):
        places.append(int(origin[places[-1]]))
    return places[::-1]


def _step_errors(data, which):
    """The error of a first-order step from level i to level j > i, (K + 1, K + 1) float64, inf elsewhere,
    along the trajectories `which`.

    It is the distance of the step's end from the trajectory, in units of what x is scaled by there,
    alpha + sigma, so that every path gives the same grid.
    """
    path, levels = data.path, data.sigmas
    count = len(levels)
    scale = path.alpha(levels) + levels
    states, predictions = (part[which].flatten(2).float() for part in (data.states, data.predictions))
    errors = torch.full((count, count), math.inf, dtype=torch.float64)
    for i in range(count - 1):
        state_weights, prediction_weights, _ = weights(path, levels[i], levels[i + 1 :])
        for j, a, b in zip(range(i + 1, count), state_weights.tolist(), prediction_weights.tolist()):
            off = a * states[:, i] + b * predictions[:, i] - states[:, j]
            errors[i, j] = float(off.square().mean(1).sqrt().mean()) / float(scale[j])
    return errors


def ranked(data: Trajectories, grids: Sequence[torch.Tensor], which: torch.Tensor) -> list[torch.Tensor]:
    """`grids`, best first, by how near their order-2 runs come to the ends of the trajectories `which` when
    the model's answers are read off those.
    """
    times = data.path.flow_time(data.sigmas[:-1])

    def answer(x, sigma):
        """The prediction at sigma, by the line in flow time between the kept ones on either side."""
        time = data.path.flow_time(torch.tensor(sigma, dtype=torch.float64))
        at = int((times > time).sum().clamp(1, len(times) - 1))
        share = float(((times[at - 1] - time) / (times[at - 1] - times[at])).clamp(0, 1))
        return torch.lerp(data.predictions[which, at - 1].to(x), data.predictions[which, at].to(x), share)

    def error(grid):
        off = solve(classical(grid, data.path), answer, data.states[which, 0]) - data.states[which, -1]
        return float(off.flatten(1).square().mean(1).sqrt().mean())

    return sorted(_distinct(grids), key=error)


def _distinct(grids):
    """Those that differ by more than `ALIKE` somewhere from all before."""
    kept = []
    for grid in grids:
        if not any(torch.allclose(grid, other, rtol=ALIKE) for other in kept):
            kept.append(grid)
    return kept


# ---- where the trajectories are --------------------------------------------------------------------


def at_levels(data: Trajectories, sigmas: Sequence[float], which: torch.Tensor) -> list[torch.Tensor]:
    """The trajectories' states at sigmas[1:].

    Those kept; between two of them, a first-order step and a share of its error.
    """
    levels = data.sigmas.tolist()
    states = []
    for sigma in sigmas[1:]:
        at = max(i for i, level in enumerate(levels) if level >= sigma)
        if levels[at] == sigma:
            states.append(data.states[which, at])
            continue
        above, below = levels[at], levels[at + 1]
        x, x0 = data.states[which, at], data.predictions[which, at]
        guess, end = (step(x, x0, data.path, above, to) for to in (sigma, below))
        # a first-order step's error grows with the square of its length
        share = (above - sigma) / (above - below)
        states.append(guess + share**2 * (data.states[which, at + 1] - end))
    return states
