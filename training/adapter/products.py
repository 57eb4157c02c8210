"""The arithmetic of a LoRA: y + (alpha / rank) up(down(x)) in two products, of which the second adds.

The products run in the dtype of y, on weights that were cast once (`Casts`). Their gradients go to the
float32 weights themselves, where several calls of one layer add up without rounding to half precision.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .kinds import plain

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the dimensions of what goes in


class Casts:
    """An adapter's weights as its layers take them, alpha / rank folded into up; each is made when it is
    asked for, and kept until somebody writes over the weight that it comes from.

    values: [down, up, down, up, ...], float32, wherever they lie
    """

    def __init__(self, values: Sequence[torch.Tensor], scale: float):
        self.values, self.scale = values, scale
        self._kept: dict[int, tuple] = {}

    def pair(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(down, up) of that layer in the dtype of `like` and on its device, without a graph.

        (in, rank), (rank, out) of a linear layer, (rank, in, k...), (out, rank, 1...) of a convolution
        """
        down, up = self.values[2 * number], self.values[2 * number + 1]
        made_of = like.dtype, like.device, down._version, up._version
        kept = self._kept.get(number)
        if kept is None or kept[0] != made_of:
            self._kept[number] = kept = made_of, self._cast(down, up, like)
        return kept[1]

    def forget(self) -> None:
        """Make every cast anew: for whoever writes where no version counter sees it, as 8-bit optimisers do
        in kernels of their own.
        """
        self._kept.clear()

    def _cast(self, down, up, like):
        # a call may come from inference mode, whose tensors autograd would refuse later
        with torch.inference_mode(False), torch.no_grad():
            down, up = (w.detach().to(like.device, non_blocking=True) for w in (down, up))
            down, up = down.to(like.dtype), (up if self.scale == 1 else up * self.scale).to(like.dtype)
            return (down.T, up.T) if down.ndim == 2 else (down, up[(..., *(None,) * (down.ndim - 2))])


def added(
    layer: nn.Module,
    linear: bool,
    x: torch.Tensor,
    y: torch.Tensor,
    weights: Sequence[torch.Tensor | None],
    casts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """y (B, ..., out) or (B, out, ...) of a layer, with the adapter's up(down(x)) added.

    weights: float32 (down, up), which get the gradient, or None where none is wanted; casts: those of
    `Casts.pair`, whose `up` has `scale` in it.
    """
    kind = y.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if cast else contextlib.nullcontext():
        product = _Linear if linear else _Convolution
        x, y = plain(x), plain(y)
        return product.apply(y, x.to(y.dtype), *weights, casts, scale, layer)


class _Linear(torch.autograd.Function):
    """y + x down up with rows (..., in) of x; casts: down (in, r), up (r, out)."""

    @staticmethod
    def forward(ctx, y, x, down, up, casts, scale, layer):
        ctx.casts, ctx.scale = casts, scale
        inner = x.reshape(-1, x.shape[-1]) @ casts[0]
        ctx.save_for_backward(x, inner)
        # a view would forbid the model to write over it
        return torch.ops.aten._unsafe_view(torch.addmm(y.reshape(-1, y.shape[-1]), inner, casts[1]), y.shape)

    @staticmethod
    def backward(ctx, grad):
        x, inner = ctx.saved_tensors
        down, up = ctx.casts
        _, wants_x, wants_down, wants_up, *_ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        inner_grad = rows @ up.T
        return (
            grad,
            (inner_grad @ down.T).view(x.shape) if wants_x else None,
            _scaled(inner_grad.T @ x.reshape(-1, x.shape[-1])) if wants_down else None,
            _scaled(rows.T @ inner, ctx.scale) if wants_up else None,
            *(None, None, None),
        )


class _Convolution(torch.autograd.Function):
    """y + up(down(x)), where `down` has the kernel, stride and padding of the layer, and `up` a kernel of 1.

    The layer's own way of convolving is asked, which others may have replaced; so its gradient is autograd's,
    from products that are made again rather than kept.
    """

    @staticmethod
    def forward(ctx, y, x, down, up, casts, scale, layer):
        ctx.casts, ctx.scale, ctx.layer = casts, scale, layer
        ctx.save_for_backward(x)
        return y + _convolved(layer, x, *casts)

    @staticmethod
    def backward(ctx, grad):
        wants = ctx.needs_input_grad[1:4]
        leaves = [t.detach().requires_grad_(w) for t, w in zip((*ctx.saved_tensors, *ctx.casts), wants)]
        found = iter(())
        if any(wants):
            with torch.enable_grad():
                change = _convolved(ctx.layer, *leaves)
            found = iter(torch.autograd.grad(change, [t for t in leaves if t.requires_grad], grad))
        return (
            grad,
            next(found) if wants[0] else None,
            _scaled(next(found)) if wants[1] else None,
            _scaled(next(found).flatten(1), ctx.scale) if wants[2] else None,
            *(None, None, None),
        )


def _convolved(layer, x, down, up):
    return CONVOLUTIONS[up.ndim](layer._conv_forward(x, down, None), up)


def _scaled(gradient, scale=1.0):
    """The gradient, float32 or more, of a weight that was multiplied by `scale` before it was cast."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient if scale == 1 else gradient.mul_(scale)
