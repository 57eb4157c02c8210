"""A graph that survives writes over what it has saved.

Flux, LTXV and their kin write over activations that autograd has saved (`x += ...`, `x[:, n:] += ...`). A
plain graph notices by version counters and refuses. Checkpointing with saved-tensor hooks does not notice: it
recomputes from what was written later, without a word. PyTorch's `allow_mutation_on_saved_tensors` misses
writes through slices, and cannot be nested.

Within `exact_graph` a saved tensor is copied at the moment when something is about to write over its storage.
"""

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...diffusion.faults import Failed


@contextlib.contextmanager
def exact_graph() -> Iterator[None]:
    """Within, forward and backward: tensors saved for backward keep their values. May be nested."""
    mode = _CopyOnWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, _Saved.get), mode:
        yield


def storage_of(tensor: torch.Tensor) -> int:
    """The address by which a tensor's storage is known, its own for as long as the storage lives."""
    return tensor.untyped_storage()._cdata


class _Saved:
    """A tensor that autograd saved, or its copy once something wrote over it."""

    def __init__(self, tensor):
        self.put(tensor.detach())  # shares storage and version counter; no cycle through the graph

    def put(self, tensor):
        self.tensor, self.version = tensor, tensor._version

    def get(self):
        if self.tensor._version != self.version:
            raise Failed(
                "A tensor that is needed for the gradient was written over where PyTorch shows no "
                "operation (in another thread or a compiled part). Train without that optimisation of the "
                "model.",
            )
        return self.tensor


class _CopyOnWrite(TorchDispatchMode):
    """Looks at every operation; copies what autograd saved of a storage before one writes to it."""

    def __init__(self):
        super().__init__()
        # storage -> its _Saved that are no copies yet; they keep it alive, so no other takes its address
        self.saved = defaultdict(weakref.WeakSet)

    def pack(self, tensor):
        saved = _Saved(tensor)
        self.saved[storage_of(tensor)].add(saved)
        return saved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in _written(func._schema, args, kwargs):
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
                copies[place] = t.clone()
            saved.put(copies[place])


def _written(schema, args, kwargs):
    """The tensors that an operation is about to write to."""
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if torch.is_tensor(tensor):
                yield tensor
