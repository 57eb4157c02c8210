"""The proof of a gradient, sure in the precision in which the model computes.

Rounding hides a wrong gradient from finite differences: in bfloat16 the slope of a right one was .54 to .92
on tiny models. So the proof is in two parts, each of which rounding leaves no doubt about.

    1. The run's own gradient against one by copies, with the very same arithmetic: every block is computed
       again in the backward pass, its weights asked for anew, and whatever autograd saves is copied at once.
       Nothing that is moved, taken away or written over between the two passes can reach that one. Both round
       alike, and differ by the order in which gradients are summed: for each tensor by no more than half of
       the digits, sqrt(u) with u the unit roundoff, or by u of the whole gradient's norm.
    2. The gradient by copies against the loss itself, in float32: differences along random directions, which
       see what the first part can't, a part of the model that passes no gradient on. A direction along the
       gradient would not: what is missing stands at right angles to what is there.

A model that already computes in float32 needs no second gradient for that.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator

import torch

from ...diffusion.faults import NotFinite
from ..models.devices import as_double
from ..models.memory_errors import is_out_of_memory, recover
from .checkpointing import blocks, recomputed, replaced
from .streaming import fetched_again, private_copies

Compute = Callable[[], torch.Tensor]
STEP = 1e-3  # of the slope along the gradient
DIRECTIONS = 3  # random ones: that all of them miss what is wrong has a chance of about (TOLERANCE / share)^3
MOVED = 1e-2  # how far along them, as a share of each tensor's own size
TOLERANCE = 2e-3  # of such a difference, as a share of the gradient's norm; right ones were off by up to 5e-4
SHAKEN = 0.1  # of the usual start of a layer: what a tensor of nothing but zeros has meanwhile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """How far a proved gradient is off, as shares of what would be refused.

    copies      the run's own from the one by copies
    directions  that one from the loss's differences

    None where memory was too little, or the model can't compute in float32.
    """

    copies: float | None
    directions: float | None


def slope(
    compute: Compute,
    parameters: Iterable[torch.Tensor],
    step: float = STEP,
    backward: Callable[[Compute], torch.Tensor] | None = None,
) -> float:
    """Finite-difference slope along the gradient g, over |g|: 1.000 when g is right, in float32.

    (f(w + h g/|g|) - f(w - h g/|g|)) / (2 h |g|), h = step * min(|f| / |g|, |w|)

    One backward and two forwards. backward: a `Backward`, or None for autograd's own. compute must give the
    same at every call, and must not hide a part of f from g: a target made by the same weights under no_grad
    (stop-gradient) gives another slope. The parameters (float32) and their .grad are left as they were, bit
    for bit. Raises ArithmeticError for a gradient of 0 or one that isn't finite.
    """
    with _kept(parameters) as parameters:
        loss, gradient = _gradient(backward or _plain, parameters, compute)
        norm, size = _checked_norm(gradient), _norm(parameters)
        h = step * min(filter(None, (abs(loss) / norm, size)), default=1.0)
        return _difference(compute, parameters, [g / norm for g in gradient], h) / norm


def check_gradient(
    compute: Compute,
    parameters: Iterable[torch.Tensor],
    dtype: torch.dtype = torch.float32,
    backward: Callable[[Compute], torch.Tensor] | None = None,
    in_float32: Callable[[], contextlib.AbstractContextManager] | None = None,
) -> Proof:
    """Prove the gradient that `backward` leaves, as said above: some 17 forward passes, 13 in float32.

    dtype: in which the model computes; in_float32: a context in which it computes in float32 instead, None
    where there is none: a model of lower precision is then held against the copies alone. Parameters that are
    0 are something small meanwhile, or half of a new LoRA would have no gradient. compute, backward, and what
    is left as it was: as of `slope`. Raises ArithmeticError where the gradient is wrong, which names the
    cause. Where there is memory for a run but not for its proof, that is logged.
    """
    backward = backward or _plain
    with _kept(parameters) as parameters:
        _shake(parameters)
        case = _Case(compute, parameters, getattr(backward, "module", None), dtype)
        if not getattr(backward, "seen", True):
            case.gradient(backward)  # its first call is made in another way than those of a run
        loss, found = case.gradient(backward)
        try:
            by_copies, exact = case.by_copies(loss, found)
            copies = _off(found, exact, dtype)
            if not copies <= 1:
                raise case.changed_meanwhile(backward, found, exact)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _log(error)
            return Proof(copies=None, directions=None)
        try:
            return Proof(copies=copies, directions=case.off_the_loss(by_copies, exact, in_float32))
        except (RuntimeError, TypeError, MemoryError) as error:
            _log(error)
            return Proof(copies=copies, directions=None)


class _Case:
    """A loss, the adapter's parameters, the module in which blocks and layers are, the model's dtype."""

    def __init__(self, compute, parameters, module, dtype):
        self.compute, self.parameters, self.module, self.dtype = compute, parameters, module, dtype

    def gradient(self, backward):
        """(loss, its gradient by that backward pass on the CPU)"""
        return _gradient(backward, self.parameters, self.compute)

    def by_copies(self, loss, found):
        """(a backward pass that nothing reaches between the two passes, the gradient by it).

        loss, found: of the run's own. A block that writes over what others are to see does something else on
        copies of what it gets. So before a gradient is called wrong, it is held against one for which the
        blocks were left alone and everything was copied, unless there is no memory for that.
        """
        by_blocks = functools.partial(_copied, blocks(self.module) if self.module else [])
        value, gradient = self.gradient(by_blocks)
        same = math.isclose(value, loss, rel_tol=4 * unit_roundoff(self.dtype))
        if same and _off(found, gradient, self.dtype) <= 1:
            return by_blocks, gradient
        whole = functools.partial(_copied, [])
        try:
            exact = self.gradient(whole)[1]
        except (RuntimeError, MemoryError) as error:
            if not (same and is_out_of_memory(error)):
                raise
            recover()
            return by_blocks, gradient
        _checked_norm(exact)
        return whole, exact

    def changed_meanwhile(self, backward, found, exact):
        """What to raise where the run's own gradient is not the one by copies: weights are the cause where
        fetching all of them again mends it.
        """
        error = _norm(f - e for f, e in zip(found, exact)) / _norm(exact)
        layers = _with_weights(self.module) if self.module else []
        try:
            with replaced(layers, fetched_again):
                mended = _off(self.gradient(backward)[1], exact, self.dtype) <= 1
        except RuntimeError:
            mended = False
        if mended:
            return NotFinite(
                "The gradient must be that of the weights which the layers computed with, and is off by "
                "{error:.2g} of its size: weights are moved or taken away before the backward pass. Set "
                "residency to resident, or start ComfyUI with --disable-dynamic-vram.",
                error=error,
            )
        return NotFinite(
            "The gradient must be that of the values which the layers computed with, and is off by "
            "{error:.2g} of its size: something writes over them before the backward pass, where PyTorch "
            "does not see it. Take off what changes the model's attention or compiles it.",
            error=error,
        )

    def off_the_loss(self, backward, gradient, in_float32):
        """How far the gradient by copies is off the loss's differences in float32, as a share of what would
        be refused; None where the model can't compute in that.
        """
        lower = unit_roundoff(self.dtype) > unit_roundoff(torch.float32)
        if lower and in_float32 is None:
            return None
        with in_float32() if lower else contextlib.nullcontext(), _all_digits():
            if lower:
                gradient = self.gradient(backward)[1]
            sizes = [_norm([p]) / math.sqrt(p.numel()) for p in self.parameters]
            norm = _norm(g * size for g, size in zip(gradient, sizes))
            worst = max(self._off_along(d, gradient) for d in _directions(self.parameters, sizes)) / norm
        if worst <= TOLERANCE:
            return worst / TOLERANCE
        raise NotFinite(
            "The gradient must be the slope of the loss in every direction, and is off by {error:.2g} of its "
            "size in one, in float32: a part of the model cuts it off, rounds, or has no backward pass. Take "
            "off what changes the model's attention or compiles it.",
            error=worst,
        )

    def _off_along(self, direction, gradient):
        """Distance of slope and difference; where that is much, the least of three steps."""
        wanted = sum(_dot(d, g) for d, g in zip(direction, gradient))
        least, enough = math.inf, TOLERANCE * _norm(d * g for d, g in zip(direction, gradient))
        for h in (MOVED, MOVED / 3, 3 * MOVED):
            off = abs(_difference(self.compute, self.parameters, direction, h) - wanted)
            least = min(least, off)
            if least <= enough:
                break
        return least


def _with_weights(module):
    """Its layers; a block with parameters of its own is none, for all that it does would be made again."""
    return [m for m in module.modules() if any(True for _ in m.parameters()) and not m._modules]


def unit_roundoff(dtype: torch.dtype) -> float:
    """u, half of the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def _off(found, exact, dtype):
    """How far one gradient is from another of the same arithmetic, as a share of what rounding explains."""
    u, norm, worst = unit_roundoff(dtype), _norm(exact), 0.0
    if norm == 0:
        return math.inf
    for f, e in zip(found, exact):
        share = _norm([f - e]) / max(math.sqrt(u) * _norm([e]), u * norm)
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def _plain(compute):
    loss = compute()
    loss.backward()
    return loss.detach()


