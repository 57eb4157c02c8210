"""What one pass of a model takes of memory, beside what lies there anyway: measured on one sample and on two.

    bytes(n) = one + (n - 1) (two - one)

What does not grow with the samples (casts of the LoRA, the gradient, a streamed layer's weights) is in `one`.
A pass whose blocks are recomputed is run as it is: if that finds no memory, nothing does. One whose graph is
held whole is run forward without holding it (`LiveBytes.keep`), and the backward pass reckoned with.
"""

import dataclasses
from collections.abc import Callable

import torch

from ..adapter.backward import Backward
from ..adapter.checkpointing import replaced
from ..adapter.live_bytes import LiveBytes
from ..adapter.lora import Lora
from ..adapter.streaming import fetched_again
from ..models.denoiser import Denoiser
from ..models.memory_errors import is_out_of_memory, recover
from .student import backward_of

Loss = Callable[[], torch.Tensor]
NEVER = 1 << 60  # bytes: more than any budget but none


@dataclasses.dataclass(frozen=True)
class Pass:
    """Bytes that one pass of the model takes at its worst moment, for one sample and for two."""

    one: int
    two: int

    def bytes(self, samples: int) -> int:
        """Bytes for that many samples."""
        return self.one + (samples - 1) * max(self.two - self.one, 0)


def held(compute: Loss, backward: Backward) -> int:
    """Bytes at the worst moment of a pass whose graph is held whole; nothing is held for it.

    backward: without checkpointing. What its streamed layers fetch once more is reckoned with.
    """
    live = LiveBytes()
    with (
        torch.autograd.graph.saved_tensors_hooks(live.keep, lambda _: None),
        replaced(backward.streamed(), fetched_again),
        live,
    ):
        compute().detach()
    return live.most


def taken(compute: Loss, backward: Backward) -> int:
    """Bytes at the worst moment of a forward and a backward pass, which are run."""
    kept = [p.grad for p in backward.parameters]
    try:
        for p in backward.parameters:
            p.grad = None
        with LiveBytes() as live:
            backward(compute)
        return live.most
    finally:
        for p, grad in zip(backward.parameters, kept):
            p.grad = grad


@torch.no_grad()
def asked(compute: Loss) -> int:
    """Bytes at the worst moment of a forward pass where nothing is trained, which is run."""
    with LiveBytes() as live:
        compute()
    return live.most


def weigh(denoiser: Denoiser, lora: Lora, loss: Callable[[int], Loss], most: int) -> dict[str, Pass]:
    """{"whole", "recomputed", "answer"}: the `Pass` of each way to run the model with that LoRA.

    loss: number of samples -> their loss; most: samples that will be wanted at once. Of more than one, two
    are tried; where they find no memory they are taken to be twice one.
    """
    parameters = lora.parameters()
    whole, recomputed = (backward_of(denoiser, parameters, checkpointing=c) for c in (False, True))
    ways = {
        "answer": asked,
        "recomputed": lambda compute: taken(compute, recomputed),
        "whole": lambda compute: held(compute, whole),
    }
    found = {}
    for name, way in ways.items():
        one = two = way(loss(1))
        if most > 1:
            two = _tried(way, loss(2)) or 2 * one
        found[name] = Pass(one, two)
    return found


def _tried(way, compute):
    """What a way takes; 0 where it finds no memory."""
    try:
        return way(compute)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    recover()
    return 0
