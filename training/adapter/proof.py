"""The proof of a gradient: the slope of the loss along it, by finite differences."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable

import torch

from ...diffusion.faults import NotFinite
from .backward import Backward

# dtype in which a model computes: (step, tolerance) of its slope. Rounding asks for large steps, and those
# bend it. Right gradients of the tests' tiny models were off by up to 0.0006 in float32, 0.016 in float16,
# and 0.09 in bfloat16 (0.2 before the retry).
PRECISION = {
    torch.float64: (1e-3, 2e-3),
    torch.float32: (1e-3, 2e-3),
    torch.float16: (1e-2, 0.03),
    torch.bfloat16: (3e-2, 0.1),
}


def slope(
    compute: Callable[[], torch.Tensor],
    parameters: Iterable[torch.Tensor],
    step: float = PRECISION[torch.float32][0],
    backward: Backward | None = None,
) -> float:
    """Finite-difference slope along the gradient g, over |g|: 1.000 when g is right.

    (f(w + h g/|g|) - f(w - h g/|g|)) / (2 h |g|), h = step * min(|f| / |g|, |w|)

    One backward and two forwards. backward: a `Backward`, or None for autograd's own. compute must give the
    same at every call, and must not hide a part of f from g: a target made by the same weights under no_grad
    (stop-gradient) gives another slope. The parameters (float32) and their .grad are left as they were, bit
    for bit. Raises ArithmeticError for a gradient of 0 or one that isn't finite.
    """
    with _line(compute, parameters, backward) as along:
        return along(step)


def check_gradient(
    compute: Callable[[], torch.Tensor],
    parameters: Iterable[torch.Tensor],
    dtype: torch.dtype = torch.float32,
    backward: Backward | None = None,
) -> float:
    """`slope`, which must be 1 within the tolerance of `PRECISION`.

    Raises ArithmeticError where the gradient is proved wrong.

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
    # a central difference's error goes with the square of its step, which falls by 3
    extrapolated = [(9 * b - a) / 8 for a, b in pairs]
    value = min(extrapolated, key=lambda v: abs(v - 1))
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
        "Fewstep: the gradient couldn't be checked: its slopes %.4f, %.4f and %.4f at falling steps "
        "contradict each other.",
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
    return math.hypot(*(float(torch.linalg.vector_norm(t)) for t in tensors))
