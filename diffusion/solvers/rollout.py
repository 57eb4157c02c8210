"""A solver's weights by least squares on its own roll-out, with no derivative of the model.

Each step's weights go to where they bring the run back onto the trajectory, from where the run itself has
come (Kim et al. 2025, S4S, arXiv:2502.17423).
"""

import dataclasses

import torch

from .linear import Ask, LinearSolver
from .refine import NormalEquations
from .trajectories import Trajectories, at_levels

RIDGE = 1e-3  # of the least squares, in units of each term's own size


def rolled_out(
    data: Trajectories, solver: LinearSolver, which: torch.Tensor, ask: Ask
) -> LinearSolver | None:
    """The solver whose every step goes by least squares to the state at the next level of the trajectories
    `which`, which ask answers for. Those whose run is not finite are left out; None where all are.
    """
    targets = at_levels(data, solver.sigmas, which)
    x = data.states[which, 0]
    held, rows = [], []
    for i, (row, asked) in enumerate(zip(solver.rows, solver.asked)):
        held = [*(ask(x, solver.sigmas[i], asked) if asked else ()), *held]
        terms = torch.stack([x, *held]).flatten(2)
        prior = torch.zeros(len(terms), dtype=torch.float64)
        prior[: len(row)] = torch.tensor(row, dtype=torch.float64)
        missing = targets[i].flatten(1) - _combined(prior, terms)
        finite = missing.isfinite().all(1) & terms.isfinite().all(2).all(0)
        if not finite.any():
            return None
        fitted = prior + NormalEquations.of(terms[:, finite], missing[finite]).solution(RIDGE)
        rows.append(fitted.tolist())
        x = _combined(fitted, terms).reshape(x.shape)
    return dataclasses.replace(solver, rows=tuple(rows))


def _combined(row, terms):
    """The sum of terms (K, N, D) with the weights of a row (K,)."""
    return torch.einsum("k,knd->nd", row.to(terms), terms)
