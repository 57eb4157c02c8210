"""Exact checkpointing: a block keeps nothing but its inputs and is computed again in the backward pass.

The block gets copies of its tensors both times, wherever they lie in its arguments (dicts, lists, tuples,
dataclasses), so that it may write over them; what it puts into such a container the caller doesn't see.
Random state (of the CPU and the device) and autocast are the same both times. Gradients of weights go
straight to their .grad: `torch.autograd.grad` doesn't see them.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..models.devices import dice
from .kinds import copied, detached

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The submodules worth recomputing: the smallest members of its lists and sequences that do a piece of
    work of their own.

    A member qualifies with two or more weight layers; it is taken apart where three quarters of them lie in
    members of its own that qualify (a UNet's level into residual and transformer blocks, but no mixture of
    experts into experts). Without any the module is one block: exact, and no smaller.
    """
    return list(dict.fromkeys(_blocks(module))) or [module]


def _blocks(module):
    found = []
    for child in module.children():
        inside, layers = _blocks(child), _layers(child)
        whole = isinstance(module, LISTS) and not isinstance(child, LISTS) and layers >= 2
        found += [child] if whole and sum(map(_layers, inside)) < 0.75 * layers else inside
    return found


def _layers(module):
    return sum(torch.is_tensor(w := getattr(m, "weight", None)) and w.ndim >= 2 for m in module.modules())


@contextlib.contextmanager
def replaced(modules: Sequence[nn.Module], wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    """Within: forward of each module is wrap(forward)."""
    own = [m.__dict__.get("forward") for m in modules]
    for m in modules:
        m.forward = wrap(m.forward)
    try:
        yield
    finally:
        for m, forward in zip(modules, own):
            del m.forward
            if forward is not None:
                m.forward = forward


def recomputed(
    forward: Callable, graph: Callable[[], contextlib.AbstractContextManager], draws: bool = True
) -> Callable:
    """`forward`, of which autograd keeps the inputs alone; graph: the context in which it is computed again;
    draws: whether it draws random numbers, which are then the same both times. Gradients of tensors inside it
    go straight to their .grad.
    """

    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        template, tensors = flatten((args, kwargs))
        device = tensors[0].device if tensors else torch.device("cpu")
        again = dice(device) if draws else contextlib.nullcontext
        autocast, form = _autocast(device.type), []

        def call(tensors):
            with autocast():
                args, kwargs = unflatten(template, [copied(t) for t in tensors])
                form[:], out = flatten([forward(*args, **kwargs)])
            return out

        # the block's weights may want gradients when none of its inputs does
        token = torch.empty(0, requires_grad=True)
        out = _Recomputed.apply(call, again, graph, token, *tensors)
        return unflatten(form, out)[0]

    return run


class _Recomputed(torch.autograd.Function):
    """call(tensors) -> tuple of tensors, without a graph in the forward pass."""

    @staticmethod
    def forward(ctx, call, again, graph, token, *tensors):
        ctx.call, ctx.again, ctx.graph = call, again, graph
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        # a view would forbid the caller to write over it
        return tuple(copied(t) if t._is_view() else t for t in call(tensors))

    @staticmethod
    def backward(ctx, *grads):
        needed = ctx.needs_input_grad[4:]
        leaves = [detached(t).requires_grad_(needs) for t, needs in zip(ctx.saved_tensors, needed)]
        with torch.enable_grad(), ctx.graph(), ctx.again():
            pairs = [(o, g) for o, g in zip(ctx.call(leaves), grads) if g is not None and o.requires_grad]
            if pairs:
                torch.autograd.backward(*zip(*pairs))
        return None, None, None, None, *(t.grad for t in leaves)


def _autocast(kind):
    """A context of the present autocast, with its cache off.

    From that cache PyTorch has handed out weights that were cast without a graph.
    """
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype, enabled, cache_enabled=False)


class _Place(int):
    """Where in a list of tensors one belongs."""


def flatten(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """(value with every tensor replaced by its place, the tensors)."""
    tensors = []

    def take(tensor):
        tensors.append(tensor)
        return _Place(len(tensors) - 1)

    return _map(value, torch.Tensor, take), tensors


def unflatten(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The inverse of `flatten`."""
    return _map(value, _Place, lambda place: tensors[place])


def _map(value, kind, f):
    """Copies of nested dicts, lists, tuples and dataclasses with f applied to each `kind` in them; other
    objects stay, and so do tuples in which nothing changes.
    """
    if isinstance(value, kind):
        return f(value)
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = _map(part, kind, f)
        return new
    if isinstance(value, (list, tuple)):
        parts = [_map(part, kind, f) for part in value]
        if type(value) is list:
            return parts
        if all(a is b for a, b in zip(parts, value)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            part = _map(getattr(value, field.name), kind, f)
            object.__setattr__(new, field.name, part)  # the dataclass may be frozen, but the copy is ours
        return new
    return value
