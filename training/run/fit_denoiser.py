"""A solver fitted to any Python function that denoises, and sampling with it, for programs of one's own."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...diffusion.faults import BadValue
from ...diffusion.paths import path as path_of
from ...diffusion.schedules.grids import discrete_sigma, flow_sigma
from ...diffusion.solvers.linear import solve
from ..formats.checks import is_number
from ..formats.recipe import Recipe
from ..trajectories.noises import start
from .fitting import FitConfig, SolverFit

Denoise = Callable[[torch.Tensor, float], torch.Tensor]  # (x, sigma) -> x0


def fit_denoiser(
    denoise: Denoise,
    /,
    shape: Sequence[int],
    path: str,
    steps: int,
    *,
    sigma_range: tuple[float, float] | None = None,
    folder: str | Path | None = None,
    base: str = "",
    **settings: Any,
) -> Recipe:
    """The `Recipe` of a solver fitted to a Python denoiser (x, sigma) -> x0, x (B, *shape), sigma a float.

    path: "flow", "variance exploding" or "variance preserving"; sigma_range: (lowest, highest) noise level
    the denoiser knows, needed on all but flow. folder keeps the trajectories for another call, `base` tells
    denoisers apart; settings: `FitConfig`, without calls.
    """
    if settings.get("calls"):
        raise BadValue(
            "calls must be left out for a Python denoiser, which a step asks once, got {got!r}. Give steps.",
            got=settings["calls"],
        )
    if folder is not None and not base:
        raise BadValue(
            "base must name this denoiser where there is a folder, in which several may keep trajectories; "
            "got none."
        )
    if odd := sorted(settings.keys() - {f.name for f in dataclasses.fields(FitConfig)}):
        raise BadValue("settings must be those of FitConfig, got {got}.", got=odd)
    teacher = PlainTeacher(denoise, shape, path, sigma_range, base)
    with tempfile.TemporaryDirectory() as temporary:
        run = SolverFit(teacher, FitConfig(steps=(steps,), **settings), folder or temporary)
        for _ in run.progress():
            pass
    return run.recipe(steps)


class PlainTeacher:
    """A `denoiser.Teacher` over a Python function (x, sigma) -> x0 with sigma a float, without prompts."""

    conditions, noise_scale, cfg = 1, 1.0, 1.0

    def __init__(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        path: str,
        sigma_range: tuple[float, float] | None,
        base: str,
    ):
        numbers = isinstance(shape, (list, tuple)) and all(type(n) is int and n > 0 for n in shape)
        if not numbers or not shape:
            raise BadValue("shape must be that of one sample, such as (4, 64, 64), got {got!r}.", got=shape)
        self.denoise, self.shape, self.path, self.base = denoise, tuple(shape), path_of(path), base
        if self.path.name == "flow":
            self.sigma_of = flow_sigma()
        else:
            low, high = self._range(sigma_range)
            levels = torch.linspace(math.log(low), math.log(high), 1000, dtype=torch.float64).exp()
            self.sigma_of = discrete_sigma(levels)
        self.identity = {"model": base, "patches": "", "conditioning": "", "guidance": "none"}

    def _range(self, given):
        try:
            low, high = map(float, given or ())
        except (TypeError, ValueError):
            low = high = 0.0
        if not 0 < low < high < math.inf or high > self.path.sigma_max:
            raise BadValue(
                "sigma_range must be (lowest, highest) noise level on the {path} path, got {got!r}.",
                path=self.path.name,
                got=given,
            )
        return low, high

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x0 = self.denoise(x, float(sigma[0]))  # a solver's levels: all rows of a call are at one
        if not isinstance(x0, torch.Tensor) or x0.shape != x.shape:
            raise BadValue(
                "denoise must answer x of shape {shape} with x0 of that shape, got {got}.",
                shape=tuple(x.shape),
                got=tuple(x0.shape) if isinstance(x0, torch.Tensor) else type(x0).__name__,
            )
        return x0


def sample_recipe(
    recipe: Recipe, denoise: Denoise, noise: torch.Tensor, picture: torch.Tensor | None = None
) -> torch.Tensor:
    """The picture by a recipe's own solver from unit noise (B, ...); denoise(x, sigma) -> x0.

    picture (B, ...): where a recipe that was fitted with denoise below 1 starts from, noised. Raises
    ValueError where such a one has none, where another has one, and for a recipe without a solver.
    """
    if recipe.solver is None:
        raise BadValue(
            "recipe must have coefficients of a solver, as a fit gives it, got none in one of {method}.",
            method=recipe.method,
        )
    path, part = path_of(recipe.path), recipe.trained.get("denoise", 1.0)
    if not is_number(part) or not 0 < part <= 1:
        raise BadValue(
            "recipe trained must have no denoise, or one above 0 and at most 1, got {got!r}.", got=part
        )
    if (picture is None) != (part == 1):
        raise BadValue(
            "picture must be given for a recipe that was fitted with denoise below 1 and for no other; this "
            "one has denoise {denoise:g}.",
            denoise=part,
        )
    if picture is None:
        return solve(recipe.solver, denoise, start(noise, recipe.sigmas, path))
    level = torch.tensor(recipe.sigmas[0], dtype=torch.float64)
    return solve(recipe.solver, denoise, (path.alpha(level) * picture + level * noise).to(noise))
