"""Fingerprints, by which caches, recipes and LoRAs tell base models apart."""

import hashlib

import torch

SAMPLED = 64  # values of each tensor


def fingerprint(module: torch.nn.Module) -> str:
    """16 hex digits that tell base models apart: names, shapes and 64 values of every tensor.

    Cheap at any size.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().flatten()
            count = min(SAMPLED, flat.numel())
            pick = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).long()
            digest.update(flat[pick.to(flat.device)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
