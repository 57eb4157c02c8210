"""What a plot needs to know of a model, from a loaded one or from a file's header: its path and its noise
level at every time.

{"path": "flow" | "variance exploding", "times": [0 ... 1], "sigmas": [...], "prediction": "epsilon" | "v" |
"velocity" | ...}
"""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, MutableMapping
from typing import Any

import comfy.model_detection as detection
import folder_paths
import safetensors
import torch
from comfy.supported_models_base import BASE

from ...diffusion.faults import NotFound
from .levels import path_of, prediction_of, sigma_of

POINTS = 257
FOLDERS = {"checkpoint": "checkpoints", "unet": "diffusion_models"}
SMALL = 65_536  # elements; detection looks into the numbers of some small tensors, of a large one never
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
}


def table(sampling: torch.nn.Module) -> dict[str, Any]:
    """The description of a model's sampling object; raises ValueError for a type that has no path of ours."""
    times = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    return {
        "path": path_of(sampling).name,
        "times": times.tolist(),
        "sigmas": [float(f"{v:.8g}") for v in sigma_of(sampling)(times).tolist()],
        "prediction": prediction_of(sampling),
    }


def shown(sigmas: torch.Tensor, sampling: torch.nn.Module) -> dict[str, list]:
    """What a schedule node tells the frontend when it has run: its own levels, and the model's."""
    return {"fewstep": [{"sigmas": sigmas.tolist(), "model": table(sampling)}]}


def describe(kind: str, name: str) -> dict[str, Any]:
    """The description of a file in models/checkpoints ("checkpoint") or models/diffusion_models ("unet"),
    read from its header.

    Raises LookupError where there is no such file, or where it doesn't tell.
    """
    return _described(kind, *file_of(kind, name))


def file_of(kind: str, name: str) -> tuple[str, int, int]:
    """(path, time of its last change, size) of such a file. Raises LookupError as `describe`."""
    if kind not in FOLDERS or name not in folder_paths.get_filename_list(FOLDERS[kind]):
        raise NotFound("There is no {kind} of that name.", kind=kind)
    path = folder_paths.get_full_path(FOLDERS[kind], name)
    if path is None or not path.endswith((".safetensors", ".sft")):
        raise NotFound("{name} has no header that can be read alone; safetensors files have.", name=name)
    stat = os.stat(path)
    return path, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(64)
def _described(kind, path, changed, size):
    """`describe` of a file as it is; `changed` and `size` tell states of it apart."""
    with header_of(path) as (tensors, metadata):
        return table(sampling_of(tensors, kind, metadata))


@contextlib.contextmanager
def header_of(path: str) -> Iterator[tuple["Header", dict[str, str] | None]]:
    """(tensors, metadata) of a safetensors file; within, whatever fails is raised as LookupError."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield Header(file), file.metadata()
    except Exception as error:  # detection meets files of any shape, and fails on some in ways of its own
        raise NotFound(
            "{path} is no model that can be told from its header: {error}",
            path=os.path.basename(path),
            error=error,
        ) from error


def sampling_of(
    tensors: "Header", kind: str = "unet", metadata: dict[str, str] | None = None
) -> torch.nn.Module:
    """The sampling object that ComfyUI's loader of that kind would give the model of these tensors.

    Raises LookupError where ComfyUI detects none.
    """
    config, tensors, prefix = config_of(tensors, kind, metadata)
    config.unet_config["disable_unet_model_creation"] = True  # how it samples, without its network
    return config.get_model(tensors, prefix, device="meta").model_sampling


def config_of(
    tensors: "Header", kind: str = "unet", metadata: dict[str, str] | None = None
) -> tuple[BASE, "Header", str]:
    """(config, tensors, prefix of the network's): what ComfyUI's loader of that kind detects.

    Raises LookupError where it detects none.
    """
    prefix = detection.unet_prefix_from_state_dict(tensors)
    if kind == "unet":
        tensors, prefix = tensors.under(prefix) or tensors, ""
    config = detection.model_config_from_unet(tensors, prefix, metadata=metadata)
    if config is None and kind == "checkpoint":  # the loader takes a diffusion model alone as well
        return config_of(tensors, "unet", metadata)
    if config is None:  # in diffusers' format
        converted = detection.convert_diffusers_mmdit(tensors)
        if converted is not None:
            tensors = converted
            config = detection.model_config_from_unet(tensors, "")
        else:
            config = detection.model_config_from_diffusers_unet(tensors)
    if config is None:
        raise NotFound("ComfyUI detects none in these tensors.")
    return config, tensors, prefix


class Header(MutableMapping):
    """A file's tensors as a state dict: small ones read on demand, large ones with shape and dtype only."""

    def __init__(self, file: Any, names: dict[str, str] | None = None):
        self.file = file
        self.names = {name: name for name in file.keys()} if names is None else names
        self.others: dict[str, torch.Tensor] = {}  # what was put in later

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.others:
            return self.others[name]
        part = self.file.get_slice(self.names[name])
        shape = part.get_shape()
        if math.prod(shape) <= SMALL:
            return self.file.get_tensor(self.names[name])
        return torch.empty(shape, dtype=DTYPES.get(part.get_dtype(), torch.uint8), device="meta")

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self.names[name] = name
        self.others[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self.names[name]
        self.others.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def under(self, prefix: str) -> "Header":
        """The tensors whose names begin with `prefix`, named without it."""
        names = {name.removeprefix(prefix): name for name in self.names if name.startswith(prefix)}
        return Header(self.file, names)
