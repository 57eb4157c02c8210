"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2) and its phased form.

A consistency function maps every point of one ODE trajectory to the same end. With x_t = alpha_t x_0 + sigma_t eps, one
teacher solver step to x_s, and the phase's end e <= s < t:

    f(x, t -> e) = (one DDIM step from t to e with the x0 that the student predicts)
    loss         = d( f_student(x_t, t -> e),  f_target(x_s, s -> e) ),      the target without gradient

One phase ends at e = 0, where f is the student's x0 itself; with s = e the target is x_s, the boundary condition.
Several phases are PCM (Wang et al. 2024, arXiv:2405.18407, eq. 8). The target network is the student itself (stop-gradient; Song &
Dhariwal 2023, arXiv:2310.14189, sec. 3.2) or its EMA.
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


def consistency(student, target, teacher, path, x0, noise, sigma_t, sigma_s, sigma_e, *, solver="heun",
                metric=pseudo_huber, weight=None):
    """(loss (), metrics) of one batch.

    student, target, teacher: (x, sigma, rows) -> x0, where rows is a mask of the samples of the batch that x holds, or
    None for all of them (they need it to find their conditioning). x0 data, noise (B, ...); sigma_t > sigma_s >= sigma_e (B,).
    The distance is taken in units of x0: the DDIM step is linear in x0, so its factor is divided out.
    """
    x_t = expand(path.alpha(sigma_t), x0) * x0 + expand(sigma_t, x0) * noise
    with torch.no_grad():
        x_s = solver_step(teacher, x_t, path, sigma_t, sigma_s, solver)
        end = x_s.clone()
        inner = sigma_s > sigma_e
        if inner.any():
            x0_s = target(x_s[inner], sigma_s[inner], inner)
            end[inner] = step(x_s[inner], x0_s, path, sigma_s[inner], sigma_e[inner])
    a, b, _ = weights(path, sigma_t, sigma_e)       # end = a x_t + b x0
    wanted = (end - expand(a, x_t) * x_t) / expand(b, x_t)
    distance = metric(student(x_t, sigma_t, None), wanted)
    if weight is not None:
        distance = distance * weight
    return distance.mean(), {"distance": float(distance.detach().mean())}
