"""Paths: how much signal is left at a noise level, alpha(sigma).

name                   alpha              largest sigma   used by
variance exploding     1                  unbounded       ComfyUI's eps-, v- and EDM-models
flow                   1 - sigma          1               ComfyUI's CONST models (SD3, Flux, Wan, ...)
variance preserving    sqrt(1-sigma^2)    1               diffusers' discrete models
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from .faults import BadValue


class Levels(Protocol):
    """What steps and solvers ask about the entries of a step grid.

    Of a `Path` these are sigmas, of a `destruction.forward.ForwardProcess` times.

    sigma_max   the largest entry
    linear      whether a step is a x_t + b x_0 + k z with numbers a, b, k
    noisy       whether x_t depends on noise at all
    levels      what the entries are called in messages
    draws       when a step needs fresh noise: "never", "with kappa", "always"
    """

    name: str
    sigma_max: float
    linear: bool
    noisy: bool
    levels: str
    draws: str

    def alpha(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def noise(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def log_snr(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def tau(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def level(self, log_snr: torch.Tensor) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True)
class Path:
    """One of the three paths, a kind of `Levels`; compare by value, find by `path(name)`."""

    name: str
    sigma_max: float
    linear = True
    noisy = True
    levels = "sigmas"
    draws = "with kappa"

    def alpha(self, sigma: torch.Tensor) -> torch.Tensor:
        """alpha(sigma), same shape and dtype as the tensor `sigma`."""
        if self.name == "flow":
            return 1 - sigma
        if self.name == "variance preserving":
            return (1 - sigma.square()).clamp_min(0).sqrt()
        return torch.ones_like(sigma)

    def noise(self, sigma: torch.Tensor) -> torch.Tensor:
        """The standard deviation of the noise at a level of a grid: here, the level itself.

        Of a `forward.Gaussian` the levels are times.
        """
        return sigma

    def tau(self, sigma: torch.Tensor) -> torch.Tensor:
        """The noise level in the coordinate of multistep solvers, rising with sigma, 0 at data.

        `x_s / sigma_s = x_t / sigma_t + integral of x0 d(1/tau)` on every path: tau = sigma where alpha is 1
        or 1 - sigma, and sigma / (alpha + sigma), the flow time of the same lambda, where variance is
        preserved.
        """
        return self.flow_time(sigma) if self.name == "variance preserving" else sigma

    def flow_time(self, sigma: torch.Tensor) -> torch.Tensor:
        """sigma / (alpha + sigma), the flow path's time (shift 1) at that lambda: 1 pure noise, 0 data."""
        return sigma / (self.alpha(sigma) + sigma)

    def at_flow_time(self, time: torch.Tensor) -> torch.Tensor:
        """The noise level at a flow time: inverse of `flow_time`."""
        return self.sigma((1 - time).log() - time.log())

    def log_snr(self, sigma: torch.Tensor) -> torch.Tensor:
        """lambda = log(alpha / sigma); -inf at pure noise, +inf at data."""
        return self.alpha(sigma).log() - sigma.log()

    def sigma(self, log_snr: torch.Tensor) -> torch.Tensor:
        """The noise level of a given lambda: inverse of `log_snr`."""
        if self.name == "flow":
            return torch.sigmoid(-log_snr)
        if self.name == "variance preserving":
            return torch.sigmoid(-2 * log_snr).sqrt()
        return torch.exp(-log_snr)

    def level(self, log_snr: torch.Tensor) -> torch.Tensor:
        """The entry of a grid of a given lambda: sigma."""
        return self.sigma(log_snr)


VARIANCE_EXPLODING = Path("variance exploding", math.inf)
FLOW = Path("flow", 1.0)
VARIANCE_PRESERVING = Path("variance preserving", 1.0)
PATHS = {p.name: p for p in (VARIANCE_EXPLODING, FLOW, VARIANCE_PRESERVING)}


def path(name: str) -> Path:
    """The path of that name.

    Raises ValueError for a name that is not one of `PATHS`.
    """
    if name not in PATHS:
        raise BadValue("path must be one of {paths}, got {got!r}.", paths=list(PATHS), got=name)
    return PATHS[name]


def check_sigmas(
    sigmas: torch.Tensor | Sequence[float], path: Levels | None = None, name: str = "sigmas"
) -> torch.Tensor:
    """`sigmas` as a float64 CPU tensor, after proving that it is a step grid.

    A grid has shape (steps + 1,) with steps >= 1, is finite, not negative, strictly descending, and starts
    within the path's range. It need not end at 0 (a run may be split). Raises ValueError that names the first
    fault.
    """
    if torch.is_tensor(sigmas):
        sigmas = sigmas.detach().cpu()  # first: not every device has float64
    grid = torch.as_tensor(sigmas, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise BadValue(
            "{name} must hold at least two noise levels (steps + 1) in one row, got shape {shape}. Make it "
            "with a schedule node of 1 step or more.",
            name=name,
            shape=tuple(grid.shape),
        )
    levels = grid.tolist()
    for i, level in enumerate(levels):
        if not math.isfinite(level):
            raise BadValue(
                "{name} must be finite, got {got} at position {position}. Check the node that made it.",
                name=name,
                got=level,
                position=i,
            )
        if level < 0:
            raise BadValue(
                "{name} must not be negative, got {got:g} at position {position}.",
                name=name,
                got=level,
                position=i,
            )
        if i and level >= levels[i - 1]:
            raise BadValue(
                "{name} must descend, got {got:g} then {after:g} at position {position}. Flip it or remove "
                "repeated entries.",
                name=name,
                got=levels[i - 1],
                after=level,
                position=i,
            )
    if path is not None and levels[0] > path.sigma_max * (1 + 1e-6):
        raise BadValue(
            "{name} must start at {most:g} or below on the {path} path, got {got:g}. Use a schedule made for "
            "this model.",
            name=name,
            most=path.sigma_max,
            path=path.name,
            got=levels[0],
        )
    return grid
