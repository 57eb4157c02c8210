"""What PyTorch tells of a device in a module of its kind (`torch.cuda`, which is ROCm too, `torch.xpu`,
`torch.mps`, ...): memory, random state, and how to wait for it. The CPU has none, and DirectML neither.
"""

import contextlib
import math
from collections.abc import Callable
from types import ModuleType

import torch


def module_of(device: torch.device | str) -> ModuleType | None:
    """The module of a device's kind; None for the CPU, and where PyTorch has none."""
    kind = torch.device(device).type
    return None if kind in ("cpu", "meta") else getattr(torch, kind, None)


def accelerator() -> torch.device | None:
    """The device of this process that is no CPU; None without one."""
    found = getattr(torch, "accelerator", None)  # of newer PyTorch
    if found is not None:
        return found.current_accelerator() if found.is_available() else None
    kinds = ("cuda", "xpu", "mps")
    is_there = (getattr(getattr(torch, kind, None), "is_available", bool)() for kind in kinds)
    return next((torch.device(kind) for kind, there in zip(kinds, is_there) if there), None)


def can_train(device: torch.device | str) -> bool:
    """Whether a device tells what a run asks of it: its free memory, and its random state."""
    module = module_of(device)
    if torch.device(device).type == "cpu":
        return True
    return math.isfinite(free_bytes(device)) and hasattr(module, "get_rng_state")


def free_bytes(device: torch.device | str) -> float:
    """Bytes that this process may still take there, with what its allocator keeps in reserve; inf where
    PyTorch can't tell.
    """
    module = module_of(device)
    if torch.device(device).type == "mps":  # of the computer's own memory
        return module.recommended_max_memory() - module.current_allocated_memory()
    if hasattr(module, "mem_get_info"):
        free, _ = module.mem_get_info(device)
        return free + module.memory_reserved(device) - module.memory_allocated(device)
    if hasattr(module, "get_device_properties"):
        return module.get_device_properties(device).total_memory - module.memory_allocated(device)
    return math.inf


def most_bytes(device: torch.device | str) -> int | None:
    """The most bytes that tensors took there since `reset_most`, or what they take now; None where PyTorch
    can't tell.
    """
    module = module_of(device)
    if hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated(device)
    return module.current_allocated_memory() if hasattr(module, "current_allocated_memory") else None


def reset_most(device: torch.device | str) -> None:
    """Begin to measure `most_bytes` anew."""
    reset = getattr(module_of(device), "reset_peak_memory_stats", None)
    if reset is not None:
        reset(device)


def has_float64(device: torch.device | str) -> bool:
    """Whether it is sure that a device has such numbers; MPS and XPU have none, or some have none."""
    return torch.device(device).type in ("cpu", "cuda")


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64, on the CPU where its device has none."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


def give_back() -> None:
    """Give back what the accelerator's allocator has cached, once all that it was asked for is done.

    A failure that it still has to tell of, which it does at the next call whatever that is, is told here.
    """
    device = accelerator()
    module = None if device is None else module_of(device)
    if module is None:
        return
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
        module.synchronize()
    module.empty_cache()


def dice(device: torch.device | str) -> Callable[[], contextlib.AbstractContextManager]:
    """A context in which the CPU's and the device's random generators go on from where they are now. After it
    they are where they were before it.
    """
    kept = _states(device)

    @contextlib.contextmanager
    def again():
        before = _states(device)
        _set_states(device, kept)
        try:
            yield
        finally:
            _set_states(device, before)

    return again


def _states(device):
    """(the CPU's random state, the device's or None)"""
    module = module_of(device)
    own = module.get_rng_state(*_place(device)) if hasattr(module, "get_rng_state") else None
    return torch.get_rng_state(), own


def _set_states(device, states):
    torch.set_rng_state(states[0])
    if states[1] is not None:
        module_of(device).set_rng_state(states[1], *_place(device))


def _place(device):
    """MPS is one device, and takes none."""
    return () if torch.device(device).type == "mps" else (device,)
