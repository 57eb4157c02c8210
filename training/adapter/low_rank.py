"""Matrices of low rank as pairs of factors, up (out, r) and down (r, in)."""

from collections.abc import Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor]

EXACT = 4  # times the wanted rank: a smaller matrix is decomposed whole
MORE = 32  # ranks that the search for a subspace has beyond the wanted one
ROUNDS = 4  # of the search
NOISE = 1e-7  # singular values below this share of the largest are rounding


def block_sum(pairs: Sequence[Pair]) -> Pair:
    """Factors of the sum of the pairs' products, at the sum of their ranks."""
    ups, downs = zip(*pairs)
    return torch.cat(ups, 1), torch.cat(downs)


def nearest_product(up: torch.Tensor, down: torch.Tensor, rank: int) -> Pair:
    """Factors of the product's best approximation of that rank (Eckart & Young 1936).

    The product's singular values are those of its triangular factors' product, which is small.
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    return q_up @ u[:, : len(s)][:, :rank] * root, root[:, None] * (v[: len(s)][:rank] @ q_down.T)


def nearest(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(up, down, left): factors of a matrix's best approximation of at most that rank, and the share of its
    energy (squared Frobenius norm) that they leave out.

    Of a large matrix the subspace is searched for (Halko, Martinsson & Tropp 2011, algorithm 4.4).
    """
    basis = None if min(matrix.shape) <= EXACT * rank else _subspace(matrix, rank + MORE)
    u, s, v = torch.linalg.svd(matrix if basis is None else basis.T @ matrix, full_matrices=False)
    kept = max(1, min(rank, int((s > NOISE * s[0]).sum())))
    root = s[:kept].sqrt()
    up, down = u[:, :kept] * root, root[:, None] * v[:kept]
    energy = float(matrix.square().sum())
    left = max(0.0, 1 - float(s[:kept].square().sum()) / energy) if energy else 0.0
    return up if basis is None else basis @ up, down, left


def _subspace(matrix, size):
    """An orthonormal basis (out, size) of nearly the leading left singular vectors."""
    start = torch.randn(matrix.shape[1], size, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(matrix @ start.to(matrix)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    return basis
