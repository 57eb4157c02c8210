"""Sampling through a `Denoiser` in chunks: the teacher's trajectories, and pictures at their ends."""

import logging

import torch

from ...diffusion.samplers import batch_noise, sample
from ...diffusion.schedules.grids import grid
from ..models.denoiser import bound
from .cache import CacheSpec, TrajectoryCache, recorded, start

CHUNK = 32  # samples of one forward call, where nobody says
SHARD = 16  # trajectories of one file of a run's cache, whatever of them the memory takes at once


def trajectories(
    denoiser, noise, condition, cfg, sigmas, kept=(-1,), *, churn=0.0, seed=0, chunk=CHUNK, **solver
):
    """Sample from unit noise (B, ...) along `sigmas`; yield `chunk` samples at a time (b, len(kept), ...),
    model space.

    kept: which of the len(sigmas) states of each trajectory, rising; 0 is the first, of noise, -1 the image
    alone. solver: order and corrector of `samplers.sample`.
    """
    kept = [k % len(sigmas) for k in kept]
    for i in range(0, len(noise), chunk):
        fresh = batch_noise(seed + i)
        x = start(noise[i : i + chunk], sigmas, denoiser.path, denoiser.noise_scale)
        states = [x] if 0 in kept else []
        run = sample(
            bound(denoiser, condition[i : i + chunk], cfg),
            x,
            sigmas,
            denoiser.path,
            churn=churn,
            **solver,
            noise=lambda x, fresh=fresh: denoiser.noise_scale * fresh(x),
        )
        for _ in recorded(run, kept, states, []):
            pass
        yield torch.stack(states, 1)


def in_chunks(denoiser, noise, condition, cfg, sigmas, **options):
    """The images at the end of `trajectories`, (B, ...), float32."""
    return torch.cat(list(trajectories(denoiser, noise, condition, cfg, sigmas, **options)))[:, 0]


@torch.no_grad()
def teacher_samples(lora, denoiser, noise, condition, cfg, steps, order=2, chunk=CHUNK):
    """Images of the base model, adapter off, by the deterministic solver of that order; steps: uniform times,
    or a grid.
    """
    sigmas = grid("uniform", steps, denoiser.sigma_of, denoiser.path) if isinstance(steps, int) else steps
    with lora.off():
        return in_chunks(denoiser, noise, condition, cfg, sigmas, order=order, chunk=chunk)


def cache_of(run, folder, identity):
    """The `TrajectoryCache` for the teacher's trajectories of a `distil.Distillation`; None where it would be
    larger than may be.

    identity: of its spec, what is not the run's own.
    """
    config, denoiser, phases = run.config, run.denoiser, run.phases
    own = dict(
        model=denoiser.base,
        conditions=denoiser.conditions,
        guidance=f"CFG {config.cfg:g}",
        path=run.path.name,
        shape=tuple(denoiser.shape),
        sigmas=tuple(phases.fine.tolist()),
        kept=tuple(phases.kept),
        order=2,
        corrector=True,
        noise_scale=denoiser.noise_scale,
        seed=config.seed,
        shard=SHARD,
        predictions=False,
    )
    cache = TrajectoryCache(folder, CacheSpec(**{**own, **identity}))
    size = cache.bytes(run.count)
    if size <= cache.limit:
        return cache
    logging.warning(
        "Fewstep: the teacher's trajectories take %.1f GiB, above the %.1f for such files, and are kept in memory "
        "alone.",
        size / 2**30,
        cache.limit / 2**30,
    )
    return None
