"""One model in all its roles.

With the adapter on the model is the student, with the averaged adapter it is what is kept (and what a run may
learn from), with the adapter off and guidance it is the teacher. No weights are copied: roles are views on
one model.
"""

from collections.abc import Iterable, Sequence

import torch

from ..adapter.backward import Backward
from ..adapter.lora import Lora
from ..adapter.warm_start import warm_start
from ..models.denoiser import Denoiser, InParts, guided
from ..trajectories.sampling import SHARD, in_chunks, teacher_samples
from .average import Average
from .config import DistilConfig

Adapter = Sequence[torch.Tensor]  # weights as `Lora.parameters` gives them


def adapter_for(denoiser: Denoiser, config: DistilConfig, warm: dict | None = None) -> Lora:
    """The adapter that a config asks for, attached to the model, on the device where it computes.

    warm: tensors of a LoRA file to begin with. Raises ValueError when they do not fit, and then leaves
    nothing attached.
    """
    lora = Lora(
        denoiser.module,
        config.rank,
        config.alpha,
        config.include,
        config.exclude,
        seed=config.seed,
        device=getattr(denoiser, "device", None),
    )
    try:
        if warm is not None:
            warm_start(lora, warm)
    except BaseException:
        lora.remove()
        raise
    return lora


def backward_of(denoiser: Denoiser, parameters: Iterable[torch.Tensor], checkpointing: bool) -> Backward:
    """Loss and gradient through that model, wherever its weights live."""
    streamed = getattr(denoiser, "streamed", list)
    return Backward(denoiser.module, parameters, checkpointing, streamed)


class Student:
    """Who answers, as `(x, sigma (B,), condition (B,)) -> x0`: `student`, `target` and `teacher`.

    lora       the adapter that is trained
    asked      the model where nothing is trained: for as many samples at once as memory takes
    """

    def __init__(self, denoiser: Denoiser, config: DistilConfig, warm: dict | None = None):
        self.denoiser, self.config = denoiser, config
        self.asked = InParts(denoiser, config.chunk)
        self.lora = adapter_for(denoiser, config, warm)
        self.average = Average(self.lora.parameters())

    @property
    def averaged(self) -> list[torch.Tensor]:
        """The adapter's running average, in the computer's memory."""
        return self.average.values

    def student(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The model with the adapter."""
        return self.denoiser(x, sigma, condition)

    def target(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What the student learns from: itself, or its average."""
        if self.config.target == "stop-gradient":
            return self.student(x, sigma, condition)
        with self.lora.using(self.averaged, keep=True):
            return self.denoiser(x, sigma, condition)

    def teacher(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The model without the adapter, guided."""
        with self.lora.off():
            return guided(self.denoiser, x, sigma, condition, self.config.cfg)

    def teacher_in_parts(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`teacher`, for as many samples at once as memory takes."""
        with self.lora.off():
            return guided(self.asked, x, sigma, condition, self.config.cfg)

    def follow(self, done: int) -> None:
        """Move the average towards the adapter after `done` updates: a_k += (1 - d)(p_k - a_k) with decay
        d = min(ema, (1 + done)/(10 + done)).
        """
        decay = min(self.config.ema, (1 + done) / (10 + done))
        self.average.follow(1 - decay)

    @torch.no_grad()
    def sample(
        self,
        noise: torch.Tensor,
        condition: torch.Tensor,
        sigmas: torch.Tensor,
        *,
        adapter: Adapter,
        churn: float = 0.0,
        seed: int = 0,
    ) -> torch.Tensor:
        """Images (B, ...) of those adapter weights, unguided, from unit noise (B, ...); model space."""
        with self.lora.using(adapter):
            return in_chunks(self.asked, noise, condition, 1.0, sigmas, chunk=SHARD, churn=churn, seed=seed)

    def sample_base(
        self, noise: torch.Tensor, condition: torch.Tensor, steps: int | torch.Tensor, order: int = 1
    ) -> torch.Tensor:
        """Images (B, ...) of the model itself, guided; steps: how many at uniform times, or a grid."""
        config = self.config
        return teacher_samples(
            self.lora, self.asked, noise, condition, config.cfg, steps, order=order, chunk=SHARD
        )

    def close(self) -> None:
        """Take the adapter off the model."""
        self.lora.remove()
        self.average.close()
