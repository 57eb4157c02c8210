"""What a fit on a budget of model calls starts from, where a guided step takes two of them."""

import functools
from typing import Any

from ...diffusion.solvers.fit import PART
from ...diffusion.solvers.linear import CONDITIONAL, LinearSolver, lengthened
from ...diffusion.solvers.patterns import searched
from ..models.denoiser import Teacher


def has_parts(teacher: Teacher) -> bool:
    """Whether the teacher's guidance has parts that can be asked for apart."""
    return getattr(teacher, "apart", None) is not None and teacher.cfg != 1


def patterns(run: Any, calls: int) -> tuple[list[LinearSolver], float]:
    """(solvers of so many calls that weigh the parts of guidance apart, evaluations that the search took).

    run: a `fitting.SolverFit` that has its trajectories
    """
    asked = 0.0

    def model(which):
        def ask(x, sigma, kinds):
            nonlocal asked
            asked += PART * len(x) * len(kinds)
            return run.data.ask(x, sigma, which, kinds)

        return ask

    found = searched(run.data, calls, functools.partial(run.grid, "auto"), run.teacher.cfg, model)
    return found, asked


def grown(run: Any, solver: LinearSolver, calls: int) -> LinearSolver:
    """The solver of fewer calls, lengthened by steps that ask for the conditional prediction."""
    while solver.calls(run.teacher.cfg) < calls:
        solver = lengthened(solver, run.teacher.path, CONDITIONAL)
    return solver
