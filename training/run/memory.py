"""What memory a run will take, measured on a sample before anything long begins, and how it is cut to fit.

    peak = weights + copies x adapter + extra + margin x (bytes of the worst pass)

weights   those that stay where the model computes; of streamed layers, on a card, two of the largest as cast
adapter   the LoRA as float32: itself, its gradient, AdamW's two moments or what 8 bits make of them, casts
          in the dtype of the layers, of an average that answers too; on the CPU also average and best. An
          adapter of another role as well, without a gradient of its own
pass      of the micro-batch forward and backward, kept whole or recomputed block by block, or of the
          teacher's answer to it (`weighing`)

The plan follows from a description of the run (model, config, data, LoRA to begin with); no run is built.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from ...diffusion.faults import BadValue, Message, NoMemory
from .. import methods
from ..adapter.kinds import stored_bytes
from ..adapter.lora import lora_bytes, target_layers
from ..adapter.proof import check_gradient
from ..methods.distances import squared_error
from ..methods.phases import Phases
from ..models.denoiser import Denoiser
from ..models.memory_errors import is_out_of_memory, recover
from ..trajectories.data import Data
from ..trajectories.sampling import SHARD
from .config import DistilConfig
from .machine import available, gib
from .optimisers import ADAMW_8BIT
from .source import PROBES, check, wanted
from .student import adapter_for, backward_of
from .weighing import NEVER, Pass, passed, taken, weigh

BUDGETS = (8, 12, 16, 24, 48)  # GiB, of the presets
LEAST_RANK = 8
ADAPTERS = 1 / 4  # of the budget: more a rank that may be lowered does not take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """What lies where a model computes.

    averages of the adapter that lie there too
    fetched  copies of the largest streamed layer, in memory that no operation makes
    extra    bytes of workspaces
    margin   for the pieces that the allocator leaves over
    """

    averages: int
    fetched: int
    extra: int
    margin: float


CARD = Place(averages=0, fetched=2, extra=256 << 20, margin=1.1)
CPU = Place(averages=2, fetched=0, extra=0, margin=1.0)


def place_of(denoiser: Denoiser) -> Place:
    """The `Place` where a denoiser computes."""
    return CPU if torch.device(getattr(denoiser, "device", "cpu")).type == "cpu" else CARD


def moments_of(config: DistilConfig) -> float:
    """What AdamW keeps of the adapter, in float32's bytes of it."""
    return 0.5 if config.optimizer == ADAMW_8BIT else 2


def copies_of(config: DistilConfig, place: Place, dtype: torch.dtype = torch.bfloat16) -> float:
    """How often a run holds its adapter where it computes, in float32's bytes; dtype: of the layers."""
    moments = moments_of(config)
    cast = 0 if dtype.itemsize >= 4 else dtype.itemsize / 4
    own = 2 + moments + (2 if config.target == "ema" else 1) * cast + place.averages
    return own + beside_of(config, dtype)


