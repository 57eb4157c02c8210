"""Which predictions to ask for at which step, for a number of model calls: guidance in parts.

A guided step is two calls, conditional and unconditional. Guidance changes slowly along a trajectory, so that
later steps can go on with what the earlier ones found, and the calls saved are steps more (adaptive guidance,
Castillo et al. 2023, arXiv:2312.12487). Which steps those are is searched: each pattern is the automatic
solver with its weights from a roll-out (`rollout.py`), first those that ask for both parts in the first k
steps, then what is near the best of them.
"""

from collections.abc import Callable, Iterator

import torch

from .linear import Ask, LinearSolver, apart, classical, solve_apart
from .rollout import rolled_out
from .trajectories import Trajectories

BOTH, ONE = "cu", "c"
SAMPLES = 16  # trajectories that a pattern is rolled out on, and as many that it is judged by, at most
ROUNDS = 3  # of moves from the best pattern


def first(calls: int) -> list[tuple[str, ...]]:
    """The patterns of so many calls that ask for both parts in the first k steps, for every k."""
    return [(BOTH,) * k + (ONE,) * (calls - 2 * k) for k in range(1, calls // 2 + 1)]


def near(asks: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Those with one unconditional call at a neighbouring step; the first step keeps its own."""
    for i in range(1, len(asks)):
        for j in (i - 1, i + 1):
            if asks[i] == BOTH and 0 < j < len(asks) and asks[j] == ONE:
                moved = list(asks)
                moved[i], moved[j] = ONE, BOTH
                yield tuple(moved)


def searched(
    data: Trajectories,
    calls: int,
    grid: Callable[[int], torch.Tensor],
    cfg: float,
    model: Callable[[torch.Tensor], Ask],
    affords: Callable[[float], bool] = lambda samples: True,
    samples: int = SAMPLES,
    most: int = 3,
) -> list[LinearSolver]:
    """The best `most` patterns of so many calls as solvers to start a fit from, best first.

    grid(steps) is the automatic grid, model(which) asks for those of the trajectories, which must have
    `apart`; affords(calls) -> whether that many calls more may be made, samples: as of SAMPLES.
    """
    train, _ = data.split()
    rolled, judged = train[::2][:samples], train[1::2][:samples]
    found: dict[tuple[str, ...], tuple[float, LinearSolver]] = {}

    def try_all(patterns):
        for asks in patterns:
            if asks not in found and (not found or affords(calls * (len(rolled) + len(judged)))):
                start = apart(classical(grid(len(asks)), data.path), cfg, asks)
                solver = rolled_out(data, start, rolled, model(rolled))
                off = solve_apart(solver, model(judged), data.states[judged, 0]) - data.states[judged, -1]
                error = float(off.flatten(1).square().mean(1).sqrt().mean())
                found[asks] = (error, solver)
        return min(found, key=lambda asks: found[asks][0])

    best = try_all(first(calls))
    for _ in range(ROUNDS):
        better = try_all(near(best))
        if better == best:
            break
        best = better
    return [solver for _, solver in sorted(found.values(), key=lambda pair: pair[0])[:most]]
