"""Multistep extrapolation: what stands for the predicted x_0 over a step, from this prediction and others.

On every path  x_s / sigma_s = x_t / sigma_t + integral from u_t to u_s of x0(u) e^u du,  u = -log tau
(`paths.Path.tau`), the exponential integrator of Lu et al. 2022 (arXiv:2206.00927, eq. 3.4) in log sigma.
Log-SNR would do as well in theory, but its first interval is infinite on a path that starts at pure noise.
A step replaces x0(u) by a constant target:

order 1     the prediction itself
order 2     the line through the last two, at the middle of the step (DPM-Solver++ 2M, Lu et al. 2022,
            arXiv:2211.01095)
order 3     the parabola through the last three, at its e^u-weighted mean: exact to third order
between     the mean of the two: order 1.25 goes a quarter of the way from order 1 to order 2
heun        the line through this prediction and one made at the step's end, so that the step is Heun's in the
            path's own sigma (in tau where variance is preserved), algorithm 2 of Karras et al. 2022
            (arXiv:2206.00364)
corrector   once the prediction at a step's end is known, the step's target could have used it: the line
            (order 3: the parabola) through it and the earlier ones. The difference is made good in the next
            step, at no model call (UniC, Zhao et al. 2023, arXiv:2302.04867)
"""

import math
from collections.abc import Sequence
from itertools import zip_longest

HIGHEST = 3  # order
FARTHEST = 3.0  # times the last step's length in u: no prediction is extrapolated further than that


def target_weights(order: float, u_next: float, u: Sequence[float]) -> list[float]:
    """Weights of the predictions made at u (this one first, as many as the order can use), which sum to 1.

    order: from 1 to `HIGHEST`; u_next > u[0]. A step into data (u_next infinite) takes the last prediction
    alone. Where the step is more than `FARTHEST` times as long as the one before, the prediction before is
    left out: extrapolation would multiply its error.
    """
    lower = math.floor(order)
    weights = _target(lower, u_next, u)
    return weights if order == lower else _between(order - lower, weights, _target(lower + 1, u_next, u))


def _target(order, u_next, u):
    """`target_weights` of a whole order."""
    if math.isinf(u_next):
        return [1.0]
    h = u_next - u[0]
    used = _usable([h, *(a - b for a, b in zip(u, u[1:]))], order)
    if used == 1:
        return [1.0]
    if used == 2:
        r = h / (u[0] - u[1]) / 2
        return [1 + r, -r]
    return _mean_weights(h, [v - u[0] for v in u[:used]])


def correction_weights(order: float, u: Sequence[float]) -> list[float]:
    """How much more the step u[1] to u[0] should have weighted each prediction, the one at its end first.

    The predictions were made at u. The weights sum to 0; [] where there is nothing to correct. u must hold
    one level more than the order, rounded up, for the step's own weights.
    """
    lower = math.floor(order)
    weights = _correction(lower, u)
    return weights if order == lower else _between(order - lower, weights, _correction(lower + 1, u))


def _correction(order, u):
    """`correction_weights` of a whole order."""
    if len(u) < 2 or u[0] <= u[1]:
        return []
    steps = [a - b for a, b in zip(u, u[1:])]
    used = 1 + _usable(steps, 2 if order == 3 else 1)
    done = _target(order, u[0], u[1:])
    wanted = _mean_weights(u[0] - u[1], [v - u[1] for v in u[:used]])
    return [w - d for w, d in zip_longest(wanted, [0.0, *done], fillvalue=0.0)]


def _between(share, first, second):
    """Weights that share of the way from the first to the second."""
    return [a + share * (b - a) for a, b in zip_longest(first, second, fillvalue=0.0)]


def heun_weights(u_next: float, u: float) -> list[float]:
    """Weights of the predictions at u and at the step's end u_next (finite).

    w + (tau' - tau)(d + d')/2 with d = (w - x0)/tau is the first-order step to the target
    x0 + tau/(2 tau') (x0' - x0).
    """
    r = math.exp(u_next - u) / 2
    return [1 - r, r]


def _usable(steps, most):
    """How many predictions can be used together; `steps`: lengths of the coming step, the one before, ..."""
    for i in range(1, min(most, len(steps))):
        if steps[i] <= 0 or max(steps[:i]) > FARTHEST * steps[i]:
            return i
    return min(most, len(steps))


def _mean_weights(h, places):
    """Weights of values at two or three `places` in the mean of the polynomial through them.

    The mean is over (0, h), weighted by e^u.
    """
    m1, m2 = _moments(h)
    if len(places) == 2:
        p, q = places
        return [(m1 - q) / (p - q), (m1 - p) / (q - p)]
    p, q, r = places
    turns = ((p, q, r), (q, r, p), (r, p, q))
    return [(m2 - m1 * (y + z) + y * z) / ((x - y) * (x - z)) for x, y, z in turns]


def _moments(h):
    """Means of u and u^2 over (0, h) weighted by e^u."""
    if h < 0.02:  # series, where the closed form cancels
        return h / 2 + h * h / 12, h * h / 3 + h**3 / 12
    grown = math.exp(h) / math.expm1(h)
    m1 = h * grown - 1
    return m1, h * h * grown - 2 * m1
