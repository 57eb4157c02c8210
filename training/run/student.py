"""One model in all its roles.

With the adapter on the model is the student, with the averaged adapter it is what is kept (and what a run may
learn from), with the adapter off and guidance it is the teacher; with another adapter it is what a method
trains beside the student (`methods.method.Role`). No weights are copied: roles are views on one model.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch

from ...diffusion.faults import Message, NoMemory
from .. import methods
from ..adapter.backward import Backward
from ..adapter.lora import Lora, Turn
from ..adapter.warm_start import warm_start
from ..methods.method import STUDENT, Answer, Pull
from ..models.denoiser import Denoiser, InParts, guided
from ..trajectories.sampling import SHARD, in_chunks, teacher_samples
from .average import Average
from .config import DistilConfig

Adapter = Sequence[torch.Tensor]  # weights as `Lora.parameters` gives them


def adapter_for(
    denoiser: Denoiser,
    config: DistilConfig,
    warm: dict | None = None,
    turn: Turn | None = None,
    number: int = 0,
) -> Lora:
    """The adapter that a config asks for, attached to the model, on the device where it computes.

    warm: tensors of a LoRA file to begin with; turn, number: of a further one on the same model. Raises
    ValueError when they do not fit, and then leaves nothing attached.
    """
    lora = Lora(
        denoiser.module,
        config.rank,
        config.alpha,
        config.include,
        config.exclude,
        seed=(config.seed + number) % 2**64,
        device=getattr(denoiser, "device", None),
        turn=turn,
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


def too_large(config: DistilConfig) -> NoMemory:
    """What is raised where one sample is too much for a pass with a gradient."""
    advice = Message("Choose") if config.checkpointing else Message("Switch checkpointing on, or choose")
    return NoMemory(
        "One sample of the model must fit into memory with its gradient, and does not. {advice} a smaller "
        "latent or a lower rank than {rank}.",
        advice=advice,
        rank=config.rank,
    )


class Pulls:
    """How x moves the model's answer at that guidance: J^T v, for as many samples at once as memory takes.

    Guidance's two answers are pulled through one after the other, so that a pass holds no more samples than
    one of training: with c and u their Jacobians, J^T v = cfg c^T v + (1 - cfg) u^T v.
    """

    def __init__(self, denoiser: Denoiser, config: DistilConfig, cfg: float):
        self.parts = InParts(denoiser, config.micro or config.batch, functools.partial(too_large, config))
        self.backward, self.cfg = backward_of(denoiser, [], config.checkpointing), cfg

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """The gradient in x (B, ...) of the sum of the answer times v (B, ...)."""
        if self.cfg == 1:
            return self.parts.each(self._of, x, sigma, condition, v)
        none = torch.full_like(condition, -1)
        conditional = self.parts.each(self._of, x, sigma, condition, v)
        return self.cfg * conditional + (1 - self.cfg) * self.parts.each(self._of, x, sigma, none, v)

    def _of(self, denoiser, x, sigma, condition, v):
        leaf = x.detach().clone().requires_grad_()
        self.backward.parameters = [leaf]
        with torch.enable_grad():
            self.backward(lambda: (denoiser(leaf, sigma, condition) * v).sum())
        return leaf.grad


class Student:
    """Who answers, as `(x, sigma (B,), condition (B,)) -> x0`: `student`, `target`, `teacher`, and every
    adapter by its name.

    lora       the adapter that is trained
    adapters   it, under `STUDENT`, and those of the method's roles by their names
    asked      the model where nothing is trained: for as many samples at once as memory takes
    warmed     whether the adapter began with a LoRA file's weights
    """

    def __init__(self, denoiser: Denoiser, config: DistilConfig, warm: dict | None = None):
        self.denoiser, self.config, self.warmed = denoiser, config, warm is not None
        self.asked = InParts(denoiser, config.chunk)
        self._pulls = {cfg: Pulls(denoiser, config, cfg) for cfg in (1.0, config.cfg)}
        self.lora = adapter_for(denoiser, config, warm)
        self.adapters = {STUDENT: self.lora}
        try:
            for number, role in enumerate(methods.get(config.method).roles(config), 1):
                self.adapters[role.name] = adapter_for(denoiser, config, turn=self.lora.turn, number=number)
            self.average = Average(self.lora.parameters())
        except BaseException:
            self._remove()
            raise

    @property
    def averaged(self) -> list[torch.Tensor]:
        """The adapter's running average, in the computer's memory."""
        return self.average.values

    def student(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The model with the adapter."""
        return self.answer(STUDENT)(x, sigma, condition)

    def answer(self, name: str) -> Answer:
        """The model with the adapter of that name."""
        lora = self.adapters[name]

        def answer(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            with lora.on():
                return self.denoiser(x, sigma, condition)

        return answer

    @property
    def asked_by_name(self) -> dict[str, Answer]:
        """The model with each adapter, and the teacher, without a gradient: for as many samples at once as
        memory takes.
        """

        def of(lora: Lora) -> Answer:
            def answer(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
                with torch.no_grad(), lora.on():
                    return self.asked(x, sigma, condition)

            return answer

        return {"teacher": self.teacher_in_parts, **{name: of(lora) for name, lora in self.adapters.items()}}

    @property
    def pulled_by_name(self) -> dict[str, Pull]:
        """Of each of these, (x, sigma, condition, v) -> the gradient in x of the sum of its answer times v,
        exact on any architecture; no other tensor gets one.
        """

        def of(acts: Callable[[], AbstractContextManager], cfg: float = 1.0) -> Pull:
            def pull(*asked: torch.Tensor) -> torch.Tensor:
                with acts():
                    return self._pulls[cfg](*asked)

            return pull

        # weights that are lent get no gradient
        lent = {name: functools.partial(a.using, a.parameters()) for name, a in self.adapters.items()}
        return {
            "teacher": of(self.lora.off, self.config.cfg),
            **{name: of(acts) for name, acts in lent.items()},
        }

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
        """Take the adapters off the model."""
        self._remove()
        self.average.close()

    def _remove(self):
        for lora in self.adapters.values():
            lora.remove()