def _copied(modules, compute):
    with private_copies(), replaced(modules, lambda forward: recomputed(forward, private_copies)):
        return _plain(compute)


def _gradient(backward, parameters, compute):
    for p in parameters:
        p.grad = None
    loss = float(backward(compute).detach())
    gradient = [torch.zeros_like(p, device="cpu") if p.grad is None else p.grad.cpu() for p in parameters]
    for p in parameters:
        p.grad = None
    return loss, gradient


def _directions(parameters, sizes):
    """Random directions, each tensor's part as large as itself."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        yield [size * torch.randn(p.shape, generator=generator) for p, size in zip(parameters, sizes)]


@torch.no_grad()
def _difference(compute, parameters, direction, h):
    """(f(w + h d) - f(w - h d)) / 2h"""
    kept, values = [p.detach().cpu().clone() for p in parameters], []
    for step in (h, -h):
        for p, w, d in zip(parameters, kept, direction):
            p.copy_(w.add(d, alpha=step))
        values.append(float(compute()))
    for p, w in zip(parameters, kept):
        p.copy_(w)
    return (values[0] - values[1]) / (2 * h)


@torch.no_grad()
def _shake(parameters):
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        if not p.any():
            size = SHAKEN / math.sqrt(max(1, p[0].numel()))
            p.copy_(size * torch.randn(p.shape, generator=generator))


@contextlib.contextmanager
def _kept(parameters: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    parameters = list(parameters)
    kept = [(p, p.grad, p.detach().cpu().clone()) for p in parameters]
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for p, grad, w in kept:
                p.copy_(w)
                p.grad = grad


@contextlib.contextmanager
def _all_digits() -> Iterator[None]:
    """Within: float32 is float32 on a card too, whose convolutions else round to TF32."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, value in zip(settings, before):
            setting.allow_tf32 = value


def _log(error):
    """Go on after a failure that isn't the gradient's own."""
    logging.warning("Fewstep: the gradient couldn't be proved in full (%s).", error)
    if is_out_of_memory(error):
        recover()


def _checked_norm(gradient):
    norm = _norm(gradient)
    if not 0 < norm < math.inf:
        raise NotFinite(
            "The gradient must be finite and not 0, its norm is {norm:g}. Check that the parameters "
            "are used, and that the loss neither overflows nor vanishes in the model's dtype.",
            norm=norm,
        )
    return norm


def _dot(a, b):
    return float((as_double(a) * as_double(b)).sum())


def _norm(tensors):
    return math.sqrt(sum(float(as_double(t.detach()).square().sum()) for t in tensors))
