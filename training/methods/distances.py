"""Distances between predictions, per sample: (B, ...) and (B, ...) -> (B,)."""

import torch


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return (a - b).flatten(1).square().mean(1)


def absolute_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference."""
    return (a - b).flatten(1).abs().mean(1)


def pseudo_huber(a: torch.Tensor, b: torch.Tensor, scale: float = 1e-3) -> torch.Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = scale sqrt(D), divided by sqrt(D).

    Improved consistency training (Song & Dhariwal 2023, arXiv:2310.14189, eq. 8): the distance for far pairs,
    its square for near ones.
    """
    return (squared_error(a, b) + scale**2).sqrt() - scale


METRICS = {"l2": squared_error, "l1": absolute_error, "pseudo-huber": pseudo_huber}
