"""In which precision a loaded model computes."""

import contextlib
from collections.abc import Iterator

import torch
from comfy.model_patcher import ModelPatcher


@contextlib.contextmanager
def in_float32(patcher: ModelPatcher) -> Iterator[None]:
    """Within: the model computes in float32, with the very weights that it has.

    It is what the host does on a device that knows no half precision (`manual_cast_dtype`): each layer casts
    its weights to the dtype of what it gets, for the length of a call.
    """
    model, layers = patcher.model, []
    before, model.manual_cast_dtype = model.manual_cast_dtype, torch.float32
    for layer in model.diffusion_model.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layers.append((layer, layer.__dict__.get("comfy_cast_weights")))
            layer.comfy_cast_weights = True
    try:
        yield
    finally:
        model.manual_cast_dtype = before
        for layer, value in layers:
            del layer.comfy_cast_weights
            if value is not None:
                layer.comfy_cast_weights = value
