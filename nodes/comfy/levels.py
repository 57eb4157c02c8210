"""A MODEL's noise levels: its path, what its network predicts, sigma over time, and which schedules it takes.

All of it is read from the model's sampling object, `model.get_model_object("model_sampling")`, a mix of
classes of `comfy.model_sampling`: patches of the graph, such as another shift, are included.
"""

from collections.abc import Callable, Sequence

import comfy.model_sampling
import torch

from ...diffusion.faults import BadValue, Message
from ...diffusion.paths import FLOW, VARIANCE_EXPLODING, Path, check_sigmas
from ...diffusion.schedules.grids import discrete_sigma

KINDS = comfy.model_sampling
# EPS or CONST by inheritance, but sampled in another way
ODD = (KINDS.IMG_TO_IMG, KINDS.IMG_TO_IMG_FLOW, KINDS.StableCascadeSampling)
SLACK = 1e-4  # relative: what float32 sigmas may exceed the largest level by


def path_of(model_sampling: torch.nn.Module, name: str = "model") -> Path:
    """The path of a model's sampling object, told by how it mixes noise in: sigma eps + (1 - sigma) x_0, or
    sigma eps + x_0. Raises ValueError naming a type that has none of ours.
    """
    is_flow = isinstance(model_sampling, KINDS.CONST)  # by which the host's samplers tell
    if not isinstance(model_sampling, ODD) and _mixes(model_sampling, 0.75 if is_flow else 1.0):
        return FLOW if is_flow else VARIANCE_EXPLODING
    mro = type(model_sampling).__mro__
    kinds = [base.__name__ for base in mro if base.__module__ == KINDS.__name__]
    raise BadValue(
        "{name} must be an epsilon, v-prediction, EDM or flow model; this one's type is {kind}, which "
        "Fewstep can't sample or distil.",
        name=name,
        kind=" + ".join(kinds) or type(model_sampling).__name__,
    )


def _mixes(model_sampling: torch.nn.Module, signal: float) -> bool:
    """Whether noise at level 1/4 leaves that share of the signal."""
    level, noise, x0 = (torch.full((1, 1), value) for value in (0.25, 1.0, 3.0))
    mixed = float(model_sampling.noise_scaling(level[0], noise, x0.clone()))
    return abs(mixed - 0.25 * noise_scale_of(model_sampling) - signal * 3.0) < 1e-4


def prediction_of(model_sampling: torch.nn.Module) -> str:
    """What the model's network predicts, one of `diffusion.predictions.KINDS`."""
    if path_of(model_sampling) is FLOW or isinstance(model_sampling, _of("COSMOS_RFLOW")):
        return "velocity"
    if isinstance(model_sampling, KINDS.EDM):
        return "edm"
    if isinstance(model_sampling, (KINDS.V_PREDICTION, *_of("V_PREDICTION_DDPM"))):
        return "v"
    if isinstance(model_sampling, _of("X0")):
        return "x0"
    return "epsilon"


def _of(kind: str) -> tuple[type, ...]:
    """The host's class of that name, none where it is older than that."""
    return (getattr(KINDS, kind),) if hasattr(KINDS, kind) else ()


def sigma_of(model_sampling: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Time t in (0, 1] -> sigma (float64) of this model, its shift included; 1 is its largest noise level."""
    if path_of(model_sampling) is VARIANCE_EXPLODING:
        return discrete_sigma(model_sampling.sigmas)

    def level(t: float) -> float:
        return float(model_sampling.sigma_max) if t >= 1 else float(model_sampling.percent_to_sigma(1 - t))

    def flow(t: torch.Tensor) -> torch.Tensor:
        return torch.tensor([level(v) for v in t.double().tolist()], dtype=torch.float64)

    return flow


def noise_scale_of(model_sampling: torch.nn.Module) -> float:
    """What the model multiplies noise by before it mixes it in; 1 for nearly all."""
    return float(getattr(model_sampling, "noise_scale", 1.0))


def check_range(
    sigmas: torch.Tensor | Sequence[float], model_sampling: torch.nn.Module, name: str | Message = "sigmas"
) -> torch.Tensor:
    """`sigmas` as a float64 grid that this model can be sampled along.

    Raises ValueError naming the fault: no grid, or a first level beyond the model's largest.
    """
    grid = check_sigmas(sigmas, path_of(model_sampling), name)
    largest = float(model_sampling.sigma_max)
    if float(grid[0]) > largest * (1 + SLACK):
        raise BadValue(
            "{name} must start at this model's largest noise level {sigma_max:g} or below, got {got:g}. "
            "Use a schedule made for this model, or Translate Schedule.",
            name=name,
            sigma_max=largest,
            got=float(grid[0]),
        )
    return grid
