"""The automatic choice: schedule, order and churn for a path and a number of steps, with no model call.

Found by measurement on exact denoisers and frozen here; `benchmarks/solvers.py` holds it against every pair of ComfyUI's own.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A step grid by name, with its shift and options (`grids.grid`)."""

    name: str
    shift: float = 1.0
    options: dict = dataclasses.field(default_factory=dict)


def schedule(path, steps):
    """The grid for that many steps on this path."""
    return Schedule(name="uniform", shift=3.0 if steps <= 8 else 1.0)


def order(path, steps):
    """The order of the kernel for that many steps on this path."""
    return 2


def choose(path, steps, stochastic=False):
    """(grid name, options of `samplers.sample`) for that many steps on this path; stochastic: with fresh noise."""
    return "auto", {"order": 2, "churn": 0.25 if stochastic else 0.0}
