"""Sampling through a `Denoiser` in chunks: the teacher's trajectories, and pictures at their ends."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ...diffusion.samplers import batch_noise, sample
from ...diffusion.schedules.grids import grid
from ..adapter.lora import Lora
from ..models.denoiser import Denoiser, for_sampler
from .cache import CacheSpec, TrajectoryCache
from .noises import start
from .recorder import recorded

CHUNK = 32  # samples of one forward call, where nobody says
SHARD = 16  # trajectories of one file of a run's cache, whatever of them the memory takes at once


def trajectories(
    denoiser: Denoiser,
    noise: torch.Tensor,
    condition: torch.Tensor,
    cfg: float,
    sigmas: torch.Tensor,
    kept: Sequence[int] = (-1,),
    *,
    order: int | str = 1,
    corrector: bool = False,
    churn: float = 0.0,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Iterator[torch.Tensor]:
    """Sample from unit noise (B, ...) along `sigmas`; yield (b, len(kept), ...), `chunk` samples at a time.

    The samples are in model space. kept: which of the len(sigmas) states of each trajectory, rising; 0 is the
    first, of noise, -1 the image alone. order, corrector, churn: as in `samplers.sample`; seed: of the fresh
    noise that churn asks for.
    """
    kept = [k % len(sigmas) for k in kept]
    for i in range(0, len(noise), chunk):
        x = start(noise[i : i + chunk], sigmas, denoiser.path, denoiser.noise_scale)
        states = [x] if 0 in kept else []
        run = sample(
            for_sampler(denoiser, condition[i : i + chunk], cfg),
            x,
            sigmas,
            denoiser.path,
            churn=churn,
            order=order,
            corrector=corrector,
            noise=scaled_noise(seed + i, denoiser.noise_scale),
        )
        for _ in recorded(run, kept, states, predictions=[]):
            pass
        yield torch.stack(states, 1)


def scaled_noise(seed: int, scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """`batch_noise` of that standard deviation."""
    draw = batch_noise(seed)
    return lambda x: scale * draw(x)


def in_chunks(
    denoiser: Denoiser,
    noise: torch.Tensor,
    condition: torch.Tensor,
    cfg: float,
    sigmas: torch.Tensor,
    *,
    order: int | str = 1,
    corrector: bool = False,
    churn: float = 0.0,
    seed: int = 0,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """The images at the end of `trajectories`, (B, ...), float32."""
    parts = trajectories(
        denoiser,
        noise,
        condition,
        cfg,
        sigmas,
        order=order,
        corrector=corrector,
        churn=churn,
        seed=seed,
        chunk=chunk,
    )
    return torch.cat(list(parts))[:, 0]


@torch.no_grad()
def teacher_samples(
    lora: Lora,
    denoiser: Denoiser,
    noise: torch.Tensor,
    condition: torch.Tensor,
    cfg: float,
    steps: int | torch.Tensor,
    order: int | str = 2,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Images of the base model, adapter off, by the deterministic solver of that order.

    steps: how many at uniform times, or a grid.
    """
    sigmas = grid("uniform", steps, denoiser.sigma_of, denoiser.path) if isinstance(steps, int) else steps
    with lora.off():
        return in_chunks(denoiser, noise, condition, cfg, sigmas, order=order, chunk=chunk)


def teacher_cache(
    denoiser: Denoiser,
    *,
    cfg: float,
    sigmas: torch.Tensor,
    kept: Sequence[int],
    count: int,
    seed: int,
    folder: str | Path,
    identity: dict,
    starts: torch.Tensor | None = None,
) -> TrajectoryCache | None:
    """A cache below `folder` for `count` of the teacher's trajectories; None, which is logged, where it would
    be larger than may be.

    cfg: its guidance; sigmas: its step grid, of which the places `kept` are stored. identity: fields of the
    `CacheSpec` that a denoiser does not know (`patches`, `conditioning`), and what takes the place of a field
    named here (`seed`). starts: as of `TrajectoryCache`.
    """
    own = {
        "model": denoiser.base,
        "conditions": denoiser.conditions,
        "guidance": f"CFG {cfg:g}",
        "path": denoiser.path.name,
        "shape": tuple(denoiser.shape),
        "sigmas": tuple(sigmas.tolist()),
        "kept": tuple(kept),
        "order": 2,
        "corrector": True,
        "noise_scale": denoiser.noise_scale,
        "seed": seed,
        "shard": SHARD,
        "predictions": False,
    }
    cache = TrajectoryCache(folder, CacheSpec(**{**own, **identity}), starts=starts)
    size = cache.bytes(count)
    if size <= cache.limit:
        return cache
    logging.warning(
        "Fewstep: the teacher's trajectories take %.1f GiB, above the %.1f for such files, and are kept in "
        "memory alone.",
        size / 2**30,
        cache.limit / 2**30,
    )
    return None
