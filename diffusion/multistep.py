"""Multistep extrapolation: what stands in for the predicted x_0 over a whole step, from this prediction and earlier ones.

On every path  x_s / sigma_s = x_t / sigma_t + integral from u_t to u_s of x0(u) e^u du,  u = -log tau  (`paths.Path.tau`),
the exponential integrator of Lu et al. 2022 (arXiv:2206.00927, eq. 3.4) in log sigma. Log-SNR would do as well in theory, but
its first interval is infinite on a path that starts at pure noise. A step replaces x0(u) by a constant target:

order 1   the prediction itself
order 2   the line through the last two, at the middle of the step (DPM-Solver++ 2M, Lu et al. 2022, arXiv:2211.01095)
order 3   the parabola through the last three, at its e^u-weighted mean: exact to third order
heun      the line through this prediction and one made at the step's end, so that the step is Heun's in the path's own sigma
          (in tau where variance is preserved), algorithm 2 of Karras et al. 2022 (arXiv:2206.00364)
"""

import math

ORDERS = (1, 2, 3)


def target_weights(order, u_next, u):
    """Weights of the predictions made at u (this one first, at most `order` of them), which sum to 1; a list of floats.

    u descends into the past, u_next > u[0]. A step into data (u_next infinite) takes the last prediction alone.
    """
    used = min(order, len(u))
    if used == 1 or math.isinf(u_next):
        return [1.0]
    h = u_next - u[0]
    if used == 2:
        r = h / (u[0] - u[1]) / 2
        return [1 + r, -r]
    return _parabola(h, u[0] - u[1], u[0] - u[2])


def heun_weights(u_next, u):
    """Weights of the predictions at u and at the step's end u_next (finite).

    w + (tau' - tau)(d + d')/2 with d = (w - x0)/tau is the first-order step to the target x0 + tau/(2 tau') (x0' - x0).
    """
    r = math.exp(u_next - u) / 2
    return [1 - r, r]


def _parabola(h, back, further):
    """Weights of the parabola through p_0 at 0, p_1 at -back, p_2 at -further, in the mean over (0, h) weighted by e^u."""
    m1, m2 = _moments(h)
    p1 = (m2 + m1 * further) / (back * (back - further))
    p2 = (m2 + m1 * back) / (further * (further - back))
    return [1 - p1 - p2, p1, p2]


def _moments(h):
    """Means of u and u^2 over (0, h) weighted by e^u."""
    if h < 0.02:        # series, where the closed form cancels
        return h / 2 + h * h / 12, h * h / 3 + h**3 / 12
    grown = math.exp(h) / math.expm1(h)
    m1 = h * grown - 1
    return m1, h * h * grown - 2 * m1
