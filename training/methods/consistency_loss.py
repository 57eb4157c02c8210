"""The loss of consistency models (Song et al. 2023, arXiv:2303.01469, algorithm 2), shared by three methods.

A consistency function maps every point of one ODE trajectory to the same end. From x_t the teacher's solver
leads to x_s, and with e <= s < t the end of the phase:

    f(x, t -> e) = (one DDIM step from t to e with the x0 that the network predicts)
    loss         = d( f_student(x_t, t -> e),  f_target(x_s, s -> e) ),      the target without gradient

One phase ends at e = 0, where f is the predicted x0 itself; with s = e the target is x_s, the boundary
condition. The target network is the student itself (stop-gradient; Song & Dhariwal 2023, arXiv:2310.14189,
sec. 3.2) or its EMA.
"""

import torch

from ...diffusion.paths import Path
from ...diffusion.predictions import expand
from ...diffusion.step import step, weights
from .distances import squared_error
from .method import Answer, Metric


def consistency(
    student: Answer,
    target: Answer,
    path: Path,
    x_t: torch.Tensor,
    x_s: torch.Tensor,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    sigma_e: torch.Tensor,
    condition: torch.Tensor,
    *,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """The loss of each sample (B,), in units of x0.

    student, target: (x, sigma, condition) -> x0. x_t, x_s (B, ...): two points of one trajectory, see
    `teacher_step.solver_step`; sigma_t > sigma_s >= sigma_e (B,); condition (B,). The DDIM step is linear in
    x0, so its factor is divided out: the loss compares the student's x0 with the x0 that would lead from x_t
    to the target's end.
    """
    end = x_s
    inner = sigma_s > sigma_e
    if inner.any():
        with torch.no_grad():
            x0_s = target(x_s[inner], sigma_s[inner], condition[inner])
            end = x_s.clone()
            end[inner] = step(x_s[inner], x0_s, path, sigma_s[inner], sigma_e[inner])
    a, b, _ = weights(path, sigma_t, sigma_e)  # end = a x_t + b x0
    wanted = (end - expand(a, x_t) * x_t) / expand(b, x_t)
    return metric(student(x_t, sigma_t, condition), wanted)


def noised(x0: torch.Tensor, noise: torch.Tensor, path: Path, sigma: torch.Tensor) -> torch.Tensor:
    """x_t = alpha x_0 + sigma eps, x0 and noise (B, ...), sigma (B,)."""
    return expand(path.alpha(sigma), x0) * x0 + expand(sigma, x0) * noise
