"""Fingerprints, by which caches, recipes and LoRAs tell base models apart."""

import hashlib
import types
from collections.abc import Mapping

import torch

SAMPLED = 64  # values of each tensor


def fingerprint(
    module: torch.nn.Module, dtypes: Mapping[str, torch.dtype] = types.MappingProxyType({})
) -> str:
    """16 hex digits that tell base models apart: names, shapes and 64 values of every tensor.

    Cheap at any size. A tensor that is packed in blocks is looked at as it is packed.
    dtypes: {name: in which the model takes that tensor}, where it may be stored in another.
    """
    digest = hashlib.sha256()
    kept = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_meta:  # what some layers tell of themselves; they keep the values elsewhere
            tensor = kept.get(name, tensor)
        if tensor.numel() and not tensor.is_meta:
            digest.update(_values(tensor, dtypes.get(name)).numpy().tobytes())
    return digest.hexdigest()[:16]


def _values(tensor, dtype):
    """Up to `SAMPLED` of the values as float32, after a cast to that dtype."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = tensor.detach().flatten()
    count = min(SAMPLED, flat.numel())
    pick = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).long().to(flat.device)
    if flat.dtype.itemsize == 1:  # not all of these can be indexed
        values = flat.view(torch.uint8)[pick].view(flat.dtype)
    else:
        values = flat[pick]
    return values.to(dtype or flat.dtype).to("cpu", torch.float32)
