"""What one pass of a model takes of memory, beside what lies there anyway: measured on one sample, two and
three.

Each moment of a pass takes a + b n bytes for n samples, and the worst moment of one sample is seldom that of
many: what does not grow (casts of the LoRA, the gradient, a streamed layer's weights) is soon outgrown. So
the moments of two samples are held beside the same ones of three, and

    bytes(n) = max over moments of two + (n - 2) (three - two)

One sample is apart: of it PyTorch need not lay out anew what it must of more. A pass whose blocks are
recomputed is run as it is: if that finds no memory, nothing does. One whose graph is held whole is run
forward without holding it (`LiveBytes.keep`), until a plan takes it and runs it.
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
Way = Callable[[Loss], LiveBytes]  # to run a pass, with what it took
NEVER = 1 << 60  # bytes: more than any budget but none
MANY = 64  # samples of one pass, to which the worst moments are looked for


@dataclasses.dataclass(frozen=True)
class Pass:
    """Bytes that one pass of the model takes at its worst moment, for one sample and for two.

    moments: (bytes of two samples, bytes of each further one) of those that are the worst of more; without
    them each further one takes what the second did
    """

    one: int
    two: int
    moments: tuple[tuple[int, int], ...] = ()

    def bytes(self, samples: int) -> int:
        """Bytes for that many samples."""
        if samples < 2:
            return self.one
        moments = self.moments or ((self.two, max(self.two - self.one, 0)),)
        return max(self.one, self.two, *(two + (samples - 2) * each for two, each in moments))


def held(compute: Loss, backward: Backward) -> LiveBytes:
    """What a pass takes whose graph is held whole; nothing is held for it.

    backward: without checkpointing. What its streamed layers fetch once more is reckoned with.
    """
    live = LiveBytes()
    with (
        torch.autograd.graph.saved_tensors_hooks(live.keep, lambda _: None),
        replaced(backward.streamed(), fetched_again),
        live,
    ):
        compute().detach()
    return live


def taken(compute: Loss, backward: Backward) -> LiveBytes:
    """What a forward and a backward pass take, which are run."""
    kept = [p.grad for p in backward.parameters]
    try:
        for p in backward.parameters:
            p.grad = None
        with LiveBytes() as live:
            backward(compute)
        return live
    finally:
        for p, grad in zip(backward.parameters, kept):
            p.grad = grad


@torch.no_grad()
def asked(compute: Loss) -> LiveBytes:
    """What a forward pass takes where nothing is trained, which is run."""
    with LiveBytes() as live:
        compute()
    return live


def weigh(
    denoiser: Denoiser, lora: Lora, loss: Callable[[int], Loss], most: int, answers: int
) -> dict[str, Pass]:
    """{"whole", "recomputed", "answer"}: the `Pass` of each way to run the model with that LoRA.

    loss: number of samples -> their loss; most, answers: samples that will be wanted at once, in training and
    of the teacher.
    """
    parameters = lora.parameters()
    whole, recomputed = (backward_of(denoiser, parameters, checkpointing=c) for c in (False, True))
    return {
        "answer": passed(asked, loss, answers),
        "recomputed": passed(lambda compute: taken(compute, recomputed), loss, most),
        "whole": passed(lambda compute: held(compute, whole), loss, most),
    }


def passed(way: Way, loss: Callable[[int], Loss], most: int) -> Pass:
    """The `Pass` of a way, of which one sample is run, and two and three where `most` are so many; more than
    were run for want of either take `NEVER`.
    """
    one, two = way(loss(1)).most, _tried(way, loss, 2, most)
    if two is None:
        return Pass(one, NEVER)
    three = _tried(way, loss, 3, most)
    return Pass(one, two.most, ((two.most, NEVER),) if three is None else _worst(two, three))


def _tried(way, loss, samples, most):
    """What a way takes for so many samples; None where they are more than `most`, or find no memory."""
    if samples > most:
        return None
    try:
        return way(loss(samples))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    recover()
    return None


def _worst(two, three):
    """The moments that are the worst of some number of samples; of passes that went different ways, which
    can't be told apart, all as one.
    """
    if len(two.moments) != len(three.moments):
        return ((two.most, max(three.most - two.most, 0)),)
    largest: dict[int, int] = {}  # bytes of each further sample -> of two, at the worst of such moments
    for one, other in zip(two.moments, three.moments):
        each = max(other - one, 0)
        largest[each] = max(largest.get(each, 0), one)
    moments = [(at_two, each) for each, at_two in largest.items()]
    return tuple({max(moments, key=lambda m: m[0] + (n - 2) * m[1]) for n in range(2, MANY + 1)})
