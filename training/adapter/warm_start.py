"""Beginning with the weights of another LoRA, of whatever rank."""

from collections.abc import Mapping

import torch

from ...diffusion.faults import BadValue
from .lora import Lora
from .low_rank import nearest_product

UP = ".lora_up.weight"


def warm_start(lora: Lora, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a LoRA's weights in native keys into the adapter; layers that it lacks begin at zero.

    A lower rank is filled up (the rest of `down` as drawn, of `up` zero: the same function), of a higher one
    the best approximation is taken. Raises ValueError, before anything is changed, when
    it has a layer that the adapter lacks, or one of another shape, or numbers that are not finite.
    """
    names = {key.removeprefix("diffusion_model.").removesuffix(UP) for key in tensors if key.endswith(UP)}
    if not names:
        raise BadValue(
            "The LoRA to start from must have layers of this run alone, got none. Choose one of this model, "
            "and let layers take in all of its layers.",
        )
    if strange := sorted(names - lora.weights.keys()):
        raise BadValue(
            "The LoRA to start from must have layers of this run alone, got {got}. Choose one of this model, "
            "and let layers take in all of its layers.",
            got=strange[:3],
        )
    begun = {name: _begun(lora, name, tensors) for name in sorted(names)}
    with torch.no_grad():
        for name, (up, down) in begun.items():
            pair = lora.weights[name]
            pair["down"][: len(down)].copy_(down.reshape(-1, *pair["down"].shape[1:]))
            pair["up"][:, : len(down)].copy_(up)


def _begun(lora, name, tensors):
    """(up, down) of one layer, cut to the adapter's rank and in its scale."""
    key, pair = f"diffusion_model.{name}", lora.weights[name]
    up, down = tensors.get(f"{key}{UP}"), tensors.get(f"{key}.lora_down.weight")
    if any(v is None or not bool(v.isfinite().all()) for v in (up, down)):
        raise BadValue(
            "The LoRA to start from must hold finite lora_up and lora_down weights, {layer} does not.",
            layer=key,
        )
    up, down = up.float().flatten(1), down.float().flatten(1)
    height, width = len(pair["up"]), pair["down"][0].numel()
    rank = len(down)
    if (len(up), down.shape[1]) != (height, width) or up.shape[1] != rank:
        raise BadValue(
            "The LoRA to start from does not fit: {layer} must be {height} x {width}, got {got_height} x "
            "{got_width}. Choose one of this model.",
            layer=key,
            height=height,
            width=width,
            got_height=len(up),
            got_width=down.shape[1],
        )
    scale = float(tensors.get(f"{key}.alpha", rank)) / rank * lora.rank / lora.alpha
    if rank > lora.rank:
        up, down = nearest_product(up, down, lora.rank)
    return up * scale, down
