"""The host's fused kernels while a model is trained.

comfy_kitchen's operators have no gradient, and some models call them in training too. Each has a formula in
plain PyTorch beside it, which has one: that takes the operator's place wherever a gradient is asked for.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import comfy.quant_ops
import torch

# where the formulas that are smooth are: those of quantisation round, and rounding has no gradient of its own
SMOOTH = ("backends.eager.rope", "backends.eager.adaln")


@contextlib.contextmanager
def with_gradients() -> Iterator[None]:
    """Within: the smooth operators of the host's kernel library have a gradient where one is asked for."""
    library = getattr(comfy.quant_ops, "ck", None)
    formulas = _formulas(library)
    before = {name: getattr(library, name) for name in formulas}
    try:
        for name, formula in formulas.items():
            setattr(library, name, _either(before[name], formula))
        yield
    finally:
        for name, operator in before.items():
            setattr(library, name, operator)


def _formulas(library: Any) -> dict[str, Callable]:
    """{operator's name: its formula} of those that make a new tensor; older hosts have fewer, or none."""
    modules = [sys.modules.get(f"{getattr(library, '__name__', '')}.{name}") for name in SMOOTH]
    found = dict(pair for module in modules for pair in inspect.getmembers(module, inspect.isfunction))
    ours = (name for name in found if not name.startswith("_") and not name.endswith("_"))
    return {name: found[name] for name in ours if callable(getattr(library, name, None))}


def _either(operator: Callable, formula: Callable) -> Callable:
    """The formula where a gradient is asked for, else the operator."""

    @functools.wraps(operator)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if not torch.is_grad_enabled() or not any(torch.is_tensor(v) and v.requires_grad for v in given):
            return operator(*args, **kwargs)
        # a small weight may lie in a buffer that the host fills anew before the backward pass
        return formula(*map(_kept, args), **{key: _kept(value) for key, value in kwargs.items()})

    return call


def _kept(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) and value.ndim == 1 and not value.requires_grad else value
