"""What the host gives a sampler of a picture that is painted in part."""

from typing import Any

import torch

from ...diffusion.paths import Path
from ...diffusion.solvers.linear import Given


def given_in(model: Any, path: Path, extra_args: dict) -> Given | None:
    """What is `Given` to a run of the model that the host hands to a sampler function; None without a mask.

    The mask is what the host's `KSamplerX0Inpaint` works with: another one at each level where a node, such
    as Differential Diffusion, makes it so.
    """
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return None
    by_level = extra_args.get("model_options", {}).get("denoise_mask_function")

    def at(sigma: float) -> torch.Tensor:
        if by_level is None:
            return mask
        levels = mask.new_full((len(model.latent_image),), sigma)
        return by_level(levels, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas})

    return Given(model.latent_image, at, path)
