"""The noise levels of a diffusers scheduler, read from its config.

Discrete models see x / sqrt(1 + sigma^2), variance preserving; sigma = sqrt((1 - a) / a) with a diffusers'
`alphas_cumprod`, and a zero terminal SNR is a = 2^-24, as in its Euler scheduler. A LoRA made here runs on
the same noise levels in ComfyUI, where the index is found the same way.

A flow scheduler's shift s enters `sigma_of`: sigma(t) = s t / (1 + (s - 1) t). Dynamic shifting (Flux dev)
makes s depend on the number n of image tokens: mu is the line through (base_image_seq_len, base_shift) and
(max_image_seq_len, max_shift) at n, and s = exp(mu), or mu itself where time_shift_type is linear. So it is
fixed by the size in pixels. (ComfyUI takes mu = 1.15 at every size; a recipe holds sigmas, so that this does
not matter to it.)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...diffusion.faults import BadValue, Message
from ...diffusion.paths import FLOW, VARIANCE_EXPLODING, Path
from ...diffusion.schedules.grids import discrete_sigma, flow_sigma
from .pipelines import library

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
SHIFTS = {
    "shift": 1.0,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """The noise levels of a model.

    path, sigma_of, prediction  as in `denoiser.Denoiser`
    table                       the N ascending sigmas of a discrete model, float64; None for a flow model
    """

    path: Path
    sigma_of: Callable[[torch.Tensor], torch.Tensor]
    prediction: str
    table: torch.Tensor | None = None


def levels_of(config: Mapping[str, Any], tokens: int) -> Levels:
    """The levels of a scheduler's config, for images of that many tokens (2x2 latents).

    Raises ValueError for schedulers that are neither discrete nor flow matching, and for settings that are
    not supported.
    """
    name = config.get("_class_name") or ""
    if "FlowMatch" in name:
        if odd := [k for k in ("invert_sigmas", "shift_terminal") if config.get(k)]:
            raise BadValue(
                "scheduler must be without {odd}, got {got} with it; such models are not supported.",
                odd=odd,
                got=name,
            )
        return Levels(path=FLOW, sigma_of=flow_sigma(flow_shift(config, tokens)), prediction="velocity")
    named = name or Message("no _class_name")
    if config.get("use_flow_sigmas"):
        raise BadValue(
            "scheduler must be a flow-matching one or a discrete one with a beta_schedule, got {got} with "
            "use_flow_sigmas.",
            got=named,
        )
    if "beta_schedule" not in config:
        raise BadValue(
            "scheduler must be a flow-matching one or a discrete one with a beta_schedule, got {got}.",
            got=named,
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise BadValue(
            "scheduler prediction_type must be one of {predictions}, got {got!r}.",
            predictions=list(PREDICTIONS),
            got=prediction,
        )
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise BadValue(
            "scheduler must not have rescale_betas_zero_snr with prediction_type epsilon: at zero SNR "
            "epsilon says nothing of the picture. Use v_prediction if the model was trained so, or switch "
            "the rescaling off.",
        )
    table = _table(config)
    return Levels(
        path=VARIANCE_EXPLODING,
        sigma_of=discrete_sigma(table),
        prediction=PREDICTIONS[prediction],
        table=table,
    )


def _table(config):
    """The ascending sigmas of a discrete scheduler, float64 (N,)."""
    given = {k: config[k] for k in BETAS if config.get(k) is not None}
    try:
        left = library().DDPMScheduler(**given).alphas_cumprod.double()
    except (TypeError, ValueError, RuntimeError) as error:  # of which NotImplementedError is one
        raise BadValue(
            "scheduler must have a beta_schedule that diffusers knows, and numbers beside it, got {got} "
            "({error}).",
            got=given,
            error=error,
        ) from error
    if config.get("rescale_betas_zero_snr"):
        left[-1] = 2.0**-24
    table = ((1 - left) / left).sqrt()
    if not (len(table) > 1 and table[0] > 0 and table[-1] < math.inf and (table.diff() > 0).all()):
        raise BadValue(
            "scheduler must have noise levels that rise, two or more, got those of {given}.",
            given=given,
        )
    return table


def flow_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The shift s of a flow scheduler's config at that many image tokens."""
    values = [config.get(name, usual) for name, usual in SHIFTS.items()]
    shift, few, many, low, high = values
    if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in values) or few == many:
        raise BadValue(
            "scheduler must have numbers for {shifts}, got {got}.",
            shifts=list(SHIFTS),
            got=list(map(repr, values)),
        )
    if config.get("use_dynamic_shifting"):
        mu = low + (high - low) * (tokens - few) / (many - few)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(min(mu, 100))
    if not 1e-3 <= shift <= 1e3:
        raise BadValue("scheduler must have a shift from 0.001 to 1000, got {got}.", got=shift)
    return float(shift)
