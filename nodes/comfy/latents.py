"""A LATENT of the graph as a MODEL takes it."""

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import BadValue

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # what an empty latent says of itself


def content(samples: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """What of a latent models may be told beside the prompt: nothing of an empty one without a mask."""
    return [part for part in (samples, mask) if part is not None and bool(part.any())]


def latent_of(model: ModelPatcher, latent: dict) -> torch.Tensor:
    """The samples of a LATENT as this model takes them: an empty one gets the model's channels and size.

    Raises ValueError for one of several parts.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise BadValue(
            "latent must be one picture or video; this one holds several parts (audio and video), which "
            "Fewstep can't take together. Wire the latent of one of them."
        )
    ratios = {key: latent[key] for key in RATIOS if latent.get(key) is not None}
    return comfy.sample.fix_empty_latent_channels(model, samples, **ratios)
