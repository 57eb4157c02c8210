"""What trajectories start from: noise that belongs to a number, and the first state made of it."""

import hashlib
from collections.abc import Iterable, Sequence

import torch

from ...diffusion.paths import Path


def noises(seed: int, numbers: Iterable[int], shape: Sequence[int]) -> torch.Tensor:
    """The unit noise of those trajectories, float32 (N, *shape), each from a generator of its own."""
    return torch.stack([_noise(seed, number, shape) for number in numbers])


def _noise(seed, number, shape):
    digest = hashlib.blake2b(f"trajectory {int(seed)} {int(number)}".encode(), digest_size=7).digest()
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")))


def start(
    noise: torch.Tensor, sigmas: Sequence[float] | torch.Tensor, path: Path, noise_scale: float = 1.0
) -> torch.Tensor:
    """Sampling's first state from unit noise: sigma_max eps; sqrt(1 + sigma_max^2) eps where alpha is 1."""
    return noise * _scale(sigmas, path, noise_scale)


def as_noise(
    states: torch.Tensor, sigmas: Sequence[float] | torch.Tensor, path: Path, noise_scale: float = 1.0
) -> torch.Tensor:
    """What `start` makes these states at the first level of, whether it is noise or has a picture in it."""
    return states / _scale(sigmas, path, noise_scale)


def _scale(sigmas, path, noise_scale):
    first = torch.as_tensor(sigmas[0], dtype=torch.float64)
    level = (first**2 + path.alpha(first) ** 2).sqrt() if path.sigma_max > 1 else first
    return float(level) * noise_scale
