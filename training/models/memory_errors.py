"""Exceptions that say that memory ran out, which PyTorch and the systems below it tell in several ways, and
what is to be done before going on.
"""

import contextlib
from collections.abc import Iterator

import torch

from ...diffusion.faults import Fault, Message, NoMemory
from .devices import give_back

# The types that mean it whatever they say: with CUDA's asynchronous allocator no more than "Allocation on
# device ".
TYPES = (MemoryError, torch.OutOfMemoryError)
ACCELERATOR = getattr(torch, "AcceleratorError", ())  # of newer PyTorch: a failure with the driver's number
NUMBERS = (2,)  # cudaErrorMemoryAllocation, and hipErrorOutOfMemory
TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "allocation on device",
    "video memory",  # DirectML
    "status_alloc_failed",  # the mathematical libraries
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: by type, by the driver's number, else by text."""
    if isinstance(error, TYPES):
        return True
    if isinstance(error, ACCELERATOR) and getattr(error, "error_code", None) in NUMBERS:
        return True
    return any(text in str(error).lower() for text in TEXTS)


def recover() -> None:
    """Before going on after memory ran out."""
    give_back()


@contextlib.contextmanager
def named(doing: Message) -> Iterator[None]:
    """Within: whatever says that memory ran out is raised as NoMemory, with what was done. Faults, which say
    so themselves, are left as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Fault) or not is_out_of_memory(error):
            raise
        recover()
        raise NoMemory(
            "Memory ran out while {doing}. Close what else uses it, or choose a smaller latent, a lower "
            "rank, or a smaller or quantised model.",
            doing=doing,
        ) from error
