"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2), its phased form, and its limits.

A consistency function maps every point of one ODE trajectory to the same end. From x_t the teacher's solver leads to x_s,
and with e <= s < t the end of the phase:

    f(x, t -> e) = (one DDIM step from t to e with the x0 that the network predicts)
    loss         = d( f_student(x_t, t -> e),  f_target(x_s, s -> e) ),      the target without gradient

One phase ends at e = 0, where f is the predicted x0 itself; with s = e the target is x_s, the boundary condition. Several
phases are PCM (Wang et al. 2024, arXiv:2405.18407, eq. 8). The target network is the student itself (stop-gradient; Song &
Dhariwal 2023, arXiv:2310.14189, sec. 3.2) or its EMA. Neighbouring t and s give consistency distillation; s = e far away
gives the distillation of whole trajectory pieces (Luhman & Luhman 2021, arXiv:2101.02388, for t = 1, e = 0).
"""

import torch

from ...diffusion.predictions import expand, from_x0
from ...diffusion.step import step, weights


def pseudo_huber(a, b, scale=1e-3):
    """sqrt(|a - b|^2 + c^2) - c with c = scale sqrt(D), divided by sqrt(D); per sample, shape (B,).

    Improved consistency training (arXiv:2310.14189, eq. 8): the distance for far pairs, its square for near ones.
    """
    return (squared_error(a, b) + scale**2).sqrt() - scale


def squared_error(a, b):
    """Mean squared difference per sample, shape (B,)."""
    return (a - b).flatten(1).square().mean(1)


METRICS = {"pseudo-huber": pseudo_huber, "l2": squared_error}


def solver_step(teacher, x, path, sigma_t, sigma_s, solver="heun"):
    """One deterministic step of the teacher's ODE from sigma_t to sigma_s, both (B,); Euler (= DDIM) or Heun.

    teacher: (x, sigma, rows) -> x0 as in `consistency`.
    Heun works in the coordinates of the flow path, where both ends are finite: any path becomes it by
    w = x/(alpha + sigma), tau = sigma/(alpha + sigma), and dw/dtau = eps - x0. At sigma_s = 0 it is Euler's step.
    """
    x0 = teacher(x, sigma_t, None)
    end = step(x, x0, path, sigma_t, sigma_s)
    inner = sigma_s > 0
    if solver == "euler" or not inner.any():
        return end
    x, x0, x_s, t, s = x[inner], x0[inner], end[inner], sigma_t[inner], sigma_s[inner]
    alpha_t, alpha_s = path.alpha(t), path.alpha(s)
    slopes = [from_x0(x0, "velocity", x, expand(alpha_t, x), expand(t, x)),
              from_x0(teacher(x_s, s, inner), "velocity", x_s, expand(alpha_s, x), expand(s, x))]
    scale_t, scale_s = alpha_t + t, alpha_s + s
    w = x / expand(scale_t, x) + expand(s / scale_s - t / scale_t, x) * (slopes[0] + slopes[1]) / 2
    end = end.clone()
    end[inner] = w * expand(scale_s, x)
    return end


def consistency(student, target, path, x_t, x_s, sigma_t, sigma_s, sigma_e, *, metric=squared_error):
    """The loss () of one batch, in units of x0.

    student, target: (x, sigma, rows) -> x0, where rows is a mask of the samples of the batch that x holds, or None for all
    of them (they need it to find their conditioning). x_t, x_s (B, ...): two points of one teacher trajectory, see
    `solver_step`; sigma_t > sigma_s >= sigma_e (B,). The DDIM step is linear in x0, so its factor is divided out: the
    loss compares the student's x0 with the x0 that would lead from x_t to the target's end.
    """
    end = x_s
    inner = sigma_s > sigma_e
    if inner.any():
        with torch.no_grad():
            x0_s = target(x_s[inner], sigma_s[inner], inner)
            end = x_s.clone()
            end[inner] = step(x_s[inner], x0_s, path, sigma_s[inner], sigma_e[inner])
    a, b, _ = weights(path, sigma_t, sigma_e)       # end = a x_t + b x0
    wanted = (end - expand(a, x_t) * x_t) / expand(b, x_t)
    return metric(student(x_t, sigma_t, None), wanted).mean()
