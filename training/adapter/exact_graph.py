"""A graph that survives writes over what it has saved.

Flux, LTXV and their kin write over activations that autograd has saved (`x += ...`, `x[:, n:] += ...`). A
plain graph notices by version counters and refuses. Checkpointing with saved-tensor hooks does not notice: it
recomputes from what was written later, without a word. PyTorch's `allow_mutation_on_saved_tensors` misses
writes through slices, and cannot be nested.

Within `exact_graph` a saved tensor is copied at the moment when something is about to write over its storage.
It looks at every operation, 30 microseconds each; `overwrites` learns from one such call where to copy.

A plain graph of such a model, dropped without a backward pass, is never freed: PyTorch keeps the saved tensor
itself, whose history since the write holds the node that saved it. What a hook saves has no history, so here
and in `overwrites` a call that fails leaves nothing behind.
"""

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...diffusion.faults import Failed
from .kinds import copied, detached


@contextlib.contextmanager
def exact_graph(mark: Callable[[], "Mark | None"] = lambda: None) -> Iterator[None]:
    """Within, forward and backward: tensors saved for backward keep their values. May be nested.

    mark: called for each tensor that is saved; what it gives is told when that is written over.
    """
    mode = _CopyOnWrite(mark)
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, Saved.get), mode:
        yield


class Mark:
    """Whether one saved tensor was written over."""

    written = False


def storage_of(tensor: torch.Tensor) -> int:
    """The address by which a tensor's storage is known, its own for as long as the storage lives."""
    return tensor.untyped_storage()._cdata


class Saved:
    """A tensor that autograd saved, or its copy once something wrote over it."""

    def __init__(self, tensor: torch.Tensor, mark: Mark | None = None):
        self.mark = mark
        self.put(detached(tensor))  # shares storage and version counter; no cycle through the graph

    def put(self, tensor: torch.Tensor) -> None:
        """Keep this."""
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> torch.Tensor:
        """What was kept; raises RuntimeError where it was written over unseen."""
        if self.tensor._version != self.version:
            raise Failed(
                "A tensor that is needed for the gradient was written over where PyTorch shows no "
                "operation (in another thread or a compiled part). Train without that optimisation of the "
                "model.",
            )
        return self.tensor


class _CopyOnWrite(TorchDispatchMode):
    """Looks at every operation; copies what autograd saved of a storage before one writes to it."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark
        # storage -> its Saved that are no copies yet; they keep it alive, so no other takes its address
        self.saved = defaultdict(weakref.WeakSet)

    def pack(self, tensor):
        saved = Saved(tensor, self.mark())
        self.saved[storage_of(tensor)].add(saved)
        return saved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in written(func._schema, args, kwargs):
                self._copy(storage_of(tensor))
        # what an operation makes of other kinds of tensors is decided above this place, as without the mode
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def _copy(self, storage):
        copies = {}
        for saved in self.saved.pop(storage, ()):
            t = saved.tensor
            place = t.dtype, t.storage_offset(), t.shape, t.stride()
            if place not in copies:
                with torch.inference_mode(False):  # the write may come from there; autograd reads the copy
                    copies[place] = copied(t)
            saved.put(copies[place])
            if saved.mark is not None:
                saved.mark.written = True


def written(
    schema: torch._C.FunctionSchema, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[torch.Tensor]:
    """The tensors that an operation is about to write to."""
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if torch.is_tensor(tensor):
                yield tensor
