"""Exact gradients on any architecture, their proof, and the memory they hold.

Flux, LTXV and their kin write over activations that autograd has saved (`x += ...`, `x[:, n:] += ...`). A
plain graph notices by version counters and refuses. Checkpointing with saved-tensor hooks does not notice: it
recomputes from what was written later, without a word. PyTorch's `allow_mutation_on_saved_tensors` misses
writes through slices, and cannot be nested.

Here a saved tensor is copied at the moment when something is about to write over its storage (`exact_graph`),
and a block is recomputed on copies of its inputs (`checkpointing`). A model that never writes has a plain
graph, and no such cost.
"""

import contextlib
import logging
import math
import weakref
from collections import defaultdict

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ...diffusion.faults import Failed, NotFinite
from .checkpointing import blocks, flatten, recomputed, replaced, unflatten

# dtype in which a model computes: (step, tolerance) of its slope. Rounding asks for large steps, and those
# bend it. Right gradients of the tests' tiny models were off by up to 0.0006 in float32, 0.016 in float16,
# and 0.09 in bfloat16 (0.2 before the retry).
PRECISION = {
    torch.float64: (1e-3, 2e-3),
    torch.float32: (1e-3, 2e-3),
    torch.float16: (1e-2, 0.03),
    torch.bfloat16: (3e-2, 0.1),
}


class Backward:
    """Loss and gradient of a function of `module`, whatever the module writes over.

    parameters: the leaves that want gradients; they may lie outside the module (a LoRA's). checkpointing:
    keep only the inputs of the module's `blocks`, and compute each block again in the backward pass.
    """

    def __init__(self, module, parameters, checkpointing=False):
        self.module, self.parameters = module, list(parameters)
        self.blocks = blocks(module) if checkpointing else []
        self.overwrites = False  # the model was seen to write over saved activations

    def __call__(self, compute):
        """`compute()` () without its graph; its gradient is added to the parameters' .grad.

        compute is called once, or twice when the model is first seen to write over saved activations. When it
        raises, .grad is as it was.
        """
        kept = [p.grad for p in self.parameters]
        try:
            loss = self._attempt(compute)
        except BaseException:
            for p, grad in zip(self.parameters, kept):
                p.grad = grad
            raise
        for p, grad in zip(self.parameters, kept):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
        return loss

    def _attempt(self, compute):
        if not self.overwrites:
            try:
                return self._run(compute, contextlib.nullcontext)
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                self.overwrites = True
        return self._run(
            compute, exact_graph
        )  # outside `except`, which would keep the failed graph in memory

    def _run(self, compute, graph):
        for p in self.parameters:
            p.grad = None
        with graph(), replaced(self.blocks, lambda forward: recomputed(forward, graph)):
            loss = compute()
            loss.backward()
        return loss.detach()

    def saved_bytes(self, compute):
        """(loss, bytes) of `saved_bytes` for this module, its parameters and its checkpointing."""
        weights = [*self.module.parameters(), *self.module.buffers(), *self.parameters]
        return saved_bytes(compute, weights, self.blocks)


# ---- a graph that survives writes --------------------------------------------------------------


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
    """Looks at every operation; before one writes to a storage, what autograd saved of that storage is
    copied.
    """

    def __init__(self):
        super().__init__()
        self.saved = defaultdict(weakref.WeakSet)  # storage -> its _Saved that are no copies yet

    def pack(self, tensor):
        saved = _Saved(tensor)
        self.saved[_storage(tensor)].add(
            saved
        )  # while one lives, so does its storage: the address is its own
        return saved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = args[i] if i < len(args) else kwargs.get(argument.name)
                    for tensor in written if isinstance(written, (list, tuple)) else [written]:
                        if torch.is_tensor(tensor):
                            self._copy(_storage(tensor))
        return func(*args, **kwargs)

    def _copy(self, storage):
        copies = {}
        for saved in self.saved.pop(storage, ()):
            t = saved.tensor
            place = t.dtype, t.storage_offset(), t.shape, t.stride()
            if place not in copies:
                copies[place] = t.clone()
            saved.put(copies[place])


def _storage(tensor):
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def exact_graph():
    """Within, forward and backward: tensors saved for backward keep their values. May be nested."""
    mode = _CopyOnWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, _Saved.get), mode:
        yield


# ---- memory ------------------------------------------------------------------------------------


