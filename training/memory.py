"""What a run will take of memory, told before anything long begins: from one sample's forward pass and counting.

    peak = weights + adapter + extra + micro x (bytes of one sample)

adapter   the LoRA as float32: itself, its gradient, AdamW's two moments, the average, the best, and one copy in an exchange
sample    what autograd holds for the backward pass, kept whole or recomputed block by block; MARGIN above it for what is in passing
"""

import dataclasses
import math
from pathlib import Path

import torch

from .gradients import Backward, check_gradient
from .objectives.metrics import squared_error

COPIES = 7              # of the adapter, see above
MARGIN = 1.3            # over what autograd holds: tensors in passing, the allocator's rounding
EXTRA = 256 << 20       # contexts and workspaces
BUDGETS = (8, 12, 16, 24, 48)       # GB, of the presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes: of the weights, of the adapter with all its copies, and of one sample in training, kept whole and recomputed."""

    weights: int
    adapter: int
    whole: int
    recomputed: int

    def peak(self, micro, checkpointing):
        """Bytes at the peak of an update with micro-batches of that many samples."""
        each = min(self.recomputed, self.whole) if checkpointing else self.whole
        return int(self.weights + self.adapter + EXTRA + MARGIN * micro * each)

    def choose(self, budget, batch):
        """(micro, checkpointing) that fit into `budget` bytes: whole samples if one fits, else recomputed; as many as fit.

        Raises MemoryError that says what is missing and which setting to lower.
        """
        for checkpointing in (False, True):
            each = MARGIN * (self.recomputed if checkpointing else self.whole)
            micro = min(batch, math.floor((budget - self.peak(0, checkpointing)) / max(each, 1)))
            if micro >= 1:
                return micro, checkpointing
        fixed = self.weights + self.adapter + EXTRA
        remedy = ("Choose a smaller latent" if budget > fixed else "Choose a lower rank" if self.adapter > self.weights / 2
                  else "Choose a smaller or quantised model")
        raise MemoryError(f"Training one sample must fit into {gib(budget)}, it takes {gib(self.peak(1, True))}: the model "
                          f"{gib(self.weights)}, the LoRA {gib(self.adapter)}, the sample {gib(MARGIN * self.recomputed)}. "
                          f"{remedy}, or more memory.")


def trial(run):
    """`Memory` of a run (`distil.Distillation`), from one sample; proves the gradient on the way.

    The loss is the distance of the student's x0 to a random picture, from noise at half of the levels. Raises ArithmeticError when
    the gradient is not the loss's own (`gradients.check_gradient`).
    """
    denoiser, parameters = run.denoiser, run.lora.parameters()
    generator = torch.Generator().manual_seed(0)
    sigma = run.phases.levels[len(run.phases.levels) // 2].reshape(1)
    noise, goal = (torch.randn(1, *denoiser.shape, generator=generator) for _ in range(2))
    x, condition = noise * float(run.path.alpha(sigma).hypot(sigma)), torch.zeros(1, dtype=torch.long)

    def compute():
        return squared_error(denoiser(x, sigma, condition), goal).mean()

    plain, saving = (Backward(denoiser.module, parameters, checkpointing=c) for c in (False, True))
    whole, recomputed = (backward.saved_bytes(compute)[1] for backward in (plain, saving))
    check_gradient(compute, parameters, _dtype(denoiser.module), saving if run.config.checkpointing else plain)
    weights = [*denoiser.module.parameters(), *denoiser.module.buffers()]
    return Memory(weights=sum(w.numel() * w.element_size() for w in weights), whole=whole, recomputed=recomputed,
                  adapter=COPIES * sum(4 * p.numel() for p in parameters))


def available(device):
    """Bytes that a run may take on that device: what is free there, and what this process can give back; inf where unknown."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:        # with what the system gives back of its caches
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):        # Windows, macOS
        return math.inf


def gib(size):
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _dtype(module):
    """The coarsest floating point type of the module's weights."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return next((d for d in (torch.bfloat16, torch.float16) if d in found), torch.float32)
