"""Exceptions that say that memory ran out, which PyTorch and the systems below it tell in several ways, and
what is to be done before going on.
"""

import contextlib

import torch

# The types that mean it whatever they say: with CUDA's asynchronous allocator no more than "Allocation on
# device ".
TYPES = (MemoryError, torch.OutOfMemoryError)
ACCELERATOR = getattr(torch, "AcceleratorError", ())  # of newer PyTorch: a failure with the driver's number
NUMBERS = (2,)  # cudaErrorMemoryAllocation, and hipErrorOutOfMemory
TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "allocation on device")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: by type, by the driver's number, else by text."""
    if isinstance(error, TYPES):
        return True
    if isinstance(error, ACCELERATOR) and getattr(error, "error_code", None) in NUMBERS:
        return True
    return any(text in str(error).lower() for text in TEXTS)


def recover() -> None:
    """Before going on after memory ran out: let CUDA tell of the failure for the last time, which it does at
    the next call whatever that is, and give back what is cached.
    """
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda").add_(1)
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
