"""Changes to a finished step grid: shift, scale, blend, split, snap, cut to a part, move to another model.

Grids are `sigmas` (steps + 1,), float64, descending (`paths.check_sigmas`). Edits but `split` and `part` keep
the number of steps, the entry 0 at the end where there is one, and the order: entries that an edit would make
equal are pulled apart by a relative 1e-4.
"""

import math
from collections.abc import Sequence

import torch

from ..faults import BadValue
from ..paths import Path, check_sigmas
from .grids import SigmaOf, descending, shifted, time_of

NEAR = 0.02  # of a part: levels this near to its ends are its ends


def _positive(name, value, neutral):
    if not 0 < value < math.inf:
        raise BadValue(
            "{name} must be above 0, got {got}. {neutral:g} changes nothing.",
            name=name,
            got=value,
            neutral=neutral,
        )


def shift(sigmas: torch.Tensor, sigma_of: SigmaOf, amount: float) -> torch.Tensor:
    """Time moved towards the noise: t -> amount t / (1 + (amount - 1) t).

    t is the share of the model's time between both ends.
    """
    _positive("shift", amount, 1)
    if amount == 1:
        return sigmas
    times = time_of(sigma_of, sigmas)
    high, low = times[0], times[-1]

    def between_ends(share):
        return sigma_of(low + share * (high - low))

    moved = shifted(between_ends, amount)((times - low) / (high - low)).to(torch.float64)
    moved[0], moved[-1] = sigmas[0], sigmas[-1]
    return descending(moved)


def scale(sigmas: torch.Tensor, path: Path, amount: float, highest: float) -> torch.Tensor:
    """sigma/alpha of every entry times `amount` (lambda - log amount), at most the model's `highest`."""
    _positive("scale", amount, 1)
    if amount == 1:
        return sigmas
    moved = path.sigma(path.log_snr(sigmas) - math.log(amount))
    return _below(torch.where(sigmas > 0, moved, 0.0), path, highest)


def _below(sigmas, path, highest):
    """`sigmas`, those above `highest` spread evenly from there to the first one below it.

    Evenly in flow time, sigma/(alpha + sigma).
    """
    above = int((sigmas >= highest).sum())
    if above < 2:
        return _descending(sigmas.clamp_max(highest))
    below = sigmas[above] if above < len(sigmas) else sigmas.new_zeros(())
    ends = torch.stack([torch.as_tensor(highest, dtype=torch.float64), below])
    spread = torch.lerp(*path.flow_time(ends), torch.arange(above, dtype=torch.float64) / above)
    return _descending(torch.cat([ends[:1], path.at_flow_time(spread)[1:], sigmas[above:]]))


def _descending(sigmas):
    """`descending` where a last entry above 0 need not stay: it may have come too near to the others."""
    return (
        descending(sigmas) if sigmas[-1] == 0 else descending(torch.cat([sigmas, sigmas.new_zeros(1)]))[:-1]
    )


def blend(sigmas: torch.Tensor, other: torch.Tensor, sigma_of: SigmaOf, share: float) -> torch.Tensor:
    """Between two grids: the mean of the model's times, with weight `share` on `other`.

    `other` is resampled to as many steps.
    """
    if not 0 <= share <= 1:
        raise BadValue(
            "blend must be between 0 (the first schedule) and 1 (the second), got {got}.",
            got=share,
        )
    a, b = time_of(sigma_of, sigmas), time_of(sigma_of, other)
    place = torch.linspace(0, len(b) - 1, len(a), dtype=torch.float64)
    low = place.floor().long().clamp_max(len(b) - 2)
    b = torch.lerp(b[low], b[low + 1], place - low)
    times = (1 - share) * a + share * b
    return descending(torch.where(times > 0, sigma_of(times).to(torch.float64), 0.0))


def snap(sigmas: torch.Tensor, sigma_of: SigmaOf, anchors: int) -> torch.Tensor:
    """Every entry at the nearest of `anchors` equal times that no earlier entry took.

    For models distilled on such times. Raises ValueError when there are fewer anchors than steps.
    """
    places = time_of(sigma_of, sigmas) * anchors
    ends_at_data = bool(sigmas[-1] == 0)
    count = len(sigmas) - ends_at_data
    if anchors < count:
        raise BadValue(
            "anchors must be at least {count}, the number of noise levels to place, got {got}.",
            count=count,
            got=anchors,
        )
    chosen, above = [], anchors + 1
    for i, place in enumerate(places[:count].tolist()):
        above = min(max(round(place), count - i), above - 1)  # leave room for those that follow
        chosen.append(above)
    levels = sigma_of(torch.tensor(chosen, dtype=torch.float64) / anchors).to(torch.float64)
    return torch.cat([levels, levels.new_zeros(1)]) if ends_at_data else levels


def split(sigmas: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two grids, before and after entry `step`, which is in both; to change model or sampler on the way.

    Raises ValueError when either side would have no step.
    """
    if not 1 <= step <= len(sigmas) - 2:
        raise BadValue(
            "split must be between 1 and {last} for this schedule of {steps} steps, got {got}.",
            last=len(sigmas) - 2,
            steps=len(sigmas) - 1,
            got=step,
        )
    return sigmas[: step + 1], sigmas[step:]


def part(sigmas: torch.Tensor, of: torch.Tensor, path: Path) -> torch.Tensor:
    """What of a grid lies between the ends of another, `of`, whose ends it gets.

    Levels nearer to them than NEAR of the way, in flow time, give way. At least the one step between the ends
    is left.
    """
    high, low = path.flow_time(of[[0, -1]].double()).tolist()
    near = NEAR * (high - low)
    times = path.flow_time(sigmas.double())
    inner = sigmas[(times < high - near) & (times > low + near)]
    return torch.cat([of[:1].to(sigmas), inner, of[-1:].to(sigmas)])


def translate(
    sigmas: torch.Tensor | Sequence[float], path: Path, sigma_max: float, other: Path, other_max: float
) -> torch.Tensor:
    """A grid with the same signal-to-noise ratios for another model: lambda'(sigma') = lambda(sigma).

    An entry at the first model's largest level goes to the other's largest; entries beyond that are spread
    below it.
    """
    grid = check_sigmas(sigmas, path)
    moved = torch.where(grid > 0, other.sigma(path.log_snr(grid)), 0.0)
    if grid[0] >= sigma_max * (1 - 1e-4):
        moved[0] = other_max
    return _below(moved, other, other_max)
