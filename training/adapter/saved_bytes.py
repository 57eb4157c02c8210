"""The memory that a graph holds, weighed without holding it."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .checkpointing import flatten, replaced, unflatten
from .exact_graph import storage_of


def saved_bytes(
    compute: Callable[[], torch.Tensor],
    weights: Iterable[torch.Tensor] = (),
    checkpointed: Sequence[torch.nn.Module] = (),
) -> tuple[torch.Tensor, int]:
    """(loss, bytes that autograd holds for the backward pass of `compute()`), without holding them.

    weights: tensors that are in memory anyway and don't count; nn.Parameters never do. Storages count once,
    however many operations saved them, and once more for every time that they were written over and saved
    again (`exact_graph`). checkpointed: modules that are recomputed; their inputs count, and the largest
    one's inside, which is the peak.
    """
    weights = {storage_of(w) for w in weights}
    total, largest = _Count(weights), 0

    def weighed(forward):
        def run(*args, **kwargs):
            nonlocal largest
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            template, tensors = flatten((args, kwargs))
            for tensor in tensors:
                total.add(tensor)
            inside = _Count(weights)
            with inside.hooks():
                args, kwargs = unflatten(template, [t.clone() for t in tensors])
                out = forward(*args, **kwargs)
            largest = max(largest, inside.bytes)
            return out

        return run

    with total.hooks(), replaced(checkpointed, weighed):
        loss = compute().detach()
    return loss, total.bytes + largest


class _Count:
    """Bytes of the tensors that autograd saves."""

    def __init__(self, weights):
        self.weights, self.seen, self.bytes = weights, {}, 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda _: None)

    def add(self, tensor):
        storage, version = tensor.untyped_storage(), tensor._version
        key = storage_of(tensor)
        root = tensor if tensor._base is None else tensor._base
        if isinstance(root, torch.nn.Parameter) or key in self.weights:
            return
        if key not in self.seen:
            # the reference keeps the address from being used again
            self.seen[key] = (StorageWeakRef(storage), {version})
            self.bytes += storage.nbytes()
        elif version not in self.seen[key][1]:
            self.seen[key][1].add(version)
            self.bytes += tensor.numel() * tensor.element_size()
