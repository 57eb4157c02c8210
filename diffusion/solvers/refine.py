"""Derivatives of a run in its solver's weights and levels, as differences of runs, and the steps that are
taken by them.
"""

import torch

from .linear import LinearSolver, stepped

LEVEL_STEP = 0.05  # least change of lambda that is tried: discrete models know no finer noise levels
FARTHEST = 0.4  # share of the gap to a neighbour by which a level may move at once


def differences(solver, path, denoiser, x, trace, step):
    """(columns, names): the change of the run's end with each parameter (P, B, ...), and what each is.

    A name is (step, place) for a weight and (step, None) for the lambda of that step's level. `trace` is the
    run from x, its states as `linear.run` yields them; `step` is the size of the perturbation, as a share of
    the state that it is added to.
    """
    states, made = [x, *(state.x for state in trace)], [state.x0 for state in trace]
    columns, names = [], []
    for i, sigma in enumerate(solver.sigmas[:-1]):
        held = made[i::-1]
        changes = [(term, None) for term in (states[i], *held)]
        label = [(i, place) for place in range(len(changes))]
        if i:
            shift = max(step, LEVEL_STEP)  # towards the picture, where there always is room
            slope = (denoiser(states[i], _shifted(path, sigma, shift)) - made[i]) / shift
            changes.append((solver.rows[i][1] * slope, slope))
            label.append((i, None))
        columns += _carried(solver, denoiser, i, states[i + 1], held, changes, step, states[-1])
        names += label
    return torch.stack(columns), names


def _carried(solver, denoiser, i, x, held, changes, step, end):
    """What becomes of changes to the state after step i (and to its prediction), at the end of the run; all
    in one batch.
    """
    if i == solver.steps - 1:
        return [change for change, _ in changes]
    size = [
        step * float(x.float().square().mean().sqrt() / c.float().square().mean().sqrt().clamp_min(1e-20))
        for c, _ in changes
    ]
    many = torch.cat([x + h * c for h, (c, _) in zip(size, changes)])
    past = [p.repeat(len(changes), *[1] * (p.ndim - 1)) for p in held]
    past[0] = torch.cat([held[0] if p is None else held[0] + h * p for h, (_, p) in zip(size, changes)])
    for sigma, row in list(zip(solver.sigmas, solver.rows))[i + 1 :]:
        past.insert(0, denoiser(many, sigma))
        many = stepped(row, many, past)
    return [(part - end) / h for part, h in zip(many.split(len(x)), size)]


def _shifted(path, sigma, change):
    """The level whose lambda is that of `sigma` plus `change`."""
    return float(path.sigma(path.log_snr(torch.tensor(sigma, dtype=torch.float64)) + change))


def parameters(solver, names, path):
    """The values of the parameters of those names, float64 (P,)."""
    level = path.log_snr(torch.tensor(solver.sigmas, dtype=torch.float64)).tolist()
    return torch.tensor(
        [level[i] if place is None else (solver.rows[i] + (0.0,) * i)[place] for i, place in names],
        dtype=torch.float64,
    )


def moved(solver, names, change, path):
    """The solver with its parameters changed, or None where its levels would no longer descend.

    A level moves by at most a share of the way to its neighbours; rows are given all the places that they can
    have.
    """
    rows = [[*row, *[0.0] * (i + 2 - len(row))] for i, row in enumerate(solver.rows)]
    sigmas = list(solver.sigmas)
    for (i, place), value in zip(names, change.tolist()):
        if place is None:
            sigmas[i] = _bounded(path, solver.sigmas, i, value)
        else:
            rows[i][place] += value
    if any(b >= a * (1 - 1e-4) for a, b in zip(sigmas, sigmas[1:])):
        return None
    try:
        return LinearSolver(tuple(sigmas), tuple(rows))
    except ValueError:  # not finite
        return None


def _bounded(path, sigmas, i, change):
    wanted = _shifted(path, sigmas[i], change)
    low = sigmas[i] + FARTHEST * (sigmas[i + 1] - sigmas[i])
    return min(max(wanted, low), sigmas[i] + FARTHEST * (sigmas[i - 1] - sigmas[i]))


def solve_damped(gram, slope, damping):
    """The least-squares step for normal equations in unit-size terms; damping adds to their diagonal."""
    return torch.linalg.solve(gram + damping * torch.eye(len(slope), dtype=gram.dtype), slope)
