"""What is known of a model that is not loaded, from its file's header: the network without its numbers.

It is built from ComfyUI's own configuration on PyTorch's device "meta", in the precision that the loader
would choose. No weight is read.
"""

import dataclasses
import functools
from typing import Any

import comfy.model_management
import comfy.utils
from comfy.model_base import BaseModel

from .families import names_of
from .model_info import Header, config_of, file_of, header_of


@dataclasses.dataclass(frozen=True)
class Unloaded:
    """families: as of `families.names_of`; model: ComfyUI's, on "meta", or None where it builds none."""

    families: tuple[str, ...]
    model: BaseModel | None


def of_file(kind: str, name: str) -> Unloaded:
    """The model of a file in models/checkpoints ("checkpoint") or models/diffusion_models ("unet").

    Raises LookupError where there is no such file, or where its header doesn't tell.
    """
    return _of_path(kind, *file_of(kind, name))


@functools.lru_cache(8)
def _of_path(kind: str, path: str, changed: int, size: int) -> Unloaded:
    """`changed` and `size` tell states of a file apart."""
    with header_of(path) as (tensors, metadata):
        config, tensors, prefix = config_of(tensors, kind, metadata)
        return Unloaded(tuple(names_of(config)), _built(config, tensors, prefix))


def _built(config: Any, tensors: Header, prefix: str) -> BaseModel | None:
    """The network; None for one that can't be built without its numbers, as of some quantised formats."""
    management = comfy.model_management
    parameters = comfy.utils.calculate_parameters(tensors, prefix)
    stored = comfy.utils.weight_dtype(tensors, prefix)
    supported = config.supported_inference_dtypes
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    cast = management.unet_manual_cast(dtype, management.get_torch_device(), supported)
    config.set_inference_dtype(dtype, cast)
    try:
        return config.get_model(tensors, prefix, device="meta")
    except Exception:  # whatever the host's code meets: nothing depends on it but a figure told beforehand
        return None
