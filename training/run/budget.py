"""What a fit on a budget of model calls starts from, where a guided step takes two of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...diffusion.faults import BadValue
from ...diffusion.solvers.fit import PART
from ...diffusion.solvers.linear import LinearSolver, apart, lengthened
from ...diffusion.solvers.patterns import SAMPLES, first, nearer_part, searched
from ..models.denoiser import Teacher

SEARCHED = 1 / 3  # share of a fit's evaluations that the search for a pattern may take
FEWEST = 4  # trajectories that a pattern is tried on, at least


def has_parts(teacher: Teacher) -> bool:
    """Whether the teacher's guidance has parts that can be asked for apart."""
    return getattr(teacher, "apart", None) is not None and teacher.cfg != 1


def in_parts(calls: Sequence[int], teacher: Teacher) -> bool:
    """Whether a fit on these budgets, () for none, asks for the parts of guidance.

    Raises ValueError for a budget that no guided step fits into, and for a teacher whose guidance, which
    takes two calls, can't be asked for its parts.
    """
    if not calls or teacher.cfg == 1:
        return False
    if not has_parts(teacher):
        raise BadValue(
            "calls must be left out for a teacher with guidance (CFG {cfg:g}) that can't be asked for its "
            "parts apart, got {got}. Give steps.",
            cfg=teacher.cfg,
            got=list(calls),
        )
    if calls[0] < 2:
        raise BadValue(
            "calls must be 2 or more with guidance, which takes two for a step, got {got}.", got=calls[0]
        )
    return True


def starts(
    run: Any,
    calls: int,
    shorter: Sequence[LinearSolver],
    grid: Callable[[int], torch.Tensor],
    evaluations: float,
    over: Callable[[], bool],
) -> tuple[list[LinearSolver], float]:
    """(solvers of so many calls that weigh the parts of guidance apart, evaluations that the search took).

    run: a `fitting.SolverFit` that has its trajectories; shorter: solvers of fewer calls, lengthened;
    grid(steps): the automatic one; evaluations: of the whole fit, a part of which is the search's; over:
    whether the time is up
    """
    asked, limit = 0.0, SEARCHED * evaluations

    def model(which):
        def ask(x, sigma, kinds):
            nonlocal asked
            asked += PART * len(x) * len(kinds)
            return run.data.ask(x, sigma, which, kinds)

        return ask

    def affords(more):
        return asked + PART * more <= limit and not over()

    cfg = run.teacher.cfg
    each = 2 * PART * calls * len(first(calls, cfg))  # of the patterns that are tried first, for a sample
    samples = SAMPLES if math.isinf(limit) else max(FEWEST, min(SAMPLES, int(limit / each)))
    found = searched(run.data, calls, grid, cfg, model, affords, samples)
    return [*found, *(_grown(run, solver, calls) for solver in shorter)], asked


def _grown(run: Any, solver: LinearSolver, calls: int) -> LinearSolver:
    """The solver in parts, with steps more that ask for the part that guidance is nearer to."""
    if not solver.asks:
        solver = apart(solver, run.teacher.cfg)
    while solver.calls(run.teacher.cfg) < calls:
        solver = lengthened(solver, run.teacher.path, nearer_part(run.teacher.cfg))
    return solver
