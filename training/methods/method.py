"""A method: what it needs of the data, what it draws for a batch, and the loss of what was drawn.

A method is one frozen `Method` in a file of its own, registered by one line in `methods/__init__.py`. Its
functions see a `Context` and nothing else of the run. A batch is a dict of tensors (B, ...), so that it can
be cut into micro-batches: `draw` uses the context's generator, `loss` uses none.

A method may train other adapters on the same base beside the student, each a `Role`: a score of the student's
own pictures, say. What `draw` and `loss` of a role see is the same context, in which `student` is who learns.

`u` in [0, 1) says where in time each sample looks, from noise to data (`times`); below 0 where none was
drawn. Who answers follows the one convention of the backend, `(x, sigma (B,), condition (B,)) -> x0`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ...diffusion.paths import Path
from ..trajectories.data import Data
from .phases import Phases
from .times import Times, Weighting

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x, sigma, condition) -> x0
Pull = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, ...), (B, ...) -> (B,)
Batch = dict[str, torch.Tensor]


class Settings(Protocol):
    """What methods read of a run's settings (`run.config.DistilConfig` says what they mean)."""

    batch: int
    updates: int
    phases: int
    one_step: float
    intervals: int
    curriculum: bool
    solver: str
    substeps: int
    lr: float
    real: str
    points: str
    span: str
    balance: str
    divergence: str
    anchor: float
    lead: int
    real_updates: int
    fake_updates: int
    role_lr: float


class Destroyed(Protocol):
    """How the network is asked about pictures that a forward process has destroyed (`restoration.Seen`)."""

    process: object

    def ask(self, call: Callable, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """call(x, sigma (B,)) -> x0, asked at the times t of the process."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """All that a method sees of a run, at one update.

    path, shape, noise_scale   of the model (`models.denoiser.Denoiser`)
    phases                     the grid along which teacher and student step
    data                       what is learnt from
    generator                  of every random draw
    student, target, teacher   who answers: the adapter that learns, what the student learns from, and no
                               adapter but guidance
    asked                      who answers without gradient, for as many samples at once as memory takes: the
                               student, the teacher, and each `Role` of the method by its name
    metric                     distance of two predictions, for each sample
    kind                       the prediction that the loss compares, one of `diffusion.predictions.KINDS`
    times, weighting           how u is drawn, and what a loss at u weighs
    pulled                     how x moves what these answer: (x, sigma, condition, v) -> J^T v, the gradient
                               in x of the sum of answer times v
    done                       the student's updates so far
    turned                     at which of them its roles began to matter (`Method.turns`); None: not yet
    told                       running means of what the method tells (`Method.tells`), once there are some
    seen                       of a restorer: its forward process as the network sees it
    """

    path: Path
    shape: tuple
    noise_scale: float
    phases: Phases
    data: Data
    generator: torch.Generator
    student: Answer
    target: Answer
    teacher: Answer
    metric: Metric
    kind: str
    times: Times
    weighting: Weighting
    settings: Settings
    done: int = 0
    turned: int | None = 0
    asked: Mapping[str, Answer] = dataclasses.field(default_factory=dict)
    pulled: Mapping[str, Pull] = dataclasses.field(default_factory=dict)
    told: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seen: Destroyed | None = None


STUDENT = "student"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """Another adapter on the student's base, which a method trains beside the student, and asks.

    name, stage     in a saved state, and what a run is at while the role learns before the student's first
                    update
    draw, loss      as of a `Method`
    first           settings -> its updates before the student's first one
    each            context -> its updates before every other of the student's; None: it has learnt then
    rate            (settings, its updates so far, the share of the student's that is done) -> its learning
                    rate
    momentum        of its optimiser: beta_1 of Adam
    begins_as       of an earlier role, whose weights it begins with; "" for those of a new adapter
    """

    name: str
    stage: str
    draw: Callable[[Context], Batch]
    loss: Callable[[Context, Batch], torch.Tensor]
    first: Callable[[Settings], int]
    each: Callable[[Context], int] | None
    rate: Callable[[Settings, int, float], float]
    momentum: float = 0.9
    begins_as: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way of training.

    name            in configs, recipes, on nodes and the command line
    title           for people
    needs           of the data: "trajectories", "pairs" (noise and image) or "images"
    draw            Context -> batch
    loss            (Context, batch) -> (B,)
    level           (phases, u) -> the noise level that u stands for, which the weighting goes by
    turned_level    the same once the roles matter; None: as before
    kind            of prediction that the loss compares; "own" for the model's
    on_the_grid     the student learns at the very levels that it is sampled from, which the grid therefore
                    keeps
    in_phases       `phases` are of matter to what it learns
    in_rounds       further rounds learn from pairs that the student of the round before drew
    in_parts        can learn a part of the way alone, which neither begins at noise nor ends at a picture
    asks_teacher    settings -> whether it asks the teacher at every update; elsewhere that is asked while
                    data are drawn only
    least_steps     that it can be asked for
    lr_share        of the usual learning rate, that is usual for this method
    churn           settings -> that of sampling in the recipe's steps; None: by kind and phases
    roles           settings -> the other adapters that it trains, in the order in which they learn
    turns           (settings, [(update, fidelity)]) -> the update from which the roles matter; None: not yet
    last_turn       settings -> the update after which a measurement has to decide it; None: none has to
    rate            (settings, updates so far, `turns`) -> the student's learning rate; None: the usual
    tells           names in its batches of what a run keeps the means of
    task            "distillation", or "restoration" for methods that learn to undo a process
    """

    name: str
    title: str
    needs: str
    draw: Callable[[Context], Batch]
    loss: Callable[[Context, Batch], torch.Tensor]
    level: Callable[[Phases, torch.Tensor], torch.Tensor]
    turned_level: Callable[[Phases, torch.Tensor], torch.Tensor] | None = None
    kind: str = "x0"
    on_the_grid: bool = False
    in_phases: bool = True
    in_rounds: bool = False
    in_parts: bool = False
    asks_teacher: Callable[[Settings], bool] = lambda settings: False
    least_steps: int = 1
    lr_share: float = 1.0
    churn: Callable[[Settings], float] | None = None
    roles: Callable[[Settings], tuple[Role, ...]] = lambda settings: ()
    turns: Callable[[Settings, Sequence[tuple[int, float]]], int | None] = lambda settings, fidelity: 0
    last_turn: Callable[[Settings], int | None] = lambda settings: None
    rate: Callable[[Settings, int, int | None], float] | None = None
    tells: tuple[str, ...] = ()
    task: str = "distillation"


def draw_samples(context: Context) -> Batch:
    """What every batch begins with: which samples of the data, and where in time."""
    count = context.settings.batch
    pick = torch.randint(len(context.data.condition), (count,), generator=context.generator)
    u, weight = context.times.draw(count, context.generator)
    return {
        "pick": pick,
        "condition": context.data.condition[pick],
        "u": u,
        "weight": weight * context.weighting(u),
    }
