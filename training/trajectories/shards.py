"""The files of a trajectory cache: written whole or not at all, and found out when they are damaged."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ..formats.files import read_tensors, told_by_name, write_tensors


def write_shard(file: Path, tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Write a shard with its mark; place: its cache and number, so that no other file is taken for it.

    Raises OSError, naming the file, where the disk can't take it.
    """
    with told_by_name(file):
        write_tensors(file, tensors, {"shard": _mark(place, tensors)}, signed=False)


def read_shard(file: Path, place: str) -> dict[str, torch.Tensor] | None:
    """The tensors of a shard, or None when it is missing or damaged, which is logged."""
    if not file.exists():
        return None
    try:
        tensors, metadata = read_tensors(file)
        found, wanted = metadata["shard"], _mark(place, tensors)
        why = "" if found == wanted else f"its mark is {found} and not {wanted}"
    except Exception as error:
        why = str(error) or type(error).__name__
    if why:
        logging.warning("Fewstep: trajectory shard %s is damaged (%s).", file, why)
    return None if why else tensors


def _mark(place, tensors):
    """Place and checksum. One entry of metadata, as safetensors writes several in an order of chance."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return f"{place} {digest.hexdigest()}"
