"""Which predictions to ask for at which step, for a number of model calls: guidance in parts.

A guided step is two calls, conditional and unconditional. Guidance changes slowly along a trajectory, so that
later steps can go on with what the earlier ones found, and the calls saved are steps more (adaptive guidance,
Castillo et al. 2023, arXiv:2312.12487). Which steps those are is searched. Each pattern is taken on the
automatic grid by the solver of second order with corrector, whatever the automatic order is at this guidance,
and gets its weights from a roll-out (`rollout.py`). Tried are, as far as the calls are afforded: those that
ask for both parts in the first k steps and then for the part that guidance is nearer to; from the best of
these in turns those with an asking for both moved by a step; then, once, those with a step that asks for the
other part alone, or for neither.
"""

import math
from collections.abc import Callable, Iterator

import torch

from .linear import CONDITIONAL, UNCONDITIONAL, Ask, LinearSolver, apart, classical, solve_apart
from .rollout import rolled_out
from .trajectories import Trajectories

BOTH = CONDITIONAL + UNCONDITIONAL
SAMPLES = 16  # trajectories that a pattern is rolled out on, and as many that it is judged by, at most
ROUNDS = 3  # of moves from the best pattern


def nearer_part(cfg: float) -> str:
    """The part that the guided prediction g is nearer to: g - c = (cfg - 1) (c - u), g - u = cfg (c - u)."""
    return CONDITIONAL if cfg >= 1 / 2 else UNCONDITIONAL


def first(calls: int, cfg: float) -> list[tuple[str, ...]]:
    """The patterns of so many calls that ask for both parts in the first k steps, for every k, and then for
    the nearer part; k = 0 only at CFG 0, where that is the whole.
    """
    one = nearer_part(cfg)
    return [(BOTH,) * k + (one,) * (calls - 2 * k) for k in range(int(cfg != 0), calls // 2 + 1)]


def near(asks: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Those in which two neighbouring steps, one that asks for both parts and one for one, have changed
    places; the first step keeps its own.
    """
    for i in range(1, len(asks)):
        for j in (i - 1, i + 1):
            if asks[i] == BOTH and 0 < j < len(asks) and len(asks[j]) == 1:
                moved = list(asks)
                moved[i], moved[j] = moved[j], BOTH
                yield tuple(moved)


def unlike(asks: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Those in which a step that asks for one part asks for the other, or for neither while one of its
    neighbours asks for both in its place. A step that asks for neither makes the one before it longer.
    """
    for i in range(1, len(asks)):
        if len(asks[i]) != 1:
            continue
        yield (*asks[:i], BOTH.replace(asks[i], ""), *asks[i + 1 :])
        for j in (i - 1, i + 1):
            if j < len(asks) and len(asks[j]) == 1:
                moved = list(asks)
                moved[i], moved[j] = "", BOTH
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
    """The best `most` patterns of so many calls as solvers to start a fit from, best first; none whose
    roll-outs are all not finite.

    grid(steps) is the automatic grid, model(which) asks for those of the trajectories, which must have
    `apart`; affords(calls) -> whether that many calls more may be made, samples: as of SAMPLES.
    """
    train, _ = data.split()
    rolled, judged = train[::2][:samples], train[1::2][:samples]
    found: dict[tuple[str, ...], tuple[float, LinearSolver | None]] = {}

    def try_all(patterns):
        for asks in patterns:
            if asks not in found and (not found or affords(calls * (len(rolled) + len(judged)))):
                start = apart(classical(grid(len(asks)), data.path), cfg, asks)
                solver = rolled_out(data, start, rolled, model(rolled))
                found[asks] = (error(solver) if solver else math.inf, solver)
        return min(found, key=lambda asks: found[asks][0])

    def error(solver):
        off = solve_apart(solver, model(judged), data.states[judged, 0]) - data.states[judged, -1]
        return float(off.flatten(1).square().mean(1).sqrt().nan_to_num(math.inf).mean())

    best = try_all(first(calls, cfg))
    for _ in range(ROUNDS):
        better = try_all(near(best))
        if better == best:
            break
        best = better
    try_all(unlike(best))
    found = {asks: pair for asks, pair in found.items() if pair[1]}
    return [solver for _, solver in sorted(found.values(), key=lambda pair: pair[0])[:most]]