def saved_bytes(compute, weights=(), checkpointed=()):
    """(loss, bytes that autograd holds for the backward pass of `compute()`), without holding them.

    weights: tensors that are in memory anyway and don't count; nn.Parameters never do. Storages count once,
    however many operations saved them, and once more for every time that they were written over and saved
    again (`exact_graph`). checkpointed: modules that are recomputed; their inputs count, and the largest
    one's inside, which is the peak.
    """
    weights = {_storage(w) for w in weights}
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
        storage, version, key = tensor.untyped_storage(), tensor._version, _storage(tensor)
        root = tensor if tensor._base is None else tensor._base
        if isinstance(root, torch.nn.Parameter) or key in self.weights:
            return
        if key not in self.seen:
            self.seen[key] = (
                StorageWeakRef(storage),
                {version},
            )  # the reference keeps the address from being used again
            self.bytes += storage.nbytes()
        elif version not in self.seen[key][1]:
            self.seen[key][1].add(version)
            self.bytes += tensor.numel() * tensor.element_size()


# ---- proof -------------------------------------------------------------------------------------


def slope(compute, parameters, step=PRECISION[torch.float32][0], backward=None):
    """Finite-difference slope along the gradient g, over |g|: 1.000 when g is right.

    (f(w + h g/|g|) - f(w - h g/|g|)) / (2 h |g|), h = step * min(|f| / |g|, |w|)

    One backward and two forwards. backward: a `Backward`, or None for autograd's own. compute must give the
    same at every call, and must not hide a part of f from g: a target made by the same weights under no_grad
    (stop-gradient) gives another slope. The parameters (float32) and their .grad are left as they were, to
    the bit. Raises ArithmeticError for a gradient of 0 or one that isn't finite.
    """
    with _line(compute, parameters, backward) as along:
        return along(step)


def check_gradient(compute, parameters, dtype=torch.float32, backward=None):
    """`slope`, which must be 1 within the tolerance of `PRECISION`. Raises ArithmeticError where the gradient
    is proved wrong.

    dtype: in which the model computes. A first slope that is off is taken again with a larger and a smaller
    step, and both pairs of neighbours are extrapolated to step 0. Where both are off, but the slopes of each
    pair differ by more than half of that, nothing is proved: that is logged, and no error. A slope is a
    projection: 1 doesn't prove every component.
    """
    step, tolerance = PRECISION.get(dtype, PRECISION[torch.bfloat16])
    with _line(compute, parameters, backward) as along:
        first = along(step)
        if abs(first - 1) <= tolerance:
            return first
        large, small = along(3 * step), along(step / 3)
    pairs = (large, first), (first, small)
    value = min(
        ((9 * b - a) / 8 for a, b in pairs), key=lambda v: abs(v - 1)
    )  # a central difference's error goes with step^2
    if abs(value - 1) <= tolerance:
        return value
    if min(abs(a - b) for a, b in pairs) <= abs(value - 1) / 2:
        raise NotFinite(
            "The gradient must have slope 1 along itself, within {tolerance:g}; it has {value:.4f}: it is "
            "wrong, and training would go astray. Take off what changes the model's attention or compiles "
            "it, or run the model in float32 without checkpointing.",
            tolerance=tolerance,
            value=value,
        )
    logging.warning(
        "Fewstep: the gradient couldn't be checked: its slopes %.4f, %.4f and %.4f at falling steps contradict each "
        "other.",
        large,
        first,
        small,
    )
    return value


@contextlib.contextmanager
def _line(compute, parameters, backward):
    """Yields step -> slope on the line through the parameters along their gradient; puts everything back."""
    parameters = list(parameters)
    kept = [(p, p.grad, p.detach().clone()) for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        if backward is None:
            loss = compute()
            loss.backward()
        else:
            loss = backward(compute)
        loss = float(loss.detach())
        moved = [(p, w, p.grad) for p, _, w in kept if p.grad is not None]
        norm, size = _norm(g for _, _, g in moved), _norm(w for _, _, w in kept)
        if not 0 < norm < math.inf:
            raise NotFinite(
                "The gradient must be finite and not 0, its norm is {norm:g}. Check that the parameters "
                "are used, and that the loss neither overflows nor vanishes in the model's dtype.",
                norm=norm,
            )

        @torch.no_grad()
        def at(distance):
            for p, w, g in moved:
                p.copy_(w).add_(g, alpha=distance / norm)
            return float(compute())

        def along(step):
            h = step * min(filter(None, (abs(loss) / norm, size)), default=1.0)
            return (at(h) - at(-h)) / (2 * h * norm)

        yield along
    finally:
        with torch.no_grad():
            for p, grad, w in kept:
                p.copy_(w)
                p.grad = grad


def _norm(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
