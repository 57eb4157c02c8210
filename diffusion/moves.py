"""The plan of a run: between which noise levels it goes, and where fresh noise comes in.

A step grid says where the model is called. Churn, or the share kappa itself, says how much noise is renewed,
and the mode where that happens: after each step, before it, or by running a part of the grid again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from .faults import BadValue
from .paths import Levels, check_sigmas
from .step import check_churn, fresh_share

MODES = ("each step", "raise first", "restart")

Kappa = float | Callable[[float, float], float]  # a number, or a function of (sigma, sigma_next)


@dataclasses.dataclass(frozen=True)
class Move:
    """One step: noise x from `sigma_from` up to `sigma` if that is higher, predict, go to `sigma_next`.

    kappa is the share of fresh noise at the end. Where noise is added first, earlier predictions are dropped.
    """

    sigma_from: float
    sigma: float
    sigma_next: float
    kappa: float = 0.0

    @property
    def rises(self) -> bool:
        """Whether noise is added first."""
        return self.sigma > self.sigma_from


def plan(
    sigmas: torch.Tensor | Sequence[float],
    path: Levels,
    *,
    churn: float = 0.0,
    kappa: Kappa | None = None,
    mode: str = "each step",
    start: float = 0.0,
    end: float = 1.0,
    highest: float | None = None,
) -> list[Move]:
    """The moves of a run; the arguments are those of `samplers.sample`.

    highest: the level that "raise first" never goes beyond, None for sigmas[0]; the second part of a run that
    was split gives where the run began, or the model's largest.

    each step     every step over-shoots by `churn` of its lambda-length and is noised back (`step.py`)
    raise first   the same share of noise is added before the step: lambda falls by churn times the step's
                  lambda-length, but not below that of `highest` (EDM, Karras et al. 2022, arXiv:2206.00364,
                  algorithm 2, gamma = e^(c h) - 1)
    restart       the steps in [start, end) are run, noised back up and run again, `churn` times (a whole
                  number): each repetition costs its steps' model calls (Xu et al. 2023, arXiv:2306.14878,
                  algorithm 1)
    """
    grid = check_sigmas(sigmas, path, path.levels)
    churn = check_noising(churn, mode, start, end)
    if kappa is not None and (churn > 0 or mode != MODES[0]):
        raise BadValue(
            "kappa must be given alone, in place of churn and mode, got it with churn {churn:g} and mode "
            "{mode!r}. Leave them out.",
            churn=churn,
            mode=mode,
        )
    steps = len(grid) - 1
    inside = [start <= i / steps < end for i in range(steps)]
    levels = grid.tolist()
    if mode == "each step":
        shares = _shares(grid, path, churn, kappa)
        return [Move(t, t, s, k if on else 0.0) for t, s, k, on in zip(levels, levels[1:], shares, inside)]
    if mode == "raise first":
        return [
            Move(t, raised(path, t, s, churn, highest or levels[0]) if on else t, s)
            for t, s, on in zip(levels, levels[1:], inside)
        ]
    return _restarts(levels, inside, int(churn))


def check_noising(churn: float, mode: str = "each step", start: float = 0.0, end: float = 1.0) -> float:
    """`churn` as a float.

    Raises ValueError naming the argument that `plan` can't take, before there is a grid.
    """
    churn = check_churn(churn)
    if mode not in MODES:
        raise BadValue("mode must be one of {modes}, got {got!r}.", modes=list(MODES), got=mode)
    if start > end:
        raise BadValue("start must not be above end, got {start} and {end}.", start=start, end=end)
    if not 0 <= start <= end <= 1:
        raise BadValue(
            "start and end must be shares of the run with 0 <= start <= end <= 1, got {start} and {end}.",
            start=start,
            end=end,
        )
    if mode == "restart" and not churn.is_integer():
        raise BadValue(
            "churn must be a whole number in mode restart, where it counts the repetitions; got {got:g}.",
            got=churn,
        )
    return churn


def _shares(grid, path, churn, kappa):
    """The share of fresh noise of every step."""
    if kappa is None:
        return fresh_share(churn, path, grid[:-1], grid[1:]).tolist() if churn else [0.0] * (len(grid) - 1)
    shares = []
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
        # a last step has no noise to renew; in a process without noise kappa is what is let go of x_t
        counts = s > 0 or not path.noisy
        shares.append(float(kappa(t, s) if callable(kappa) else kappa) if counts else 0.0)
    if not all(0 <= k <= 1 for k in shares):
        raise BadValue(
            "kappa must be between 0 and 1, got {least} to {most}.", least=min(shares), most=max(shares)
        )
    return shares


def raised(path: Levels, sigma: float, sigma_next: float, churn: float, highest: float) -> float:
    """The level, at most `highest`, with the lambda of `sigma` less churn times the step's lambda-length."""
    t, s = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    if s == 0 or path.alpha(t) == 0 or churn == 0:
        return sigma
    up = path.log_snr(t) - churn * (path.log_snr(s) - path.log_snr(t))
    if up <= path.log_snr(torch.tensor(highest, dtype=torch.float64)):  # a process may know no level for it
        return highest
    return min(float(path.level(up)), highest)


def _restarts(levels, inside, repeats):
    """Every step once, and those inside `repeats` times more, each time from where they end up again."""
    moves = [Move(t, t, s) for t, s in zip(levels, levels[1:])]
    chosen = [i for i, on in enumerate(inside) if on and levels[i + 1] > 0]
    if not repeats or len(moves) == 1:
        return moves
    if not chosen:
        raise BadValue(
            "start and end must leave a step before the last of {steps} for mode restart to repeat. Widen "
            "them, or use more steps.",
            steps=len(moves),
        )
    first, last = chosen[0], chosen[-1] + 1
    again = [dataclasses.replace(moves[first], sigma_from=levels[last]), *moves[first + 1 : last]]
    return moves[:last] + again * repeats + moves[last:]
