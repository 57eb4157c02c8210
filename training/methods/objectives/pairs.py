"""Learning again from the (noise, image) pairs that a deterministic solver made: reflow and rectified
diffusion.

With x_t = alpha x_0 + sigma eps between a pair's own ends, both regress what the network predicts there:

    loss = d( prediction of kind k at x_t, its true value )

reflow               k = velocity, t uniform in flow time (Liu et al. 2022, arXiv:2209.03003, eq. 1;
                     InstaFlow, arXiv:2309.06380)
rectified diffusion  k = the model's own kind, t uniform in its own time (Wang et al. 2024, arXiv:2410.07303,
                     algorithm 1)

Any path's point is the straight line's by a scale, w = x/(alpha + sigma) at tau = sigma/(alpha + sigma), so
that the two differ in weight and in where they look, not in what they learn: u^ - u = (x^_0 - x_0)/-tau, eps^
- eps = (x^_0 - x_0)(-alpha/sigma).

Windowed reflow (PeRFlow, Yan et al. 2024, arXiv:2405.07510, algorithm 1) straightens a trajectory piece by
piece: between its points at the window's ends w is interpolated, and the velocity is the chord's.
"""

from ....diffusion.predictions import expand, from_x0
from ..distances import squared_error
from .consistency import noised


def pairs(student, path, x0, noise, sigma, kind, *, metric=squared_error):
    """The loss of each sample (B,), in units of predictions of that kind; x0, noise (B, ...), sigma (B,)
    above 0.

    Kinds are those of the variance-preserving scale, alpha^2 + sigma^2 = 1, in which v networks are trained;
    only v depends on it.
    """
    x = noised(x0, noise, path, sigma)
    alpha, level = expand(path.alpha(sigma), x), expand(sigma, x)
    scale = alpha.hypot(level)
    predicted, true = (
        from_x0(v, kind, x / scale, alpha / scale, level / scale) for v in (student(x, sigma, None), x0)
    )
    return metric(predicted, true)


def windows(student, path, x_a, x_b, sigma_a, sigma_b, share, *, metric=squared_error):
    """The loss of each sample (B,), in units of velocities.

    x_a, x_b (B, ...): the trajectory at the window's ends sigma_a > sigma_b (B,); share (B,) in [0, 1): the
    way from a to b.
    """
    tau_a, tau_b = path.flow_time(sigma_a.double()), path.flow_time(sigma_b.double())
    w_a, w_b = (x / expand(path.alpha(s) + s, x) for x, s in ((x_a, sigma_a), (x_b, sigma_b)))
    velocity = (w_a - w_b) / expand(tau_a - tau_b, w_a)
    tau = tau_a.lerp(tau_b, share.double())
    w, sigma = w_a + expand(share, w_a) * (w_b - w_a), path.at_flow_time(tau).to(sigma_a)
    x = w * expand(path.alpha(sigma) + sigma, w)
    return metric((w - student(x, sigma, None)) / expand(tau, w), velocity)
