"""The one place that converts between what networks predict: x0, eps, v, velocity, the score, EDM's F.

With x = alpha x_0 + sigma eps, d = sigma_data and D = sigma^2 + d^2 alpha^2:

kind       definition                                       x_0 from it
x0         x_0                                              x0
epsilon    eps                                              (x - sigma eps) / alpha
v          alpha eps - sigma x_0                            (alpha x - sigma v) / (alpha^2 + sigma^2)
velocity   eps - x_0                                        (x - sigma u) / (alpha + sigma)
score      -eps / sigma, the gradient of log p(x | x_0)     (x + sigma^2 score) / alpha
edm        (sigma x_0 - d^2 alpha eps) / (d sqrt(D))        d^2 alpha x / D + sigma d F / sqrt(D)

At alpha = 0, epsilon and score say nothing of x_0.

EDM's own form is x_0 = c_skip(s) x/alpha + c_out(s) F with s = sigma/alpha, c_skip = d^2/(s^2 + d^2) and
c_out = s d/sqrt(s^2 + d^2); multiplied out as above, alpha = 0 stays finite. With d = 1 and variance
preserved F is -v.

Sources: Salimans & Ho 2022 (arXiv:2202.00512) for v, Lipman et al. 2022 (arXiv:2210.02747) and Liu et al.
2022 (arXiv:2209.03003) for the velocity, Song et al. 2021 (arXiv:2011.13456) for the score, Karras et al.
2022 (arXiv:2206.00364, table 1) for F. `alpha` and `sigma` must broadcast against `x` (see `expand`).
"""

import torch

from .faults import BadValue

KINDS = ("x0", "epsilon", "v", "velocity", "score", "edm")


def expand(level: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A scalar or (B,) tensor of noise levels, shaped to broadcast against x (B, ...), in its dtype."""
    return level.reshape(-1, *[1] * (x.ndim - 1)).to(x) if level.ndim else level.to(x)


def to_x0(
    prediction: torch.Tensor,
    kind: str,
    x: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    *,
    sigma_data: float = 0.5,
) -> torch.Tensor:
    """x_0 from a network output of the given kind; shapes (B, ...).

    `sigma_data` > 0 matters to kind edm alone. Raises ValueError for a kind that is not one of `KINDS`.
    """
    if kind == "x0":
        return prediction
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha * alpha + sigma * sigma)
    if kind == "velocity":
        return (x - sigma * prediction) / (alpha + sigma)
    if kind == "score":
        return (x + sigma * sigma * prediction) / alpha
    if kind == "edm":
        total = sigma * sigma + sigma_data**2 * alpha * alpha
        return sigma_data**2 * alpha / total * x + sigma_data * sigma / total**0.5 * prediction
    raise BadValue("kind must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)


def from_x0(
    x0: torch.Tensor,
    kind: str,
    x: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    *,
    sigma_data: float = 0.5,
) -> torch.Tensor:
    """The network output of the given kind that means this x_0; sigma must not be 0 except for kind x0.

    Raises ValueError for a kind that is not one of `KINDS`.
    """
    if kind == "x0":
        return x0
    if kind not in KINDS:
        raise BadValue("kind must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)
    eps = (x - alpha * x0) / sigma
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "velocity":
        return eps - x0
    if kind == "score":
        return -eps / sigma
    if kind == "edm":
        total = sigma * sigma + sigma_data**2 * alpha * alpha
        return (sigma * x0 - sigma_data**2 * alpha * eps) / (sigma_data * total**0.5)
    return eps
