"""Solvers written out: a run without noise, linear in its predictions, is one row of weights for each step.

    x_{i+1} = r_0 x_i + r_1 x0_i + r_2 x0_{i-1} + ... + r_{i+1} x0_0        row i

with x0_i the prediction made of x_i at sigma_i. Classical solvers are such rows, worked out from the step
grid; fitted ones (`fit.py`) have rows of their own.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from ..faults import BadValue
from ..frozen import normalise
from ..paths import Path, check_sigmas
from ..samplers import Denoiser, State, combine, rows
from ..step import weights


@dataclasses.dataclass(frozen=True)
class LinearSolver:
    """Where the model is called and what is made of its answers.

    sigmas  (steps + 1) noise levels, descending; the model is called at sigmas[i] in step i, the last is 0
    rows    `steps` rows of weights: of the state, of this prediction, of the one before, and so on; at most
            all there are
    Raises ValueError for sigmas that are no such grid, and for rows that do not fit them or are not finite.
    """

    sigmas: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self):
        grid = check_sigmas(self.sigmas)
        if grid[-1] != 0:
            raise BadValue("sigmas must end at 0, got {got:g}.", got=grid[-1])
        given = tuple(tuple(float(w) for w in row) for row in self.rows)
        normalise(self, sigmas=tuple(grid.tolist()), rows=given)
        if len(self.rows) != self.steps:
            raise BadValue(
                "coefficients must have a row for each of {steps} steps, got {got}.",
                steps=self.steps,
                got=len(self.rows),
            )
        for i, row in enumerate(self.rows):
            if not 2 <= len(row) <= i + 2:
                raise BadValue(
                    "coefficients of step {step} must be 2 to {most} numbers (state, this prediction, "
                    "earlier ones), got {got}.",
                    step=i + 1,
                    most=i + 2,
                    got=len(row),
                )
            if not all(map(math.isfinite, row)):
                raise BadValue(
                    "coefficients must be finite; those of step {step} are {row}.",
                    step=i + 1,
                    row=[f"{w:g}" for w in row],
                )

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.sigmas) - 1


def classical(
    sigmas: torch.Tensor | Sequence[float], path: Path, order: int = 2, corrector: bool = True
) -> LinearSolver:
    """The kernel's solver of that order along `sigmas` as a `LinearSolver`.

    The same run up to rounding, without churn.
    """
    return LinearSolver(tuple(torch.as_tensor(sigmas).tolist()), tuple(rows(sigmas, path, order, corrector)))


def lengthened(solver: LinearSolver, path: Path) -> LinearSolver:
    """The solver with one step more and the same results: its longest step, in flow time, is taken in two.

    On the way lies the first-order step's state x' = a x + b x0, from which the old step goes on:
    x = (x' - b x0) / a. The new prediction has no weight yet.
    """
    times = path.flow_time(torch.tensor(solver.sigmas, dtype=torch.float64))
    at = int((times[:-1] - times[1:]).argmax())
    middle = float(path.at_flow_time(times[at : at + 2].mean()))
    a, b, _ = (float(v) for v in weights(path, solver.sigmas[at], middle))
    state, prediction, *earlier = solver.rows[at]
    halves = [(a, b), (state / a, 0.0, prediction - state * b / a, *earlier)]
    later = []
    for since, row in enumerate(solver.rows[at + 1 :], 1):
        place = since + 1  # of the new prediction in a row that reaches back to it
        later.append((*row[:place], 0.0, *row[place:]) if len(row) > place else row)
    return LinearSolver(
        (*solver.sigmas[: at + 1], middle, *solver.sigmas[at + 1 :]), (*solver.rows[:at], *halves, *later)
    )


def run(solver: LinearSolver, denoiser: Denoiser, x: torch.Tensor) -> Iterator[State]:
    """Yield a `State` a step, from x (B, ...) at sigmas[0] to 0; denoiser(x, sigma) -> x0, sigma a float."""
    held = []
    for i, row in enumerate(solver.rows):
        x0 = denoiser(x, solver.sigmas[i])
        held = [x0, *held]
        x = stepped(row, x, held)
        yield State(i, solver.sigmas[i], solver.sigmas[i + 1], x0, x)


def stepped(row: Sequence[float], x: torch.Tensor, held: Sequence[torch.Tensor]) -> torch.Tensor:
    """The state after the step of that row; `held` has the predictions so far, the last one first."""
    state, *predictions = row
    return combine(x, state, list(zip(predictions, held)), 0.0, None)


def solve(solver: LinearSolver, denoiser: Denoiser, x: torch.Tensor) -> torch.Tensor:
    """The image at the end of `run`."""
    for state in run(solver, denoiser, x):
        x = state.x
    return x
