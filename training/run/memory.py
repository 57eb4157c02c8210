"""What memory a run will take, said before anything long begins: from one sample's forward pass and counting.

    peak = weights + adapter + extra + micro x (bytes of one sample)

adapter   the LoRA as float32: itself, its gradient, AdamW's two moments, the average, the best, and one copy
          in an exchange
sample    what autograd holds for the backward pass, kept whole or recomputed block by block; MARGIN above it
          for what is in passing

The plan follows from a description of the run (model, config, data, LoRA to begin with); no run is built.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from ...diffusion.faults import BadValue, Message, NoMemory
from .. import methods
from ..adapter.lora import Lora, lora_bytes, target_layers
from ..adapter.proof import check_gradient
from ..methods.distances import squared_error
from ..methods.phases import Phases
from ..models.denoiser import Denoiser
from ..models.memory_errors import is_out_of_memory, recover
from ..trajectories.data import Data
from .config import DistilConfig
from .machine import available, gib
from .source import check
from .student import adapter_for, backward_of

COPIES = 7  # of the adapter, see above
MARGIN = 1.3  # over what autograd holds: tensors in passing, the allocator's rounding
EXTRA = 256 << 20  # contexts and workspaces
BUDGETS = (8, 12, 16, 24, 48)  # GB, of the presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the weights, the adapter with all copies, and one training sample, whole and recomputed."""

    weights: int
    adapter: int
    whole: int
    recomputed: int

    def peak(self, micro: int, checkpointing: bool) -> int:
        """Bytes at the peak of an update with micro-batches of that many samples."""
        return int(self.weights + self.adapter + EXTRA + micro * self._each(checkpointing))

    def _each(self, checkpointing):
        return MARGIN * (min(self.recomputed, self.whole) if checkpointing else self.whole)

    def choose(self, budget: float, batch: int) -> tuple[int, bool]:
        """(micro, checkpointing): as many samples as fit `budget` bytes, recomputed if no whole one fits.

        Raises MemoryError that says what is missing and which setting to lower.
        """
        for checkpointing in (False, True):
            micro = min(batch, (budget - self.peak(0, checkpointing)) // max(self._each(checkpointing), 1))
            if micro >= 1:
                return int(micro), checkpointing
        if budget > self.weights + self.adapter + EXTRA:
            remedy = Message("Choose a smaller latent")
        elif self.adapter > self.weights / 2:
            remedy = Message("Choose a lower rank")
        else:
            remedy = Message("Choose a smaller or quantised model")
        raise NoMemory(
            "Training one sample must fit into {budget}, it takes {needed}: the model {weights}, the LoRA "
            "{adapter}, the sample {sample}. {remedy}, or more memory.",
            budget=gib(budget),
            needed=gib(self.peak(1, True)),
            weights=gib(self.weights),
            adapter=gib(self.adapter),
            sample=gib(MARGIN * self.recomputed),
            remedy=remedy,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How the work is cut to fit: samples of one pass, whether blocks are recomputed, and what that takes."""

    micro: int
    checkpointing: bool
    memory: Memory

    @property
    def peak(self) -> int:
        """Bytes at the peak of an update."""
        return self.memory.peak(self.micro, self.checkpointing)

    def applied(self, config: DistilConfig) -> DistilConfig:
        """The config with this plan in it."""
        chunk = min(config.chunk, max(4, self.micro))
        return dataclasses.replace(config, micro=self.micro, checkpointing=self.checkpointing, chunk=chunk)


def plan(
    denoiser: Denoiser,
    config: DistilConfig,
    budget: float | None = None,
    *,
    data: Data | None = None,
    warm: dict[str, torch.Tensor] | None = None,
) -> Plan:
    """The `Plan` of a run within `budget` bytes, its gradient proved that way.

    budget: None for what is free, of which the weights have their part already; data, warm: as of `run.Run`.
    The loss is the distance of one sample's x0 to a random picture, from noise at half of the time. Raises
    MemoryError that names what to lower, ArithmeticError when the gradient is not the loss's own
    (`proof.check_gradient`), ValueError when data or model can't be used like this.
    """
    check(denoiser, config, data)
    phases = Phases(config, denoiser.path, denoiser.sigma_of, methods.get(config.method).on_the_grid)
    lora = adapter_for(denoiser, config, warm)
    try:
        compute, parameters = _loss(denoiser, phases), lora.parameters()
        memory, dtype = _measure(denoiser, lora, compute)
        if data is None:
            _check_trajectories(denoiser, config, len(phases.kept))
        if budget is None:
            budget = available(getattr(denoiser, "device", "cpu")) + memory.weights
        most = min(config.batch, config.micro or config.batch)
        micro, checkpointing = memory.choose(budget, most)
        in_float32 = getattr(denoiser, "in_float32", None)
        for recompute in dict.fromkeys((checkpointing or config.checkpointing, True)):
            try:
                backward = backward_of(denoiser, parameters, recompute)
                check_gradient(compute, parameters, dtype, backward, in_float32)
                return Plan(micro=micro, checkpointing=recompute, memory=memory)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            recover()
    finally:
        lora.remove()
    raise NoMemory(
        "One sample of the model must fit into memory with its gradient, and does not. Choose a smaller "
        "latent or a lower rank."
    )


def beside_weights(module: torch.nn.Module, config: DistilConfig) -> int:
    """Bytes that a run takes beside weights and samples, from the model's layers alone: nothing is loaded."""
    each = lora_bytes(module, config.rank, config.include, config.exclude)
    return COPIES * each + EXTRA


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


def _loss(denoiser: Denoiser, phases: Phases) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sigma = phases.sigma_of(torch.tensor([0.5], dtype=torch.float64)).float()
    noise, goal = (torch.randn(1, *denoiser.shape, generator=generator) for _ in range(2))
    x = noise * float(denoiser.path.alpha(sigma).hypot(sigma))
    condition = torch.zeros(1, dtype=torch.long)
    # In float64, and scaled as a run's: differences of rounded losses, or gradients that vanish in half
    # precision, would prove nothing.
    scale = 2.0 ** math.floor(math.log2(goal.numel()))
    return lambda: scale * squared_error(denoiser(x, sigma, condition).double(), goal.double()).mean()


def _measure(denoiser: Denoiser, lora: Lora, compute: Callable[[], torch.Tensor]):
    """(`Memory`, the coarsest dtype in which a layer answers), from forward passes that hold nothing."""
    module, parameters, seen = denoiser.module, lora.parameters(), set()

    def look(layer, inputs, output):
        seen.add(getattr(output, "dtype", None))

    hooks = [layer.register_forward_hook(look) for layer in target_layers(module).values()]
    try:
        _, whole = backward_of(denoiser, parameters, checkpointing=False).saved_bytes(compute)
        _, recomputed = backward_of(denoiser, parameters, checkpointing=True).saved_bytes(compute)
    except (RuntimeError, TypeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise BadValue(
            'The model must answer for this latent and these prompts, and gave "{error}". Wire a latent '
            "made for this model and prompts from its own text encoder; take off patches of its attention.",
            error=error,
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    weights = [*module.parameters(), *module.buffers()]
    memory = Memory(
        weights=sum(w.numel() * w.element_size() for w in weights),
        whole=whole,
        recomputed=recomputed,
        adapter=COPIES * lora.bytes,
    )
    return memory, next((d for d in (torch.bfloat16, torch.float16) if d in seen), torch.float32)
