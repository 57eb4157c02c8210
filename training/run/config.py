"""What a distillation run is asked to do: one frozen dataclass for nodes, command line and files alike."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from ...diffusion.faults import BadValue
from ...diffusion.frozen import normalise
from ...diffusion.weightings import WEIGHTINGS
from .. import methods
from ..formats.checks import (
    check_choice,
    check_flag,
    check_number,
    check_texts,
    check_whole,
    is_number,
)
from ..formats.precision import PRECISIONS
from ..formats.processes import checked, process_of
from ..methods import anchored
from ..methods.distances import METRICS
from ..methods.matching import BALANCES, DIVERGENCES, POINTS, REALS, SPANS
from ..methods.teacher_step import SOLVERS
from ..methods.times import DISTRIBUTIONS
from .optimisers import ADAMW, OPTIMISERS

TARGETS = ("stop-gradient", "ema")
CHOICES = {
    "target": TARGETS,
    "metric": tuple(METRICS),
    "solver": SOLVERS,
    "times": DISTRIBUTIONS,
    "weighting": ("none", *WEIGHTINGS),
    "real": REALS,
    "points": POINTS,
    "span": SPANS,
    "balance": BALANCES,
    "divergence": DIVERGENCES,
    "optimizer": OPTIMISERS,
    "lora_precision": tuple(PRECISIONS),
}
# whole numbers, least and most: more than anybody trains with, so that a slip of the keyboard does not ask
# for more memory than there is
WHOLE = {
    "steps": (1, 1000),
    "updates": (1, 10**8),
    "batch": (1, 10_000),
    "chunk": (1, 10_000),
    "images": (1, 10**6),
    "rank": (1, 4096),
    "rounds": (1, 1000),
    "intervals": (1, 100_000),
    "substeps": (1, 1000),
    "seed": (0, 2**64 - 1),
    "phases": (1, 1000),
    "image_steps": (1, 100_000),
    "between": (0, 1000),
    "micro": (1, 10_000),
    "lead": (1, 100),
    "real_updates": (1, 10**6),
    "fake_updates": (1, 10**6),
}
# None where they follow from others
FOLLOWING = ("phases", "image_steps", "micro", "real_updates", "fake_updates")
USUAL_LR = 2e-3  # of the demo teachers
RANGES = {
    "shift": (1e-3, 1e3),
    "cfg": (1, 100),
    "ema": (0, 1),
    "lr": (0, 1),
    "one_step": (0, 1),
    "from_percent": (0, 1),
    "to_percent": (0, 1),
    "anchor": (0, 1e3),
    "role_lr": (0, 1e3),
}
IMAGE_STEPS = 8  # of a trajectory, about; with guidance above STRONG twice as many, or it ends elsewhere
STRONG = 3.0
LEAST_PART = 0.01  # of the way, that a run can be of
# (updates, images) of a run, by how good it is to be
QUALITY = {"quick": (100, 64), "standard": (600, 480), "best": (1600, 960)}


def length_of(quality: str) -> dict[str, int]:
    """The settings of `DistilConfig` that a quality stands for."""
    return dict(zip(("updates", "images"), QUALITY[quality], strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """Settings of one run; raises ValueError for a value out of range, naming it.

    method       one of `methods.names()`; each file of `methods` says what its method does
    steps        sampling steps the LoRA is made for
    updates      optimiser updates
    batch        samples an update; micro: samples of one forward and backward pass, None for all of them
    chunk        samples of one call of the model where nothing is trained; lower it when memory runs out
    images       trajectories of the teacher, from noise to picture, used as data; no data set is needed
    image_steps  solver steps for each of them (second order), a multiple of `phases`, for phased of `steps`
                 too; None for about 8, with a CFG above 3 about 16. The first is halved
    shift        of the grid that teacher and student step along: above 1 more of it lies near the noise,
                 where it is decided what the picture will be
    cfg          guidance of the teacher, which the student learns to do without
    phases       parts of the trajectory within which the student is consistent (PCM) or straight, None for as
                 many as steps; 1: all the way
    between      points kept inside each phase, from which a phased student learns too; 0: only the phases'
                 starts
    one_step     share of each phased batch that learns the whole way from pure noise: sampling in 1 step
                 gains what sampling in as many steps as phases loses, as both ask the same there
    rounds       of reflow: after the first the pairs are the student's own of the round before
    intervals    of the grid whose neighbours a consistency method compares, rounded up to whole phases;
                 curriculum: begin with few
    solver       of the teacher's step there, in `substeps`
    target       whose prediction is learnt: the student's own without gradient, or its EMA's
    metric       "l2", "l1" or "pseudo-huber"
    times        how noise levels are drawn (`methods.times`); weighting: of the loss by noise level, a name
                 of `diffusion.weightings`
    ema          decay an update of the averaged adapter, which is the one saved
    process      of restoration: [{"kind": "pixelate", "largest": 8}, ...], kinds and options as in
                 `formats.processes.KINDS`
    rank, alpha  of the LoRA; alpha None means rank. include, exclude: patterns of layer names
    lr           peak learning rate of AdamW; it warms up over 5 % of the run and falls to 0 along a cosine.
                 None for what is usual for the method
    real         of the matching methods, what the student's pictures are to be distributed as: "pictures",
                 the teacher's own by an adapter that learns them in `real_updates` first (None: half of
                 updates), "guided", as the score of the base at `cfg` says, or "blended" by noise level
    points       what is matched at a step: "pictures", its prediction with fresh noise, or the next point of
                 the "trajectory"; None: pictures, where the run ends at them
    span         noise levels at which a step is matched: of its own "segment", or the "full" range above,
                 where the fake can't tell it from others
    balance      of samples: by their "distance" to the real score's picture, or as the "divergence" has it,
                 whose gradient the loss has with metric l2 only, and few samples near data weigh most
    divergence   whose gradient pulls: "kl", or "fisher", through the scores too (SiD); slower
    anchor       of anchored: weight of the first step's distance to the cached trajectory
    fake_updates of the score of the student's own pictures before the student's first update (None: an
                 eighth of updates); lead: the most of them before each later one, as many as make it true
    role_lr      learning rate of the two scores, in multiples of lr
    from_percent, to_percent   the part of the way that the LoRA is for, of the model's own time in the host's
                 convention (percent_to_sigma): 0 is the largest noise level, 1 the data
    optimizer    "adamw", or "adamw8bit": a quarter of its memory, by bitsandbytes or torchao, if installed
    lora_precision  of the saved LoRA: "fp16" halves the file and loses least, "bf16" is as small, "fp32"
                 keeps all; what the run itself learns on is float32
    checkpointing  recompute the model's blocks in the backward pass: less memory, a third slower
    """

    method: str = "phased"
    steps: int = 4
    updates: int = 720
    batch: int = 16
    micro: int | None = None
    chunk: int = 32
    images: int = 1400
    image_steps: int | None = None
    shift: float = 3.0
    cfg: float = 2.0
    phases: int | None = None
    between: int = 0
    one_step: float = 0.0
    rounds: int = 1
    intervals: int = 40
    curriculum: bool = False
    solver: str = "heun"
    substeps: int = 1
    target: str = "stop-gradient"
    metric: str = "l2"
    times: str = "uniform"
    weighting: str = "none"
    ema: float = 0.985
    process: tuple = ()
    rank: int = 16
    alpha: float | None = None
    include: tuple = ("*",)
    exclude: tuple = ()
    lr: float | None = None
    real: str = "pictures"
    points: str | None = None
    span: str = "segment"
    balance: str = "distance"
    divergence: str = "kl"
    anchor: float = 1.0
    real_updates: int | None = None
    fake_updates: int | None = None
    lead: int = 3
    role_lr: float = 10.0
    optimizer: str = ADAMW
    lora_precision: str = "fp16"
    checkpointing: bool = False
    seed: int = 0
    from_percent: float = 0.0
    to_percent: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in WHOLE.items():
            if name not in FOLLOWING or getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least, most)
        check_choice("method", self.method, methods.names(task=None))
        method = methods.get(self.method)
        if self.lr is None:
            normalise(self, lr=USUAL_LR * method.lr_share)
        for name, share in (("real_updates", 1 / 2), ("fake_updates", 1 / 8)):
            if getattr(self, name) is None:
                normalise(self, **{name: math.ceil(share * self.updates)})
        if self.points is None:
            normalise(self, points="pictures" if self.to_percent == 1 else "trajectory")
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, (low, high) in RANGES.items():
            check_number(name, getattr(self, name), low, high)
        for name in ("curriculum", "checkpointing"):
            check_flag(name, getattr(self, name))
        for name in ("lr", "role_lr"):
            if getattr(self, name) == 0:
                raise BadValue("{name} must be above 0, got 0: nothing would be learnt.", name=name)
        if self.alpha is not None and not (is_number(self.alpha) and self.alpha > 0):
            raise BadValue(
                "alpha must be a number above 0, got {got!r}. Leave it out for the rank.", got=self.alpha
            )
        patterns = {name: check_texts(name, getattr(self, name), "*attn*") for name in ("include", "exclude")}
        normalise(self, **patterns, process=_process_of(self))
        normalise(self, phases=self.steps if self.phases is None else self.phases)
        normalise(self, image_steps=_image_steps_of(self))
        _check_part(self)
        _check_method(self)

    @property
    def is_whole(self) -> bool:
        """Whether the run is of the whole way, from noise to picture."""
        return (self.from_percent, self.to_percent) == (0, 1)

    @property
    def restores(self) -> bool:
        """Whether the run learns to undo a process, another task than the teacher's."""
        return methods.restores(self.method)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DistilConfig":
        """The config of a JSON or TOML document; raises ValueError for an unknown setting, and as above."""
        known = [field.name for field in dataclasses.fields(cls)]
        odd = sorted(set(values) - set(known))
        if odd:
            raise BadValue(
                "the config must hold known settings, got {got}. Known: {known}.", got=odd, known=known
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` gives an equal config back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _check_method(config: DistilConfig) -> None:
    """Raise ValueError for steps, rounds or an anchor that the method can't have."""
    method = methods.get(config.method)
    if config.steps < method.least_steps:
        raise BadValue(
            "steps must be {least} or more for the method {method}, got {got}. In fewer choose matching.",
            least=method.least_steps,
            method=config.method,
            got=config.steps,
        )
    if config.method == anchored.METHOD.name and config.anchor == 0:
        raise BadValue(
            "anchor must be above 0 for the method {method}, got 0: its first step would learn nothing. To "
            "match that too, choose matching.",
            method=config.method,
        )
    if config.rounds > 1 and not method.in_rounds:
        raise BadValue(
            "rounds must be 1 for the method {method}, got {got}. Those that go on from their own pairs: "
            "{methods}.",
            method=config.method,
            got=config.rounds,
            methods=[name for name in methods.names() if methods.get(name).in_rounds],
        )


def _check_part(config: DistilConfig) -> None:
    if config.to_percent - config.from_percent < LEAST_PART:
        raise BadValue(
            "to_percent must be at least {least} above from_percent ({start:g}), got {got:g}.",
            least=LEAST_PART,
            start=config.from_percent,
            got=config.to_percent,
        )
    if methods.get(config.method).roles(config) and config.points == "pictures" and config.to_percent < 1:
        raise BadValue(
            "points must be trajectory for a run that does not end at the picture (to_percent {end:g}), got "
            "pictures.",
            end=config.to_percent,
        )
    if not config.is_whole and not methods.get(config.method).in_parts:
        raise BadValue(
            "from_percent and to_percent must be 0 and 1 for the method {method}, got {start:g} and {end:g}. "
            "Those that learn a part of the way: {methods}.",
            method=config.method,
            start=config.from_percent,
            end=config.to_percent,
            methods=[name for name in methods.names() if methods.get(name).in_parts],
        )


def _process_of(config: DistilConfig) -> tuple:
    """The forward process that a restorer learns to undo, with every option filled in; () for others."""
    if config.restores != bool(config.process):
        raise BadValue(
            "process must be given for the method restoration and for no other, got {got!r} for {method}.",
            got=config.process,
            method=config.method,
        )
    if not config.process:
        return ()
    process = checked(config.process)
    process_of(process)
    if config.weighting != "none":
        raise BadValue("weighting must be none for the method restoration, got {got}.", got=config.weighting)
    return process


def guided_by(config: DistilConfig, strength: float) -> DistilConfig:
    """`config` for a teacher whose guidance is that strong, whatever its `cfg`: with as many solver steps of
    a trajectory as that takes.
    """
    return dataclasses.replace(config, image_steps=_usual_image_steps(config, strength))


def _usual_image_steps(config, strength):
    """About 8, with strong guidance about 16: a multiple of what a trajectory must have."""
    usual, least = IMAGE_STEPS if strength <= STRONG else 2 * IMAGE_STEPS, _least_image_steps(config)
    return least * math.ceil(usual / least)


def _least_image_steps(config):
    method = methods.get(config.method)
    return math.lcm(config.phases, config.steps) if method.on_the_grid else config.phases


def _image_steps_of(config: DistilConfig) -> int:
    """Solver steps of a trajectory: as given, or what is usual."""
    method, least = methods.get(config.method), _least_image_steps(config)
    if method.on_the_grid and method.in_phases and config.phases > config.steps:
        raise BadValue(  # no level of the student's would be in a longer phase
            "phases must be at most steps ({steps}), got {got}.", steps=config.steps, got=config.phases
        )
    steps = config.image_steps
    if steps is None:
        steps = _usual_image_steps(config, config.cfg)
    check_whole("image_steps", steps, *WHOLE["image_steps"])
    if steps % least:
        raise BadValue(
            "image_steps must be a multiple of phases ({phases}) and, for phased, of steps ({steps}), "
            "got {got}. Leave it out.",
            phases=config.phases,
            steps=config.steps,
            got=steps,
        )
    return steps
