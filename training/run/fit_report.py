"""What a fit tells of its solvers: rows of figures, and a table in words.

Distances are RMS from the converged picture, in units of the pictures' deviation, on held-out noise.
"""

from collections.abc import Sequence
from typing import Any

from ...diffusion.solvers.accuracy import accuracy, times_nearer
from ...diffusion.solvers.fit import Fitted

STARTS = "Each solver starts from a noised picture at sigma {start:.6g}, where a stage before it has to end."


def gained(fitted: Fitted) -> bool:
    """Whether what is handed on is nearer than the automatic solver: in the typical picture beyond chance,
    and no farther in the mean.
    """
    _, least, _ = times_nearer(fitted.own, fitted.base)
    return least > 1 and float(fitted.own.mean()) <= float(fitted.base.mean())


def row(count: int, fitted: Fitted, between: float, cfg: float | None) -> dict[str, Any]:
    """The figures of one step count, or budget of calls; `between` is the typical distance of two pictures.
    cfg: None where nobody knows how many calls a step takes.

    steps, calls, asks   of what is handed on; a guided step is two calls
    auto_calls  of the automatic solver: one fewer than an odd budget
    fitted      mean distance of what is handed on; on new noise it lies from `low` to `high`, at 95 %
    median      of these distances; elsewhere: the share that ends at another picture
    auto        mean distance of the automatic solver; same: whether that is handed on
    fewer       whether the solver that was found for fewer is handed on
    nearer      how many times nearer the typical picture is than by auto, [middle, low, high]
    """
    told = accuracy(fitted.own, between, fitted.chosen)
    return {
        "count": count,
        "steps": fitted.solver.steps,
        "calls": None if cfg is None else fitted.solver.calls(cfg),
        "auto_calls": None if cfg is None else fitted.auto.calls(cfg),
        "asks": list(fitted.solver.asks),
        "fitted": told.mean,
        "low": told.low,
        "high": told.high,
        "median": told.median,
        "elsewhere": told.elsewhere,
        "auto": float(fitted.base.mean()),
        "same": fitted.solver == fitted.auto,
        "fewer": fitted.stage == "shorter",
        "nearer": list(times_nearer(fitted.own, fitted.base)),
        "gained": gained(fitted),
        "evaluations": fitted.evaluations,
    }


def table(
    rows: Sequence[dict[str, Any]],
    trajectories: int,
    steps: int,
    held: int,
    size: int,
    start: float | None = None,
) -> str:
    """The rows in words: of so many trajectories of so many steps, `held` of them held out, `size` bytes.

    start: the sigma at which solvers for a noised picture begin
    """
    lines = [
        f"{trajectories} trajectories of {steps} steps, {held} of them held out; {size / 2**20:.1f} MiB. "
        "Errors: RMS distance from the converged picture, share of the pictures' spread; in brackets where "
        "the mean on new noise lies, at 95 %.",
        *([] if start is None else [STARTS.format(start=start)]),
        f"{'steps':>5} {'calls':>5} {'fitted':>8} {'':18} {'median':>8} {'elsewhere':>10} {'auto':>8} "
        f"{'calls':>5}  nearer",
    ]
    for row in rows:
        middle, low, high = row["nearer"]
        word = f"{middle:.2f} times ({low:.2f} to {high:.2f})"
        if row["cut_short"]:
            word = "time was up before anything was tried" + (": auto is returned" if row["same"] else "")
        elif row["same"]:
            word = "no gain: auto is returned"
        elif not row["gained"]:
            word = f"no gain beyond chance: {word}"
        if row["fewer"] and not row["same"]:
            word += f"; more bring nothing, for {row['count']} the solver of fewer is returned"
        span = f"({row['low']:.4f} to {row['high']:.4f})"
        calls, auto_calls = ("–" if n is None else n for n in (row["calls"], row["auto_calls"]))
        lines.append(
            f"{row['steps']:5} {calls:>5} {row['fitted']:8.4f} {span:18} {row['median']:8.4f} "
            f"{row['elsewhere']:10.0%} {row['auto']:8.4f} {auto_calls:>5}  {word}"
        )
    return "\n".join(lines)
