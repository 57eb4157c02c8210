"""The teacher's ODE over one interval from each sample's own level, for consistency distillation online.

Euler (= DDIM), Heun, and DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Heun works in the
coordinates of the flow path, where both ends are finite: any path becomes it by w = x/(alpha + sigma), tau =
sigma/(alpha + sigma), and dw/dtau = eps - x0. A step that ends at sigma = 0 is Euler's.
"""

import torch

from ...diffusion.faults import BadValue
from ...diffusion.paths import Path
from ...diffusion.predictions import expand, from_x0
from ...diffusion.step import step
from .method import Answer

SOLVERS = ("euler", "heun", "2m")


def solver_step(
    teacher: Answer,
    x: torch.Tensor,
    path: Path,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    condition: torch.Tensor,
    *,
    solver: str = "heun",
    substeps: int = 1,
) -> torch.Tensor:
    """x (B, ...) carried along the teacher's ODE from sigma_t to sigma_s, both (B,).

    substeps: how many steps, of equal flow time.
    teacher: (x, sigma, condition) -> x0; condition (B,).
    Raises ValueError for a solver that is not one of `SOLVERS`.
    """
    if solver not in SOLVERS:
        raise BadValue("solver must be one of {solvers}, got {got!r}.", solvers=list(SOLVERS), got=solver)
    times = [path.flow_time(v.double()) for v in (sigma_t, sigma_s)]
    inner = [path.at_flow_time(times[0].lerp(times[1], k / substeps)).to(sigma_t) for k in range(1, substeps)]
    sigmas, before = [sigma_t, *inner, sigma_s], None
    for t, s in zip(sigmas, sigmas[1:]):
        x0 = teacher(x, t, condition)
        if solver == "2m" and before is not None:
            x0, before = _extrapolated(x0, *before, path, t, s), (x0, t)
        elif solver == "2m":
            before = x0, t
        end = step(x, x0, path, t, s)
        x = _heun(teacher, x, x0, end, path, t, s, condition) if solver == "heun" else end
    return x


def _extrapolated(x0, x0_before, sigma_before, path, sigma_t, sigma_s):
    """2M's prediction: x0 + h/(2 h_before) (x0 - x0_before), h the lambda steps; x0 where one is infinite."""
    before, here, after = (path.log_snr(v) for v in (sigma_before, sigma_t, sigma_s))
    share = (after - here) / (2 * (here - before))
    share = torch.where(torch.isfinite(after) & torch.isfinite(before), share, 0.0)
    return x0 + expand(share, x0) * (x0 - x0_before)


def _heun(teacher, x, x0, end, path, sigma_t, sigma_s, condition):
    """`end` of Euler's step, corrected with the slope found there."""
    inner = sigma_s > 0
    if not inner.any():
        return end
    x, x0, x_s, t, s = x[inner], x0[inner], end[inner], sigma_t[inner], sigma_s[inner]
    alpha_t, alpha_s = path.alpha(t), path.alpha(s)
    slopes = [
        from_x0(x0, "velocity", x, expand(alpha_t, x), expand(t, x)),
        from_x0(teacher(x_s, s, condition[inner]), "velocity", x_s, expand(alpha_s, x), expand(s, x)),
    ]
    scale_t, scale_s = alpha_t + t, alpha_s + s
    w = x / expand(scale_t, x) + expand(s / scale_s - t / scale_t, x) * (slopes[0] + slopes[1]) / 2
    end = end.clone()
    end[inner] = w * expand(scale_s, x)
    return end
