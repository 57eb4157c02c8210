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

    Cheap at any size.
    dtypes: {name: in which the model takes that tensor}, where it may be stored in another.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().flatten()
            count = min(SAMPLED, flat.numel())
            pick = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).long()
            values = flat[pick.to(flat.device)].to(dtypes.get(name, flat.dtype))
            digest.update(values.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
