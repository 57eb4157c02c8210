"""One update of an adapter after another: gradients of a batch in micro-batches, AdamW, and what may go wrong
on the way. Each adapter of a run has a descent of its own, and is the one that acts while it learns.

- Where memory runs out the micro-batch is halved and the same batch begun again: the effective batch stays.
- A loss or gradient that is not finite leaves the update out and is counted. The loss carries `scale`, a
  power of 2 that keeps gradients within half precision, and each such update lowers it; MOST_SKIPPED in a row
  end the run.
"""

import math
from collections.abc import Callable

import torch

from ...diffusion.faults import Message, NotFinite
from ..adapter.lora import Lora
from ..methods.method import Batch
from ..methods.times import warm_up_then_cosine
from ..models.denoiser import Denoiser
from ..models.memory_errors import is_out_of_memory, recover
from ..ranks.ranks import ALONE, Ranks
from . import optimisers
from .config import DistilConfig
from .student import backward_of, too_large

MOST_SKIPPED = 10
OPTIMISER = "optimiser."  # before the names of its tensors in a saved state
NUMBERS = ("scale", "micro", "done", "skipped", "in_a_row")  # of a saved state


def usual_rate(config: DistilConfig, done: int) -> float:
    """The student's learning rate: it rises to `lr` over 5 % of the run, then falls to 0 along a cosine."""
    return config.lr * warm_up_then_cosine(done, config.updates)


