"""Distances between images and between sets of features."""

import torch


def rmse(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean squared difference over all entries of a, b (B, ...), in their units."""
    return float((a - b).square().mean().sqrt())


def frechet(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features (N, D) and (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), in float64. N and M should exceed D; compare only
    at equal N. Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    a, b = features.double(), reference.double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    root = _sqrt(ca)
    mixed = _sqrt(root @ cb @ root)
    return float((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * mixed.trace())


def _sqrt(matrix):
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
