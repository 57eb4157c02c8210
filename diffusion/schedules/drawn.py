"""A step grid drawn by hand: the model's time as a falling curve over the share of the steps.

The curve runs from (share 0, time 1) to (share 1, time 0) through control points, by monotone cubic
interpolation (Fritsch & Butland 1984, SIAM J. Sci. Stat. Comput. 5:300): smooth, never above the point before
or below the one after. Points on the diagonal draw a straight line, which is the grid "uniform".
"""

import math
from collections.abc import Sequence

import torch

from ..faults import BadValue
from .grids import SigmaOf, check_steps, descending

CLOSEST = 1e-4  # least distance between neighbours, in share and in time
MOST = 64  # points


Points = Sequence[Sequence[float]]  # (share of the steps, time) pairs


def grid(points: Points, steps: int, sigma_of: SigmaOf, denoise: float = 1.0) -> torch.Tensor:
    """`sigmas`, float64 (steps + 1,), descending from sigma_of(denoise) to 0, at the times of the curve.

    points: see `control_points`; steps >= 1; `denoise` in (0, 1] as in `grids.grid`. ValueError for others.
    """
    check_steps(steps)
    if not 0 < denoise <= 1:
        raise BadValue("denoise must be above 0 and at most 1, got {got}.", got=denoise)
    shares = torch.arange(int(steps), dtype=torch.float64) / int(steps)
    times = denoise * curve(control_points(points), shares)
    sigmas = sigma_of(times).to(torch.float64)
    return descending(torch.cat([sigmas, sigmas.new_zeros(1)]))


def control_points(points: Points) -> list[tuple[float, float]]:
    """The points with both ends; these may be given or left out.

    Shares must rise and times must fall from each point to the next. Raises ValueError naming the first point
    that is wrong.
    """
    if not isinstance(points, (list, tuple)) or not all(_is_pair(p) for p in points):
        raise BadValue(
            "points must be a list of [share of the steps, time] pairs of numbers, such as [[0.25, 0.8], "
            "[0.6, 0.3]], got {got}. The editor's reset button makes a new one.",
            got=str(points)[:80],
        )
    if len(points) > MOST:
        raise BadValue("points must be at most {most}, got {got}. Remove some.", most=MOST, got=len(points))
    inner = [(float(share), float(time)) for share, time in points]
    inner = inner[(0.0, 1.0) in inner[:1] :]
    inner = inner[:-1] if (1.0, 0.0) in inner[-1:] else inner
    whole = [(0.0, 1.0), *inner, (1.0, 0.0)]
    for i, ((share, time), (next_share, next_time)) in enumerate(zip(whole, whole[1:])):
        if next_share - share >= CLOSEST and time - next_time >= CLOSEST:
            continue
        raise BadValue(
            "points must go down to the right from [0, 1] to [1, 0], {closest:g} apart or more, got "
            "[{share:g}, {time:g}] and then [{next_share:g}, {next_time:g}] (the end). Move or remove one of "
            "them."
            if i == len(whole) - 2
            else "points must go down to the right from [0, 1] to [1, 0], {closest:g} apart or more, got "
            "[{share:g}, {time:g}] and then [{next_share:g}, {next_time:g}]. Move or remove one of them.",
            closest=CLOSEST,
            share=share,
            time=time,
            next_share=next_share,
            next_time=next_time,
        )
    return whole


def _is_pair(point):
    return (
        isinstance(point, (list, tuple))
        and len(point) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in point)
    )


def curve(points: Sequence[tuple[float, float]], shares: torch.Tensor) -> torch.Tensor:
    """The times of the curve through `points` (of `control_points`) at `shares`, float64 of their shape."""
    x, y = zip(*points)
    slopes = _slopes(x, y)
    x, y, m = (torch.tensor(v, dtype=torch.float64) for v in (x, y, slopes))
    shares = torch.as_tensor(shares, dtype=torch.float64)
    i = (torch.searchsorted(x, shares, right=True) - 1).clamp(0, len(x) - 2)
    h = x[i + 1] - x[i]
    s = (shares - x[i]) / h
    rest = 1 - s
    left = (1 + 2 * s) * y[i] + s * h * m[i]
    right = (1 + 2 * rest) * y[i + 1] - rest * h * m[i + 1]
    return rest * rest * left + s * s * right


def _slopes(x, y):
    """The curve's slope at every point.

    Weighted harmonic means of the neighbouring secants; at the ends, three-point formulas.
    """
    h = [b - a for a, b in zip(x, x[1:])]
    d = [(b - a) / w for a, b, w in zip(y, y[1:], h)]
    if len(d) == 1:
        return [d[0], d[0]]
    inner = [
        3 * (h0 + h1) / ((h0 + 2 * h1) / d0 + (2 * h0 + h1) / d1)
        for h0, h1, d0, d1 in zip(h, h[1:], d, d[1:])
    ]
    return [_end(h[0], h[1], d[0], d[1]), *inner, _end(h[-1], h[-2], d[-1], d[-2])]


def _end(h0, h1, d0, d1):
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    return min(0.0, slope)  # all secants fall, so the slope must not rise