class Descent:
    """The optimiser's side of one adapter: AdamW's state, the loss's scale, micro-batch, counts of updates.

    ranks: of several processes each takes its share of a batch, in micro-batches of its own; all step alike
    momentum, role: of its optimiser; whether it learns at `role_lr` times `lr`
    """

    def __init__(
        self,
        denoiser: Denoiser,
        lora: Lora,
        config: DistilConfig,
        ranks: Ranks = ALONE,
        momentum: float = optimisers.MOMENTUM,
        role: bool = False,
    ):
        self.lora, self.config, self.ranks, self.role = lora, config, ranks, role
        parameters = lora.parameters()
        self.optimiser = optimisers.optimiser(config.optimizer, parameters, config.lr, momentum)
        self.backward = backward_of(denoiser, parameters, config.checkpointing)
        # of a model in pieces, whose passes all processes make together (`adapter.sharding`)
        self.most_parts = getattr(denoiser, "most_parts", None)
        self.before_backward = getattr(denoiser, "before_backward", lambda: None)
        numbers_in_a_batch = config.batch * math.prod(denoiser.shape)
        self.scale = 2.0 ** math.floor(math.log2(numbers_in_a_batch))
        self.micro = min(config.micro or config.batch, config.batch)
        self.done = self.skipped = self.in_a_row = 0

    def gradient(self, batch: Batch, loss_of: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """Leave a batch's gradient, times `scale`, in the adapter; returns its losses (B,), not weighted.

        batch: a dict of (B, ...).
        loss_of(part of it) -> (b,). Cut off it leaves none. Raises MemoryError when one sample is too much.
        """
        count, share = len(batch["weight"]), self.ranks.share(batch)
        try:
            losses = self._of_share(share, loss_of, count)
            return self.ranks.summed(self.lora.parameters(), losses, count, self.done)
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Leave no gradient in the adapter."""
        self.optimiser.zero_grad(set_to_none=True)

    def _of_share(self, share, loss_of, count):
        while True:
            try:
                return self._in_parts(share, loss_of, count)
            except BaseException as error:
                self.forget()
                if not is_out_of_memory(error) or self.most_parts:
                    raise
                if min(self.micro, len(share["weight"])) == 1:
                    raise too_large(self.config) from error
            self.micro = math.ceil(min(self.micro, len(share["weight"])) / 2)
            recover()

    def step(self, losses: torch.Tensor, rate: float) -> None:
        """Step along the gradient of those losses at that learning rate; raises ArithmeticError when too many
        weren't finite.
        """
        self._descend(float(losses.mean()), rate)
        self.done += 1

    def _in_parts(self, share, loss_of, count):
        found = [self._part(part, loss_of, count)[:rows] for part, rows in self._parts(share)]
        return torch.cat(found)

    def _parts(self, share):
        """(part of the share, how many of its rows count), as many as the micro-batch asks for. Where all
        processes have to make as many, one with fewer samples makes a pass whose weight is 0.
        """
        rows = torch.arange(len(share["weight"]))
        parts = rows.split(self.micro)
        if self.most_parts:
            parts = rows.tensor_split(self.most_parts(len(parts)))
        for part in parts:
            if len(part):
                yield {name: values[part] for name, values in share.items()}, len(part)
            else:
                yield {**{name: values[:1] for name, values in share.items()}, "weight": torch.zeros(1)}, 0

    def _part(self, part, loss_of, count):
        losses = []

        def compute():
            each = loss_of(part)
            losses[:] = [each.detach()]
            self.before_backward()
            return (each * part["weight"].to(each)).sum() / count * self.scale

        with self.lora.on():  # in the backward pass too, where blocks are computed again
            self.backward(compute)
        return losses[0].float().cpu()

    def _descend(self, loss, rate):
        """One step of the optimiser, or none."""
        for p in self.lora.parameters():
            if p.grad is not None:
                p.grad.div_(self.scale)
        norm = torch.nn.utils.clip_grad_norm_(self.lora.parameters(), 1.0)
        finite = norm.isfinite() and math.isfinite(loss)
        if finite:
            optimisers.step(self.optimiser, rate)
            self.lora.written()
        self.forget()
        if finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        self.scale = max(1.0, self.scale / 16)
        if self.in_a_row >= MOST_SKIPPED:
            raise _not_finite(self, math.isfinite(loss))

    def rest(self) -> None:
        """Give up what only further updates want."""
        self.optimiser.state.clear()

    # ---- its state -----------------------------------------------------------------------------

    def state(self, finished: bool = False) -> tuple[dict[str, torch.Tensor], dict]:
        """({name: tensor}, {name: number}) of adapter and optimiser, for `restore`; finished: without the
        optimiser.
        """
        tensors = {f"adapter.{i}": p.detach() for i, p in enumerate(self.lora.parameters())}
        kept = {} if finished else optimisers.state(self.optimiser, self.lora.parameters())
        tensors |= {f"{OPTIMISER}{name}": tensor for name, tensor in kept.items()}
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return tensors, numbers

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict) -> None:
        """Take over what `state` gave; of a role in a run that is over there are numbers alone."""
        if tensors:
            parameters = self.lora.parameters()
            kept = {n.removeprefix(OPTIMISER): t for n, t in tensors.items() if n.startswith(OPTIMISER)}
            optimisers.restore(self.optimiser, parameters, kept)
            self.lora.load([tensors[f"adapter.{i}"] for i in range(len(parameters))])
        most = self.micro
        for name in NUMBERS:
            setattr(self, name, numbers[name])
        self.micro = min(most, self.micro)  # memory may be less today
        self.in_a_row = 0  # whoever resumes gets new patience


def _not_finite(descent, loss_is_finite):
    """What is raised where too many updates in a row were not finite."""
    if 0 < len(descent.ranks.odd) < descent.ranks.world:
        return NotFinite(
            "Loss and gradient must be finite; {in_a_row} updates in a row were not, of process {ranks} "
            "alone. Check its card, and that its weights are those of the others. What was learnt before is "
            "kept.",
            in_a_row=descent.in_a_row,
            ranks=list(descent.ranks.odd),
        )
    return NotFinite(
        "Loss and gradient must be finite; {in_a_row} updates in a row were not, because {what} overflowed. "
        "Lower {rate}, or run the model in float32 or bfloat16. What was learnt before is kept.",
        in_a_row=descent.in_a_row,
        what="the gradient" if loss_is_finite else "the model's output",
        rate=_rate(descent.config, descent.role),
    )


def _rate(config, role):
    """The settings by which that adapter learns so fast, and what they are."""
    if role:
        return Message("role_lr ({role_lr:g} times lr) or lr ({lr:g})", role_lr=config.role_lr, lr=config.lr)
    return Message("lr ({lr:g})", lr=config.lr)
