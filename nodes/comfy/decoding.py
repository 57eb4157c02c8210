"""Latents to pixels, for pictures of a run."""

import torch
from comfy.sd import VAE


def decode(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the host hands them on to pixels (N, 3, H, W) in [-1, 1]; the first frame of a video."""
    with torch.inference_mode():
        image = vae.decode(latents.cpu())
    image = image[:, 0] if image.ndim == 5 else image
    return image[..., :3].movedim(-1, 1) * 2 - 1
