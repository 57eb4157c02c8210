"""Tensors of other kinds, taken for the numbers that they hold.

A kind of tensor with methods of its own may give itself as what it detaches and clones, as ComfyUI-GGUF's
does, and what it is added to or multiplied by becomes one of its kind: a norm's weight turns up in every
activation behind it. So what is saved for the backward pass, and copied before something writes over it, must
not be asked from the tensor's own methods.
"""

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def detached(tensor: torch.Tensor) -> torch.Tensor:
    """The same storage and version counter without a history."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.detach(tensor)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, with the tensor's history."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.clone(tensor)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor is kept in; one that wraps others tells of the numbers that they stand for."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as PyTorch's own kind, with its history; one that wraps others stays as it is."""
    if type(tensor) is torch.Tensor or is_traceable_wrapper_subclass(tensor):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.as_subclass(tensor, torch.Tensor)
