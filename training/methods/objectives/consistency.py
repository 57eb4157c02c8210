"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2), its phased form, training, and
their limits.

A consistency function maps every point of one ODE trajectory to the same end. From x_t the teacher's solver
leads to x_s, and with e <= s < t the end of the phase:

    f(x, t -> e) = (one DDIM step from t to e with the x0 that the network predicts)
    loss         = d( f_student(x_t, t -> e),  f_target(x_s, s -> e) ),      the target without gradient

One phase ends at e = 0, where f is the predicted x0 itself; with s = e the target is x_s, the boundary
condition. Several phases are PCM (Wang et al. 2024, arXiv:2405.18407, eq. 8). The target network is the
student itself (stop-gradient; Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.2) or its EMA. Neighbouring t
and s give consistency distillation; s = e far away gives the distillation of whole trajectory pieces (Luhman
& Luhman 2021, arXiv:2101.02388, for t = 1, e = 0).

Consistency training (algorithm 3) needs no teacher: x_s has the same image and noise as x_t. Written for a
rectified flow, x_t = (1-t) x_0 + t eps and x_s = x_t - (t-s)(eps - x_0), an Euler step with the sample's own
velocity, it is the same loss.
"""

import torch

from ....diffusion.predictions import expand
from ....diffusion.step import step, weights
from ..distances import squared_error


def consistency(student, target, path, x_t, x_s, sigma_t, sigma_s, sigma_e, *, metric=squared_error):
    """The loss of each sample (B,), in units of x0.

    student, target: (x, sigma, rows) -> x0, where rows is a mask of the samples of the batch that x holds, or
    None for all of them (they need it to find their conditioning). x_t, x_s (B, ...): two points of one
    trajectory, see `solver.solver_step`; sigma_t > sigma_s >= sigma_e (B,). The DDIM step is linear in x0, so
    its factor is divided out: the loss compares the student's x0 with the x0 that would lead from x_t to the
    target's end.
    """
    end = x_s
    inner = sigma_s > sigma_e
    if inner.any():
        with torch.no_grad():
            x0_s = target(x_s[inner], sigma_s[inner], inner)
            end = x_s.clone()
            end[inner] = step(x_s[inner], x0_s, path, sigma_s[inner], sigma_e[inner])
    a, b, _ = weights(path, sigma_t, sigma_e)  # end = a x_t + b x0
    wanted = (end - expand(a, x_t) * x_t) / expand(b, x_t)
    return metric(student(x_t, sigma_t, None), wanted)


def noised(x0, noise, path, sigma):
    """x_t = alpha x_0 + sigma eps, x0 and noise (B, ...), sigma (B,)."""
    return expand(path.alpha(sigma), x0) * x0 + expand(sigma, x0) * noise


def consistency_training(
    student, target, path, x0, noise, sigma_t, sigma_s, sigma_e, *, metric=squared_error
):
    """`consistency` of an image and noise (B, ...) that belong together for this one draw: no teacher is
    asked.
    """
    return consistency(
        student,
        target,
        path,
        noised(x0, noise, path, sigma_t),
        noised(x0, noise, path, sigma_s),
        sigma_t,
        sigma_s,
        sigma_e,
        metric=metric,
    )
