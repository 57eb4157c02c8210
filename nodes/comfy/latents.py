"""A LATENT of the graph as a MODEL takes it."""

import comfy.model_base
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import BadValue

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # what an empty latent says of itself


def content(samples: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """What of a latent models may be told beside the prompt: nothing of an empty one without a mask."""
    return [part for part in (samples, mask) if part is not None and bool(part.any())]


def takes_batch_for_frames(model: comfy.model_base.BaseModel) -> bool:
    """Whether a batch of latents is the frames of one video to this model (SVD and its kin)."""
    return isinstance(model, comfy.model_base.SVD_img2vid)


def first_frames(model: comfy.model_base.BaseModel, latents: torch.Tensor) -> torch.Tensor:
    """Of samples (N, ...) what stands alone as a picture: of videos their first frames."""
    if takes_batch_for_frames(model):
        return latents[:, 0]
    return latents[:, :, :1] if latents.ndim == 5 else latents


def sample_shape(model: ModelPatcher, samples: torch.Tensor) -> tuple[int, ...]:
    """The shape of one sample: of one of these latents, or of all, (frames, ...)."""
    return tuple(samples.shape if takes_batch_for_frames(model.model) else samples.shape[1:])


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
