"""The automatic choice: step grid, order and churn for a number of steps, with no model call.

The grid is uniform in the flow time of the same signal-to-noise ratio, tau = sigma/(alpha + sigma), moved
towards the noise by t -> s t / (1 + (s - 1) t). All paths are one in that coordinate (`paths.py`), so one
rule serves them all. The more numbers a sample has, the higher the noise level at which it is decided what it
will be (Hoogeboom et al. 2023, arXiv:2301.11093; Esser et al. 2024, arXiv:2403.03206, sec. 5.3.2), hence a
shift s that grows with them. Where steps are many, t^p with p above 1 spends more of them near the picture.
The constants were fitted once, on Gaussian mixtures in 2 to 32 dimensions and on clouds of small pictures of
other size or choice than those of `benchmarks/solvers.py`, which holds the choice against every pair of
ComfyUI's own.

What a step of order 2 extrapolates, guidance multiplies, with all that is wrong in it (Lu et al. 2022,
arXiv:2211.01095, sec. 1: with large guidance high orders lose to order 1). So the order falls from 2 towards
1 where guidance is strong and steps are far apart:  2 - (cfg - 2)/2 (3/steps)^2.  What that is worth, says
`benchmarks/guided_order.py`.
"""

import math

import torch

from ..paths import Path, check_sigmas

SCALE, GROWTH = 0.45, 0.35  # s = SCALE * dimension^GROWTH
LARGEST = 5.0  # from about 1000 numbers on: all pictures
POWERS = ((5, 1.0), (10, 1.25), (math.inf, 1.5))  # p for up to that many steps
FREE, FEW = 2.0, 3  # guidance up to which the order is 2, and steps at which it is 1 at twice as much
CORRECTED = 0.25  # what the order may have lost for a corrector still to help
CHURN, NOISED = 0.1, 0.5  # where fresh noise is wanted: more of it, or later in the run, costs accuracy


def shift(dimension: float | None = None, own: float = 1.0) -> float:
    """s for samples of that many numbers; where their number is not given, that of a picture, or the model's
    `own` where it is larger.
    """
    return max(LARGEST, own) if dimension is None else min(LARGEST, SCALE * dimension**GROWTH)


def sigmas(
    path: Path,
    steps: int,
    top: float | torch.Tensor,
    dimension: float | None = None,
    own: float = 1.0,
) -> torch.Tensor:
    """The automatic grid's levels above 0, float64 (steps,), from the noise level `top` down."""
    s = shift(dimension, own)
    power = next(p for most, p in POWERS if steps <= most)
    t = (1 - torch.arange(steps, dtype=torch.float64) / steps) ** power
    top = torch.as_tensor(top, dtype=torch.float64)
    out = path.at_flow_time(s * t / (1 + (s - 1) * t) * path.flow_time(top))
    out[0] = top
    return out


def solver(
    sigmas: torch.Tensor, path: Path, cfg: float = 1.0, stochastic: bool = False
) -> dict[str, float | bool]:
    """Keyword arguments of `samplers.sample`: order, corrector, churn and up to which share of the run.

    cfg: the guidance that the predictions have, 1 for none. A grid over a part of the way counts as many
    steps as the whole way would have if they lay as close in flow time as these do in the mean: a part near
    the noise, where most grids are dense, more than its share. Raises ValueError for sigmas that are no grid.
    """
    grid = check_sigmas(sigmas)
    first, last = path.flow_time(grid[[0, -1]]).tolist()
    steps = (len(grid) - 1) / (first - last)
    less = min(1.0, max(0.0, cfg - FREE) / FREE * (FEW / steps) ** 2)
    noised = {"churn": CHURN, "end": NOISED} if stochastic else {"churn": 0.0}
    return {"order": 2 - less, "corrector": less < CORRECTED, **noised}
