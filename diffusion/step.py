"""The one step that every first-order sampler here is.

    eps^ = (x_t - alpha_t x0) / sigma_t
    x_s  = alpha_s x0 + sigma_s ( sqrt(1 - kappa^2) eps^ + kappa z ),   z ~ N(0, 1)
    kappa = sqrt(1 - exp(-2 c (lambda_s - lambda_t)))                   churn c >= 0

c = 0 is DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 with sigma = 0) and the flow-matching Euler step,
c = 1 is DDPM's ancestral step (Ho et al. 2020, arXiv:2006.11239, eq. 7), c = inf is the multistep consistency
sampler (Song et al. 2023, arXiv:2303.01469, algorithm 1). It holds on every path, with alpha_t = 0 and
sigma_s = 0 included.

It is the Gaussian case of  x_s = F_s(x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z)  with any forward
process F (`destruction/forward.py`), the unified diffusion model of Su 2022 (kexue.fm/archives/9262), whose
sigma~ is kappa.
"""

import math

import torch

from .faults import BadValue
from .paths import Levels
from .predictions import expand


def check_churn(churn: float) -> float:
    """`churn` as a float; raises ValueError when it is negative or not a number."""
    churn = float(churn)
    if math.isnan(churn) or churn < 0:
        raise BadValue(
            "churn must be 0 or more (inf for fresh noise at every step), got {got}. 0 adds no noise, 1 is "
            "the DDPM step.",
            got=churn,
        )
    return churn


def fresh_share(
    churn: float, path: Levels, sigma_t: float | torch.Tensor, sigma_s: float | torch.Tensor
) -> torch.Tensor:
    """kappa, the share of fresh noise of the step sigma_t -> sigma_s (numbers or tensors of one shape);
    float64, in [0, 1].

    A finite churn adds none on the pure-noise step (alpha_t = 0), whose lambda-step is infinite; none is
    added on a last step.
    """
    t, s = (torch.as_tensor(v, dtype=torch.float64) for v in (sigma_t, sigma_s))
    inner = s > 0
    if churn == 0 or math.isinf(churn):
        return inner * float(churn > 0)
    inner = inner & (path.alpha(t) > 0)
    squared = -torch.expm1(-2 * churn * (path.log_snr(s) - path.log_snr(t)))
    return torch.where(inner, squared, 0.0).clamp(0, 1).sqrt()


def share_of(path: Levels, sigma_reached: float, sigma_s: float) -> float:
    """kappa of a step that goes down to `sigma_reached` and is noised back up to sigma_s > 0.

    kappa^2 = 1 - (alpha_s sigma_d / (alpha_d sigma_s))^2 with d the level reached; 0 where d = s, 1 where d
    is data.
    """
    d, s = (torch.as_tensor(v, dtype=torch.float64) for v in (sigma_reached, sigma_s))
    kept = path.alpha(s) * d / (path.alpha(d) * s)
    return float((1 - kept * kept).clamp(0, 1).sqrt())


def weights(
    path: Levels,
    sigma_t: float | torch.Tensor,
    sigma_s: float | torch.Tensor,
    kappa: float | torch.Tensor = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(a, b, k) of the step x_s = a x_t + b x0 + k z, float64 tensors.

    sigma_t, sigma_s and kappa are numbers or tensors of one shape; sigma_t > 0. They are times where `path`
    is a `forward.Gaussian`.
    """
    t, s, k = (torch.as_tensor(v, dtype=torch.float64) for v in (sigma_t, sigma_s, kappa))
    level = path.noise(s)
    a = level * (1 - k * k).clamp_min(0).sqrt() / path.noise(t)
    return a, path.alpha(s) - a * path.alpha(t), level * k


def step(
    x: torch.Tensor,
    x0: torch.Tensor,
    path: Levels,
    sigma_t: float | torch.Tensor,
    sigma_s: float | torch.Tensor,
    kappa: float | torch.Tensor = 0.0,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """x_s from x_t and the predicted x_0; x (B, ...), levels are numbers or (B,) tensors.

    `noise` is needed only where kappa > 0. At sigma_s = 0 the result is exactly x0.
    """
    a, b, k = weights(path, sigma_t, sigma_s, kappa)
    out = expand(a, x) * x + expand(b, x) * x0
    if noise is not None and (k > 0).any():
        out = out + expand(k, x) * noise
    return out


def check_kappa(kappa: float | torch.Tensor) -> torch.Tensor:
    """kappa as a float64 tensor in [0, 1]; raises ValueError for any other."""
    kappa = torch.as_tensor(kappa, dtype=torch.float64)
    if not ((kappa >= 0) & (kappa <= 1)).all():
        raise BadValue(
            "kappa must be between 0 and 1, got {got:g}. It is the share of fresh noise.",
            got=float(kappa.flatten()[0]),
        )
    return kappa


def blend(a: torch.Tensor, x: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """a x + b y for float64 tensors a, b () or (B,) and x, y (B, ...), in as few passes as possible."""
    if a.ndim or b.ndim:
        return (x * expand(a, x)).addcmul_(y, expand(b, x))
    return (x * float(a)).add_(y, alpha=float(b))
