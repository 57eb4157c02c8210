"""What a run will take of memory, told before anything long begins: from one sample's forward pass and
counting.

    peak = weights + adapter + extra + micro x (bytes of one sample)

adapter   the LoRA as float32: itself, its gradient, AdamW's two moments, the average, the best, and one copy
          in an exchange
sample    what autograd holds for the backward pass, kept whole or recomputed block by block; MARGIN above it
          for what is in passing
"""

import dataclasses
import math
import os
from pathlib import Path

import torch

from ...diffusion.faults import BadValue, NoMemory
from ..adapter.backward import Backward
from ..adapter.lora import target_layers
from ..adapter.proof import check_gradient
from ..methods.distances import squared_error
from ..models.memory_errors import is_out_of_memory
from .restoration import run_of

COPIES = 7  # of the adapter, see above
MARGIN = 1.3  # over what autograd holds: tensors in passing, the allocator's rounding
EXTRA = 256 << 20  # contexts and workspaces
ROOT = Path("/")
CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),  # version 2, version 1
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
BUDGETS = (8, 12, 16, 24, 48)  # GB, of the presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes: of the weights, of the adapter with all its copies, and of one sample in training, kept whole
    and recomputed.
    """

    weights: int
    adapter: int
    whole: int
    recomputed: int

    def peak(self, micro, checkpointing):
        """Bytes at the peak of an update with micro-batches of that many samples."""
        return int(self.weights + self.adapter + EXTRA + micro * self._each(checkpointing))

    def _each(self, checkpointing):
        return MARGIN * (min(self.recomputed, self.whole) if checkpointing else self.whole)

    def choose(self, budget, batch):
        """(micro, checkpointing) that fit into `budget` bytes: whole samples if one fits, else recomputed; as
        many as fit.

        Raises MemoryError that says what is missing and which setting to lower.
        """
        for checkpointing in (False, True):
            micro = min(batch, (budget - self.peak(0, checkpointing)) // max(self._each(checkpointing), 1))
            if micro >= 1:
                return int(micro), checkpointing
        fixed = self.weights + self.adapter + EXTRA
        remedy = (
            "Choose a smaller latent"
            if budget > fixed
            else "Choose a lower rank"
            if self.adapter > self.weights / 2
            else "Choose a smaller or quantised model"
        )
        raise NoMemory(
            "Training one sample must fit into {budget}, it takes {value}: the model {weights}, the LoRA "
            "{adapter}, the sample {margin}. {remedy}, or more memory.",
            budget=gib(budget),
            value=gib(self.peak(1, True)),
            weights=gib(self.weights),
            adapter=gib(self.adapter),
            margin=gib(MARGIN * self.recomputed),
            remedy=remedy,
        )


def cut(denoiser, config, budget=None, **options):
    """(config, bytes at its peak) with micro-batches, and checkpointing where needed, that `fit` within
    `budget` bytes.

    options: of `distil.Distillation`. Raises as `fit`.
    """
    trial = run_of(denoiser, config, **options)
    try:
        micro, checkpointing, memory = fit(trial, budget)
    finally:
        trial.close()
    chunk = min(config.chunk, max(4, micro))
    return dataclasses.replace(config, micro=micro, checkpointing=checkpointing, chunk=chunk), memory.peak(
        micro, checkpointing
    )


def fit(run, budget=None):
    """(micro, checkpointing, `Memory`) for a run (`distil.Distillation`) within `budget` bytes, its gradient
    proved that way.

    budget: None for what is free, of which the weights have their part already. The loss is the distance of
    one sample's x0 to a random picture, from noise at half of the time. Raises MemoryError that names what to
    lower, ArithmeticError when the gradient is not the loss's own (`proof.check_gradient`), ValueError
    when the model can't be called like this.
    """
    compute, config, parameters = _loss(run), run.config, run.lora.parameters()
    memory, dtype = _measure(run, compute)
    data = 4 * config.images * len(run.phases.kept) * math.prod(run.denoiser.shape)
    if run.given is None and 2 * data > available("cpu"):
        raise NoMemory(
            "The {images} trajectories must fit twice into the computer's free {value}, they take {data}. "
            "Choose a lower quality, fewer images or a smaller latent.",
            images=config.images,
            value=gib(available("cpu")),
            data=gib(data),
        )
    most = min(config.batch, config.micro or config.batch)
    if budget is None:
        budget = available(getattr(run.denoiser, "device", "cpu")) + memory.weights
    micro, checkpointing = memory.choose(budget, most)
    for recompute in dict.fromkeys((checkpointing or config.checkpointing, True)):
        try:
            check_gradient(compute, parameters, dtype, Backward(run.denoiser.module, parameters, recompute))
            return micro, recompute, memory
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    raise NoMemory(
        "One sample of the model must fit into memory with its gradient, and does not. Choose a smaller "
        "latent or a lower rank.",
    )


def _loss(run):
    denoiser, generator = run.denoiser, torch.Generator().manual_seed(0)
    sigma = run.phases.sigma_of(torch.tensor([0.5], dtype=torch.float64)).float()
    noise, goal = (torch.randn(1, *denoiser.shape, generator=generator) for _ in range(2))
    x, condition = noise * float(run.path.alpha(sigma).hypot(sigma)), torch.zeros(1, dtype=torch.long)
    return lambda: squared_error(denoiser(x, sigma, condition), goal).mean()


def _measure(run, compute):
    """(`Memory`, the coarsest dtype in which a layer answers), from forward passes that hold nothing."""
    module, parameters, seen = run.denoiser.module, run.lora.parameters(), set()
    hooks = [
        m.register_forward_hook(lambda m, x, out: seen.add(getattr(out, "dtype", None)))
        for m in target_layers(module).values()
    ]
    try:
        whole, recomputed = (
            Backward(module, parameters, checkpointing=c).saved_bytes(compute)[1] for c in (False, True)
        )
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
        adapter=COPIES * run.lora.bytes,
    )
    return memory, next((d for d in (torch.bfloat16, torch.float16) if d in seen), torch.float32)


def available(device):
    """Bytes that a run may take on that device: what is free there, and what this process can give back; inf
    where unknown.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:  # with what the system gives back of its caches
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # Windows, macOS
        return math.inf
    return min(free, *map(_granted, CGROUPS))


def _granted(files):
    """Bytes that a container's limit leaves, with what the system gives back of its caches; inf without a
    limit.
    """
    folder, limit, taken, cache = files
    try:
        limit, taken = (int((ROOT / folder / name).read_text()) for name in (limit, taken))
        counts = dict(line.split() for line in (ROOT / folder / "memory.stat").read_text().splitlines())
        return max(0, limit - taken + int(counts.get(cache, 0)))
    except (OSError, ValueError):  # no such control group, or "max"
        return math.inf


def used(device):
    """Bytes that this process holds on that device, on CUDA the most of its tensors since the run began; None
    where unknown.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # Windows, macOS
        return None


def gib(size):
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
