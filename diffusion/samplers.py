"""Samplers as generators: the caller owns progress, previews and cancellation.

    for state in sample(denoiser, x, sigmas, path): ...
    image = state.x
"""

import dataclasses

import torch

from .paths import check_sigmas
from .step import check_churn, fresh_share, step


@dataclasses.dataclass(frozen=True)
class State:
    """What a sampler knows after step `index`: the state x at `sigma_next`, and the prediction that led to it."""

    index: int
    sigma: float
    sigma_next: float
    x0: torch.Tensor
    x: torch.Tensor


def sample(denoiser, x, sigmas, path, *, churn=0.0, kappa=None, order=1, noise=None):
    """Yield a `State` a step, from x (B, ...) at sigmas[0] to the last entry.

    denoiser(x, sigma) -> x0 with sigma a float; `noise(x) -> z` draws fresh noise and is called only where it is needed.
    `churn` sets the share of fresh noise as `step.py` says; `kappa` in [0, 1] sets it directly instead, the same for every
    step (1: the multistep consistency sampler); the last step adds none. order 1 is the step of `step.py`; order 2 replaces
    x0 by the two-point extrapolation to the middle of the step in log(sigma), so with churn 0 it is DPM-Solver++(2M)
    (Lu et al. 2022, arXiv:2211.01095) with log sigma for lambda. NFE = steps.
    Raises ValueError for a grid that is no grid, churn or kappa out of range, or either without `noise`.
    """
    grid = check_sigmas(sigmas, path).tolist()
    churn = check_churn(churn)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}.")
    if kappa is not None and not 0 <= kappa <= 1:
        raise ValueError(f"kappa must be between 0 and 1, got {kappa}.")
    if (churn > 0 or kappa) and noise is None:
        raise ValueError("churn or kappa above 0 needs fresh noise: pass noise, a function that draws it.")
    previous = None
    for i, (sigma, sigma_next) in enumerate(zip(grid, grid[1:])):
        x0 = denoiser(x, sigma)
        share = fresh_share(churn, path, sigma, sigma_next) if kappa is None else float(kappa) * (sigma_next > 0)
        target = _extrapolate(x0, previous, sigma, sigma_next) if order == 2 and sigma_next > 0 else x0
        x = step(x, target, path, sigma, sigma_next, share, noise(x) if share > 0 else None)
        previous = (x0, sigma)
        yield State(i, sigma, sigma_next, x0, x)


def _extrapolate(x0, previous, sigma, sigma_next):
    """x0 at the middle of the step, on the line through this and the last prediction in log sigma."""
    if previous is None:
        return x0
    last, sigma_last = previous
    log = torch.tensor([sigma_last, sigma, sigma_next], dtype=torch.float64).log()
    r = min(1.0, float((log[1] - log[2]) / (log[0] - log[1])) / 2)      # never further than the last step was long
    return x0 + r * (x0 - last)


def solve(denoiser, x, sigmas, path, **options):
    """The last state of `sample`: the image, when the grid ends at 0."""
    for state in sample(denoiser, x, sigmas, path, **options):
        x = state.x
    return x


def batch_noise(seed, count=None):
    """`noise(x)` from generators of its own, seeded from `seed`; the batch can be split without changing a sample.

    Sample b draws from generator number b, on the CPU, so results do not depend on device or batch size, and never equal
    the starting noise that a host draws from `seed` itself.
    """
    generators = []

    def noise(x):
        while len(generators) < x.shape[0]:
            g = torch.Generator()
            g.manual_seed((int(seed) * 1_000_003 + 7_919 * len(generators) + 104_729) % 2**63)
            generators.append(g)
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators[:x.shape[0]]]).to(x)

    return noise
