"""The memory that operations take, followed storage by storage: the same on every device and on fake tensors.

    with LiveBytes() as live:
        work()
    live.most

A storage counts from the operation that makes it until nothing refers to it any more. What was there before
(weights, the pages that they are lent in, a LoRA) is only looked at, and does not count. Of what operations
take for themselves while they run, a convolution's counts: the libraries lay out anew what goes into one.
"""

import array
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .exact_graph import storage_of, written


class LiveBytes(TorchDispatchMode):
    """Within: bytes of what operations have made and something still needs.

    now, most   at this moment, and at the worst one
    moments     at the worst one of each operation, in order; other numbers of samples have the same ones
    """

    def __init__(self):
        super().__init__()
        self.now = self._worst = 0
        self.moments = array.array("q")
        self._alive = {}  # storage -> (weak reference, bytes)
        self._kept = {}  # storage -> {place in it: bytes}

    @property
    def most(self) -> int:
        return max(self.moments, default=0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, self._worst = kwargs or {}, self.now
        if self._kept and func._schema.is_mutable:
            for tensor in written(func._schema, args, kwargs):
                self._add(sum(self._kept.pop(_storage(tensor), {}).values()))
        leaves = tree_leaves((args, kwargs))
        known = set(map(_storage, leaves))
        with torch._C.DisableTorchFunctionSubclass():  # as in `exact_graph`
            out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            storage = _storage(leaf)
            if storage is not None and storage not in known and storage not in self._alive:
                self._made(storage, leaf.untyped_storage())
        if "convolution" in func._schema.name:
            laid_out = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
            self._worst = max(self._worst, self.now + laid_out)
        self.moments.append(self._worst)
        return out

    def keep(self, tensor: torch.Tensor) -> None:
        """Count a tensor to the end, as if a graph held it: a hook for what autograd saves.

        Written over later it counts as the copy that `exact_graph` makes then.
        """
        storage = _storage(tensor)
        if storage in self._alive:
            place = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
            self._kept.setdefault(storage, {})[place] = tensor.numel() * tensor.element_size()

    def _made(self, key, storage):
        self._alive[key] = weakref.ref(storage, lambda _: self._gone(key)), storage.nbytes()
        self._add(storage.nbytes())

    def _gone(self, key):
        _, size = self._alive.pop(key)
        if self._kept.pop(key, None) is None:
            self.now -= size

    def _add(self, size):
        self.now += size
        self._worst = max(self._worst, self.now)


def _storage(value):
    """The address of a tensor's storage; None of what is no tensor or has none."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return storage_of(value)
    except (NotImplementedError, RuntimeError):
        return None
