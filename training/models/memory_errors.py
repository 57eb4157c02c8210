"""Exceptions that say that memory ran out, which PyTorch and the systems below it tell in several ways."""

import torch

TEXTS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: by its type, else by its text."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error).lower() for text in TEXTS)
