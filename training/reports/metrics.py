"""Distances between images and between sets of features."""

import torch


def rmse(a, b):
    """Root mean squared difference over everything; a, b (B, ...), a number in their units."""
    return float((a - b).square().mean().sqrt())


def frechet(features, reference):
    """Frechet distance of two Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017,
    arXiv:1706.08500, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), float64. N and M should exceed D; compare only at
    equal N.
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
