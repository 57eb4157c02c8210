"""Exceptions that say that memory ran out, which PyTorch and the systems below it tell in several ways, and
what is to be done before going on.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

import torch

from ...diffusion.faults import Fault, Message, NoMemory
from .devices import give_back

# The types that mean it whatever they say: with CUDA's asynchronous allocator no more than "Allocation on
# device ".
TYPES = (MemoryError, torch.OutOfMemoryError)
ACCELERATOR = getattr(torch, "AcceleratorError", ())  # of newer PyTorch: a failure with the driver's number
NUMBERS = (2,)  # cudaErrorMemoryAllocation, and hipErrorOutOfMemory
WINDOWS = (
    8,
    14,
    1455,
)  # ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT (the paging file)
# What else says so, without what stands between letters: in words, as a constant's name, or as one word.
TEXTS = re.compile(
    "outof(device|host|gpu|video|system)?memory"
    "|(cant|cannot|unableto|failedto)allocate"
    "|notenoughmemory|videomemory"  # the second of DirectML
    "|allocationondevice"
    "|(alloc|allocation)failed"  # the mathematical libraries
    "|badalloc"  # of C++
    "|invalidbuffersize"  # of MPS: no buffer is as large
    "|erroroutofresources"  # of SYCL; a kernel of Triton that wants too much says "out of resource"
    "|nvmlsuccessr"  # what PyTorch says where it fails to tell how much is free
)
SYSTEM = re.compile(r"\(os error (12|1455)\)")  # as Rust tells errno, or the error of Windows
BETWEEN = re.compile(r"[\W_]+")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or the one that it was raised from, says that memory ran out: by type, by the
    number of the driver or of the system, else by text.
    """
    if isinstance(error, TYPES):
        return True
    if isinstance(error, ACCELERATOR) and getattr(error, "error_code", None) in NUMBERS:
        return True
    if isinstance(error, OSError) and (
        error.errno == errno.ENOMEM or getattr(error, "winerror", None) in WINDOWS
    ):
        return True
    text = str(error)
    if SYSTEM.search(text) or TEXTS.search(BETWEEN.sub("", text.lower())):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def recover() -> None:
    """Before going on after memory ran out."""
    give_back()


@contextlib.contextmanager
def named(doing: Message) -> Iterator[None]:
    """Within: whatever says that memory ran out is raised as NoMemory, with what was done."""

    def fault():
        return NoMemory(
            "Memory ran out while {doing}. Close what else uses it, or choose a smaller latent, a lower "
            "rank, or a smaller or quantised model.",
            doing=doing,
        )

    with raised_as(fault):
        yield


@contextlib.contextmanager
def raised_as(fault: Callable[[], NoMemory]) -> Iterator[None]:
    """Within: whatever says that memory ran out is raised as what `fault` then gives. Faults, which say so
    themselves, are left as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Fault) or not is_out_of_memory(error):
            raise
        recover()
        raise fault() from error
