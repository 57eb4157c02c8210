"""What a distillation run is asked to do: one frozen dataclass for nodes, command line and files alike."""

import dataclasses
import math

METHODS = ("consistency",)
TARGETS = ("stop-gradient", "ema")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Settings of one run; raises ValueError for a value out of range, naming it.

    steps        sampling steps the LoRA is made for
    updates      optimiser updates
    batch        samples an update
    chunk        samples of one call of the model where nothing is trained; lower it when memory runs out
    images       trajectories of the teacher, from noise to picture, used as data; no data set is needed
    image_steps  solver steps for each of them (second order), a multiple of `phases`; None for about 8. The first is
                 halved
    shift        of the grid that teacher and student step along: above 1 more of it lies near the noise, where it is decided
                 what the picture will be
    cfg          guidance of the teacher, which the student learns to do without
    phases       parts of the trajectory within which the student is consistent (PCM), None for as many as steps; 1:
                 consistency all the way
    between      points kept inside each phase, from which the student learns too; 0: only the phases' starts
    one_step     share of each batch that learns the whole way from pure noise, whatever the phases: for sampling in 1 step
    target       whose prediction is learnt: the student's own without gradient, or its EMA's
    metric       "l2" or "pseudo-huber"
    ema          decay an update of the averaged adapter, which is the one saved
    rank, alpha  of the LoRA; alpha None means rank
    lr           peak learning rate of AdamW; it warms up over 5 % of the run and falls to 0 along a cosine
    """

    method: str = "consistency"
    steps: int = 4
    updates: int = 720
    batch: int = 16
    chunk: int = 32
    images: int = 1400
    image_steps: int | None = None
    shift: float = 3.0
    cfg: float = 2.0
    phases: int | None = None
    between: int = 0
    one_step: float = 0.2
    target: str = "stop-gradient"
    metric: str = "l2"
    ema: float = 0.985
    rank: int = 16
    alpha: float | None = None
    lr: float = 2e-3
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "updates", "batch", "chunk", "images", "rank"):
            check_whole(name, getattr(self, name))
        for name, choices in (("method", METHODS), ("target", TARGETS), ("metric", ("l2", "pseudo-huber"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name, low, high in (("cfg", -math.inf, math.inf), ("ema", 0, 1), ("lr", 0, 1), ("shift", 0.1, 100),
                                ("one_step", 0, 1)):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{name} must be a finite number from {low} to {high}, got {value!r}.")
        if self.phases is None:
            object.__setattr__(self, "phases", self.steps)
        check_whole("phases", self.phases)
        if self.image_steps is None:
            object.__setattr__(self, "image_steps", self.phases * math.ceil(8 / self.phases))
        if self.image_steps < 1 or self.image_steps % self.phases:
            raise ValueError(f"image_steps must be a multiple of phases ({self.phases}), got {self.image_steps}.")
        check_whole("between", self.between, 0)


def check_whole(name, value, least=1):
    """Raise ValueError naming the setting when it is not a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}.")
