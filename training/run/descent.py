"""One update after another: gradients of a batch in micro-batches, AdamW, the averaged adapter, and what may
go wrong on the way.

- Where memory runs out the micro-batch is halved and the same batch begun again: the effective batch stays.
- A loss or gradient that is not finite leaves the update out and is counted. The loss carries `scale`, a
  power of 2 that keeps
  gradients within half precision, and each such update lowers it; MOST_SKIPPED in a row end the run.
"""

import math

import torch

from ...diffusion.faults import NotFinite
from ..adapter.backward import Backward
from ..models.memory_errors import is_out_of_memory

MOST_SKIPPED = 10


class Descent:
    """The optimiser's side of a run: `lora`, its average, AdamW's state, scale and micro-batch."""

    def __init__(self, lora, module, config, values):
        """values: numbers in a batch, for the loss's scale."""
        self.lora, self.config = lora, config
        self.averaged = [p.detach().clone() for p in lora.parameters()]
        self.optimiser = torch.optim.AdamW(
            lora.parameters(), lr=config.lr, weight_decay=0.0, betas=(0.9, 0.99)
        )
        self.backward = Backward(module, lora.parameters(), checkpointing=config.checkpointing)
        self.scale = 2.0 ** math.floor(math.log2(values))
        self.micro = min(config.micro or config.batch, config.batch)
        self.done = self.skipped = self.in_a_row = 0

    def gradient(self, batch, loss_of):
        """Leave the gradient, times `scale`, of a batch (dict of (B, ...)) in the adapter; returns the losses
        (B,), not weighted.

        loss_of(part of it) -> (b,). Cut off it leaves none. Raises MemoryError when one sample is too much.
        """
        count = len(batch["weight"])
        while True:
            try:
                return torch.cat(
                    [
                        self._part({k: v[i : i + self.micro] for k, v in batch.items()}, loss_of, count)
                        for i in range(0, count, self.micro)
                    ]
                )
            except BaseException as error:
                self.optimiser.zero_grad(set_to_none=True)
                if not is_out_of_memory(error):
                    raise
                if self.micro == 1:
                    raise MemoryError(
                        "One sample of the model must fit into memory with its gradient, and does not. "
                        + ("Choose" if self.config.checkpointing else "Switch checkpointing on, or choose")
                        + f" a smaller latent or a lower rank than {self.config.rank}."
                    ) from error
            self.micro = math.ceil(self.micro / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def step(self, losses):
        """Step along the gradient of a batch with those losses. Raises ArithmeticError when too many in a row
        were not finite.
        """
        self._descend(float(losses.mean()))
        self.done += 1
        decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for a, p in zip(self.averaged, self.lora.parameters()):
                a.lerp_(p, 1 - decay)

    def _part(self, part, loss_of, count):
        losses = []

        def compute():
            each = loss_of(part)
            losses[:] = [each.detach()]
            return (each * part["weight"].to(each)).sum() / count * self.scale

        self.backward(compute)
        return losses[0].float().cpu()

    def _descend(self, loss):
        """One step of the optimiser, or none."""
        for p in self.lora.parameters():
            if p.grad is not None:
                p.grad.div_(self.scale)
        norm = torch.nn.utils.clip_grad_norm_(self.lora.parameters(), 1.0)
        finite = norm.isfinite() and math.isfinite(loss)
        if finite:
            self.optimiser.param_groups[0]["lr"] = self.config.lr * self._lr_factor()
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if finite:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row, self.scale = (
            self.skipped + 1,
            self.in_a_row + 1,
            max(1.0, self.scale / 16),
        )
        if self.in_a_row >= MOST_SKIPPED:
            what = "the gradient" if math.isfinite(loss) else "the model's output"
            raise NotFinite(
                "Loss and gradient must be finite; {in_a_row} updates in a row were not, because {what} "
                "overflowed. Lower lr ({lr:g}), or run the model in float32 or bfloat16. What was learnt "
                "before is kept.",
                in_a_row=self.in_a_row,
                what=what,
                lr=self.config.lr,
            )

    def _lr_factor(self):
        """Warm-up over 5 % of the run, then a cosine to 0."""
        share = self.done / self.config.updates
        return min(1.0, (self.done + 1) / max(1, 0.05 * self.config.updates)) * (
            0.5 + 0.5 * math.cos(math.pi * share)
        )

    # ---- its state -----------------------------------------------------------------------------

    NUMBERS = ("scale", "micro", "done", "skipped", "in_a_row")

    def state(self):
        """({name: tensor}, {name: number}) from which `restore` goes on as if nothing had happened."""
        tensors = {f"adapter.{i}": p.detach() for i, p in enumerate(self.lora.parameters())}
        tensors |= {f"averaged.{i}": a for i, a in enumerate(self.averaged)}
        for i, p in enumerate(self.lora.parameters()):
            for name, value in self.optimiser.state.get(p, {}).items():
                tensors[f"optimiser.{i}.{name}"] = torch.as_tensor(value)
        return tensors, {name: getattr(self, name) for name in self.NUMBERS} | {
            "overwrites": self.backward.overwrites
        }

    def restore(self, tensors, numbers):
        """Take over what `state` gave."""
        parameters = self.lora.parameters()
        self.lora.load([tensors[f"adapter.{i}"] for i in range(len(parameters))])
        with torch.no_grad():
            for i, a in enumerate(self.averaged):
                a.copy_(tensors[f"averaged.{i}"])
        for i, p in enumerate(parameters):
            found = {
                n: tensors[f"optimiser.{i}.{n}"]
                for n in ("step", "exp_avg", "exp_avg_sq")
                if f"optimiser.{i}.{n}" in tensors
            }
            if found:
                self.optimiser.state[p] = {
                    n: v.clone() if n == "step" else v.to(p).clone() for n, v in found.items()
                }
        micro = self.micro
        for name in self.NUMBERS:
            setattr(self, name, numbers[name])
        self.micro, self.in_a_row = (
            min(micro, self.micro),
            0,
        )  # memory may be less today; whoever resumes gets new patience
        self.backward.overwrites = numbers["overwrites"]
