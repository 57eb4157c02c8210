"""The memory that autograd's graph holds, weighed without holding it: an account of its own, beside that of
`training.adapter.live_bytes`. Imported by name.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.checkpointing import flatten, replaced, unflatten
from fewstep.training.adapter.exact_graph import storage_of
from torch.multiprocessing.reductions import StorageWeakRef


def held_for(backward: Backward, compute: Callable[[], torch.Tensor]) -> int:
    """Bytes that the graph of `compute()` holds for it, with its checkpointing and streaming."""
    module, parameters = backward.module, backward.parameters
    weights = [*module.parameters(), *module.buffers(), *parameters]
    return saved_bytes(compute, weights, backward.blocks, backward.streamed())[1]


def saved_bytes(
    compute: Callable[[], torch.Tensor],
    weights: Iterable[torch.Tensor] = (),
    checkpointed: Sequence[torch.nn.Module] = (),
    streamed: Sequence[torch.nn.Module] = (),
) -> tuple[torch.Tensor, int]:
    """(loss, bytes that autograd holds for the backward pass of `compute()`), without holding them.

    weights: tensors that are in memory anyway and don't count; nn.Parameters never do. Storages count once,
    however many operations saved them, and once more for every time that they were written over and saved
    again (`exact_graph`). checkpointed: modules that are recomputed; their inputs count, and the largest
    one's inside, which is the peak. streamed: layers that are called again with their weights fetched anew;
    inside such a layer and inside a recomputed block there may be one at a time.
    """
    weights = {storage_of(w) for w in weights}
    counts, largest, widest = [_Count(weights)], 0, 0

    def weighed(forward):
        def run(*args, **kwargs):
            nonlocal largest
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            out, inside = _called(forward, args, kwargs, counts, weights)
            largest = max(largest, inside)
            return out

        return run

    def fetched(forward):
        def run(*args, **kwargs):
            nonlocal widest
            _, tensors = flatten((args, kwargs))
            if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
                return forward(*args, **kwargs)
            out, inside = _called(forward, args, kwargs, counts, weights)
            widest = max(widest, inside)
            return out

        return run

    with counts[0].hooks(), replaced(streamed, fetched), replaced(checkpointed, weighed):
        loss = compute().detach()
    return loss, counts[0].bytes + largest + widest


def _called(forward, args, kwargs, counts, weights):
    """(its outcome, bytes saved inside) of a module of which only the inputs count in the innermost of the
    counts that are open.
    """
    template, tensors = flatten((args, kwargs))
    for tensor in tensors:
        counts[-1].add(tensor)
    counts.append(_Count(weights))
    try:
        with counts[-1].hooks():
            args, kwargs = unflatten(template, [t.clone() for t in tensors])
            out = forward(*args, **kwargs)
    finally:
        inside = counts.pop()
    return out, inside.bytes


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
