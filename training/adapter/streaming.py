"""Exact gradients through layers whose weights don't stay: they are fetched again in the backward pass.

A layer whose weights are kept elsewhere gets them for the length of a call, in memory that the next layer, or
whatever else needs room, takes over afterwards. Autograd saves a view of that memory, and no version counter
notices what is written there later: the gradient would come out wrong without a word. So such a layer keeps
its inputs alone, and is called again in the backward pass.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from .checkpointing import flatten, recomputed
from .kinds import copied, detached


def fetched_again(forward: Callable) -> Callable:
    """`forward` of a layer whose weights want no gradient, called once more in the backward pass. A call
    whose inputs want none saves nothing, and is left as it is.
    """
    again = recomputed(forward, private_copies, draws=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        _, tensors = flatten((args, kwargs))
        return (again if any(t.requires_grad for t in tensors) else forward)(*args, **kwargs)

    return run


def private_copies() -> contextlib.AbstractContextManager:
    """Within: what autograd saves is copied at once, while the layer still holds its weights. Its memory may
    be gone between the call and the gradient too.
    """
    return torch.autograd.graph.saved_tensors_hooks(_copy, _same)


def _copy(tensor):
    return copied(detached(tensor))


def _same(tensor):
    return tensor