def beside_of(config: DistilConfig, dtype: torch.dtype = torch.bfloat16) -> float:
    """The part of these copies that are other roles' adapters; one adapter has a gradient at a time."""
    cast = 0 if dtype.itemsize >= 4 else dtype.itemsize / 4
    roles = methods.get(config.method).roles(config)
    return sum(1 + cast + (0 if role.each is None else moments_of(config)) for role in roles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the weights, of one adapter, and of the passes of a run.

    copies     how often the adapter is there (`copies_of`), absent: not yet while the teacher draws (gradient
               and moments); place: where it is
    rank       of the adapter; adapters, beside: how many the method trains, and the further ones' copies
    guided     samples of a guided call of the teacher for each that is wanted; online: whether updates ask it
    confirmed  whether a pass that is held whole was run, and not only reckoned
    """

    weights: int
    adapter: int
    whole: Pass
    recomputed: Pass
    answer: Pass
    copies: float = 6
    absent: float = 3
    rank: int = LEAST_RANK
    adapters: int = 1
    beside: float = 0
    place: Place = CPU
    guided: int = 2
    online: bool = True
    confirmed: bool = False

    def with_whole(self, whole: Pass) -> "Memory":
        """The same with what whole samples were really seen to take."""
        return dataclasses.replace(self, whole=whole, confirmed=True)

    @property
    def fixed(self) -> int:
        """Bytes that are taken whatever the number of samples."""
        return math.ceil(self.weights + self.copies * self.adapter + self.place.extra)

    def peak(self, micro: int, checkpointing: bool) -> int:
        """Bytes at the worst moment of an update with micro-batches of that many samples.

        That is forward and backward, the target's or the teacher's answer before, or AdamW's step after them,
        which holds one adapter more.
        """
        train = self.recomputed if checkpointing else self.whole
        answers = micro * (self.guided if self.online else 1)
        worst = max(train.bytes(micro), self.answer.bytes(answers), self.adapter)
        return math.ceil(self.fixed + self.place.margin * worst)

    def asking(self, chunk: int) -> int:
        """Bytes at the worst moment of a call of so many samples where nothing is trained: of the teacher's,
        which come before there are moments of AdamW, or of the held-out ones between updates. Neither finds a
        gradient.
        """
        drawn = self.fixed - self.absent * self.adapter + self.place.margin * self.answer.bytes(chunk)
        few = self.answer.bytes(min(chunk, PROBES))
        return math.ceil(max(drawn, self.fixed - self.adapter + self.place.margin * few))

    def chunk(self, budget: float, most: int) -> int:
        """Samples, up to `most`, of one such call within the budget; 1 at least."""
        return next((chunk for chunk in range(most, 1, -1) if self.asking(chunk) <= budget), 1)

    def choose(self, budget: float, batch: int, recompute: bool = False) -> tuple[int, bool]:
        """(micro, checkpointing): as many samples as fit `budget` bytes, recomputed if no whole one fits or
        that is asked for.

        Raises MemoryError that says what is missing and which setting to lower.
        """
        for checkpointing in dict.fromkeys((recompute, True)):
            for micro in range(batch, 0, -1):
                if self.peak(micro, checkpointing) <= budget:
                    return micro, checkpointing
        adapter = self.copies * self.adapter
        raise NoMemory(
            "Training one sample must fit into {budget}, it takes {needed}: the model {weights}, {adapter}, "
            "the sample {sample}. {remedy}, or more memory.",
            budget=gib(budget),
            needed=gib(self.peak(1, True)),
            weights=gib(self.weights),
            adapter=_adapters(self.adapters, gib(adapter)),
            sample=gib(self.peak(1, True) - self.weights - adapter),
            remedy=_remedy(self, budget),
        )


def _adapters(count: int, size: str) -> Message:
    """What they take, in words."""
    if count == 1:
        return Message("the LoRA {size}", size=size)
    return Message("the {count} LoRAs of the method {size}", count=count, size=size)


def _remedy(memory: Memory, budget: float) -> Message:
    """What to lower where one sample does not fit: the rank wherever the least one would, and where a method
    with one adapter would fit, that.
    """
    lower = math.ceil(memory.adapter * min(1, LEAST_RANK / memory.rank))
    fits = dataclasses.replace(memory, adapter=lower).peak(1, True) <= budget
    if budget > memory.fixed:
        remedy = Message("Choose a smaller latent or a lower rank" if fits else "Choose a smaller latent")
    else:
        remedy = Message("Choose a lower rank" if fits else "Choose a smaller or quantised model")
    alone = dataclasses.replace(memory, copies=memory.copies - memory.beside, online=False)
    if memory.adapters == 1 or alone.peak(1, True) > budget:
        return remedy
    return Message("{remedy}, or the method phased, which trains one LoRA", remedy=remedy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the work is cut to fit, and what that takes.

    micro: samples of one pass; checkpointing: whether blocks are recomputed; chunk: samples of one call where
    nothing is trained; rank: of the LoRA.
    """

    micro: int
    checkpointing: bool
    chunk: int
    rank: int
    memory: Memory

    @property
    def peak(self) -> int:
        """Bytes at the worst moment, of an update or of a call where nothing is trained."""
        return max(self.memory.peak(self.micro, self.checkpointing), self.memory.asking(self.chunk))

    def applied(self, config: DistilConfig) -> DistilConfig:
        """The config with this plan in it."""
        return dataclasses.replace(
            config, micro=self.micro, checkpointing=self.checkpointing, chunk=self.chunk, rank=self.rank
        )


def plan(
    denoiser: Denoiser,
    config: DistilConfig,
    budget: float | None = None,
    *,
    data: Data | None = None,
    warm: dict[str, torch.Tensor] | None = None,
    lower_rank: bool = False,
    first_rank: bool = False,
) -> Plan:
    """The `Plan` of a run within `budget` bytes, its gradient proved that way.

    budget: None for what is free, of which the weights have their part already; data, warm: as of `run.Run`;
    lower_rank: whether the config's rank may be halved until it fits; first_rank: but to the first of `ranks`
    alone, for who would rather stream the weights than go lower. The loss is the distance of a sample's
    x0 to a random picture, from noise at half of the time. Raises MemoryError that names what to lower,
    ArithmeticError when the gradient is not the loss's own (`proof.check_gradient`), ValueError when data or
    model can't be used like this.
    """
    check(denoiser, config, data)
    phases = Phases(config, denoiser.path, denoiser.sigma_of, methods.get(config.method).on_the_grid)
    if data is None:
        _check_trajectories(denoiser, config, len(phases.kept))
    place, weights = place_of(denoiser), weights_of(denoiser)
    if budget is None:
        budget = available(getattr(denoiser, "device", "cpu")) + weights
    loss, drawn = _loss(denoiser, phases), min(SHARD, max(wanted(config, data), PROBES))
    found = ranks(denoiser.module, config, copies_of(config, place), budget, lower_rank)
    for rank in found[:1] if first_rank else found:
        lora = adapter_for(denoiser, dataclasses.replace(config, rank=rank), warm)
        try:
            return _planned(denoiser, config, lora, loss, budget, weights, drawn)
        except NoMemory as error:
            refused = error
        finally:
            lora.remove()
        recover()
    raise refused


def ranks(
    module: torch.nn.Module, config: DistilConfig, copies: float, budget: float, lower: bool
) -> list[int]:
    """Ranks to try: the config's, and where it may be lowered its halves down to `LEAST_RANK`, from the first
    whose copies are `ADAPTERS` of the budget at most.
    """
    found = [config.rank]
    while lower and found[-1] // 2 >= LEAST_RANK:
        found.append(found[-1] // 2)
    one = lora_bytes(module, 1, config.include, config.exclude)
    small = [rank for rank in found if copies * rank * one <= ADAPTERS * budget]
    return small or found[-1:]


def beside_weights(
    module: torch.nn.Module, config: DistilConfig, lower_rank: bool = False, place: Place = CARD
) -> int:
    """Bytes that a run takes there beside weights and samples, at least: from the model's layers alone,
    nothing is loaded.
    """
    rank = min(config.rank, LEAST_RANK) if lower_rank else config.rank
    copies = copies_of(config, place)
    return math.ceil(copies * lora_bytes(module, rank, config.include, config.exclude)) + place.extra


def weights_of(denoiser: Denoiser) -> int:
    """Bytes of a model's weights where it computes: `staying`, and on a card, of the layers whose weights are
    fetched for each call, two of the largest: one at work and one on its way.
    """
    streamed = getattr(denoiser, "streamed", list)()
    return staying(denoiser) + place_of(denoiser).fetched * max(map(_cast_size, streamed), default=0)


def staying(denoiser: Denoiser) -> int:
    """Bytes of the weights that stay where the model computes, in the formats in which they are stored."""
    streamed = getattr(denoiser, "streamed", list)()
    away = {id(w) for layer in streamed for w in _own(layer)}
    weights = (*denoiser.module.parameters(), *denoiser.module.buffers())
    own = [getattr(w, "_local_tensor", w) for w in weights if id(w) not in away]  # of one in pieces, its own
    return sum(map(stored_bytes, own))


def _own(layer):
    return [w for w in (*layer._parameters.values(), *layer._buffers.values()) if w is not None]


def _cast_size(layer):
    """Bytes of a layer as it comes and, where that is less than two bytes a number, as it is cast."""
    sizes = [(stored_bytes(w), 2 * math.prod(w.shape)) for w in _own(layer)]
    return sum(stored + (cast if stored < cast else 0) for stored, cast in sizes)


def _planned(denoiser, config, lora, loss, budget, weights, drawn):
    """The `Plan` with that LoRA; raises NoMemory where nothing fits. drawn: trajectories at once."""
    most, parameters = min(config.batch, config.micro or config.batch), lora.parameters()
    guided = 1 if config.cfg == 1 else 2
    rows = min(config.chunk, guided * drawn)
    memory, dtype = _measured(denoiser, config, lora, loss, weights, most, max(rows, guided * most))
    in_float32 = getattr(denoiser, "in_float32", None)
    while True:
        micro, recompute = memory.choose(budget, most, config.checkpointing)
        backward = backward_of(denoiser, parameters, recompute)
        try:
            if not recompute and not memory.confirmed:
                memory = memory.with_whole(passed(lambda c, b=backward: taken(c, b), loss, micro))
                continue
            check_gradient(loss(1), parameters, dtype, backward, in_float32)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            chunk = memory.chunk(budget, rows)
            return Plan(micro=micro, checkpointing=recompute, chunk=chunk, rank=lora.rank, memory=memory)
        if recompute:
            raise _too_large()
        recover()
        memory = memory.with_whole(Pass(NEVER, NEVER))


def _too_large():
    return NoMemory(
        "One sample of the model must fit into memory with its gradient, and does not. Choose a smaller "
        "latent or a lower rank."
    )


def _check_trajectories(denoiser, config, kept):
    """Raise MemoryError where the trajectories, with room for a copy, are more than the computer has."""
    size = 4 * config.images * kept * math.prod(denoiser.shape)
    if 2 * size > available("cpu"):
        raise NoMemory(
            "The {images} trajectories must fit twice into the computer's free {free}, they take {size}. "
            "Choose a lower quality, fewer images or a smaller latent.",
            images=config.images,
            free=gib(available("cpu")),
            size=gib(size),
        )


def _loss(denoiser: Denoiser, phases: Phases) -> Callable[[int], Callable[[], torch.Tensor]]:
    """Number of samples -> their loss.

    In float64, and scaled as a run's: differences of rounded losses, or gradients that vanish in half
    precision, would prove nothing.
    """
    sigma = phases.sigma_of(torch.tensor([0.5], dtype=torch.float64)).float()
    level = float(denoiser.path.alpha(sigma).hypot(sigma))
    scale = 2.0 ** math.floor(math.log2(math.prod(denoiser.shape)))

    def of(samples):
        generator = torch.Generator().manual_seed(0)
        noise, goal = (torch.randn(samples, *denoiser.shape, generator=generator) for _ in range(2))
        x, condition = noise * level, torch.arange(samples) % denoiser.conditions
        levels, goal = sigma.expand(samples), goal.double()
        return lambda: scale * squared_error(denoiser(x, levels, condition).double(), goal).mean()

    return of


def _measured(denoiser, config, lora, loss, weights, most, answers):
    """(`Memory`, the coarsest dtype in which a layer answers); most, answers: as of `weigh`."""
    seen = set()

    def look(layer, inputs, output):
        seen.add(getattr(output, "dtype", None))

    hooks = [layer.register_forward_hook(look) for layer in target_layers(denoiser.module).values()]
    try:
        passes = weigh(denoiser, lora, loss, most, answers)
    except (RuntimeError, TypeError, KeyError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _too_large() from error
        raise BadValue(
            'The model must answer for this latent and these prompts, and gave "{error}". Wire a latent '
            "made for this model and prompts from its own text encoder; take off patches of its attention.",
            error=error,
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    dtype = next((d for d in (torch.bfloat16, torch.float16) if d in seen), torch.float32)
    place = place_of(denoiser)
    memory = Memory(
        weights=weights,
        adapter=lora.bytes,
        copies=copies_of(config, place, dtype),
        rank=lora.rank,
        adapters=1 + len(methods.get(config.method).roles(config)),
        beside=beside_of(config, dtype),
        absent=1 + (moments_of(config) if config.rounds == 1 else 0),
        place=place,
        guided=1 if config.cfg == 1 else 2,
        online=methods.get(config.method).asks_teacher(config),
        **passes,
    )
    return memory, dtype
