"""What the backend knows of a model, and guidance.

One convention everywhere: `denoiser(x, sigma (B,), condition (B,)) -> x0`. The samplers of `diffusion` know
no conditions and step along single levels, numbers; `for_sampler` is the one adapter to them.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ...diffusion.faults import Failed, NoMemory
from ...diffusion.paths import Path
from ...diffusion.solvers.linear import CONDITIONAL
from .memory_errors import is_out_of_memory, recover


class Denoiser(Protocol):
    """A model as the backend sees it. Adapters: the demo teacher here, a ComfyUI MODEL in `nodes`.

    path        how x, sigma and noise relate (`diffusion.paths`)
    sigma_of    time t in (0, 1] -> sigma, float64 (`diffusion.schedules.grids`)
    module      the torch module whose Linear and Conv layers a LoRA may sit on
    shape       the shape of one sample, without the batch
    conditions  how many conditionings it holds; they are called 0, 1, ... and -1 is the unconditional one
    prediction  what its network predicts, one of `diffusion.predictions.KINDS`
    noise_scale what the model multiplies noise by before it mixes it in; 1 for nearly all
    base        fingerprint of the weights (`fingerprint`)

    One that runs on another device than the CPU also has `device`; one whose weights don't all stay there has
    `streamed()`, which gives the layers of its module that fetch theirs for each call. One that computes in a
    lower precision has `in_float32()`, a context in which it computes in float32 with the same weights. One
    that puts rows of a batch into calls by their conditions has `kinds(condition (B,))`, (B,) numbers: rows
    of one kind are answered in their order.
    """

    path: Path
    module: torch.nn.Module
    shape: tuple
    conditions: int
    prediction: str
    noise_scale: float
    base: str

    def sigma_of(self, t: torch.Tensor) -> torch.Tensor: ...

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """x_0 from x, both (B, *shape) float32, with sigma (B,) float32 and condition (B,) int64.

        The result is on x's device, wherever the module runs: the backend's own tensors stay on the CPU.
        """
        ...


class Teacher(Protocol):
    """A `Denoiser` at its guidance, as trajectories are drawn from it and solvers fitted to it. It needs no
    module: `Guided` here, a ComfyUI guider in `nodes`.

    One whose answers depend on what it was asked before has `each_path(work)`, in which work, that solves one
    path from noise to picture, is called; None elsewhere.

    One whose guidance has parts has `apart(x, sigma, condition, kinds)`: one prediction for each letter of
    kinds, "c" conditional, "u" unconditional (`diffusion.solvers.linear`); None elsewhere.

    One whose guidance has other numbers than its cfg has `strength`, the largest of all.

    cfg       the guidance that a recipe names, 1 for none
    identity  what a cache must tell apart: `model`, `patches`, `conditioning` and `guidance` of a `CacheSpec`
    """

    path: Path
    shape: tuple
    conditions: int
    noise_scale: float
    base: str
    cfg: float
    identity: dict

    def sigma_of(self, t: torch.Tensor) -> torch.Tensor: ...

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """As a `Denoiser`; sigma (B,) is float64, the levels of the grid exactly."""
        ...


def guided(
    denoiser: Denoiser, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, cfg: float
) -> torch.Tensor:
    """Classifier-free guidance: x0 = u + cfg (c - u) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    One call of twice the batch, the unconditional half first as ComfyUI has it; cfg = 1 asks for the
    conditional prediction alone.
    """
    if cfg == 1:
        return denoiser(x, sigma, condition)
    none = torch.full_like(condition, -1)
    both = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([none, condition]))
    unconditional, conditional = both.chunk(2)
    return unconditional + cfg * (conditional - unconditional)


def for_sampler(
    denoiser: Denoiser | Teacher,
    condition: torch.Tensor,
    cfg: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """`(x, sigma) -> x0` as the samplers of `diffusion` ask it: this conditioning (B,), this guidance.

    sigma is a number or (B,); dtype is that in which the denoiser gets it: float64 for a `Teacher`.
    """

    def denoise(x, sigma):
        levels = torch.as_tensor(sigma, dtype=dtype, device=x.device).expand(x.shape[0])
        return guided(denoiser, x, levels, condition, cfg)

    return denoise


class InParts:
    """A `Denoiser` asked for at most `most` samples a call where nothing is trained.

    Once memory ran out it is asked for fewer. too_large: what is raised where one sample is too much.
    """

    def __init__(self, denoiser: Denoiser, most: int, too_large: Callable[[], Exception] | None = None):
        self.denoiser, self.most, self.too_large = denoiser, most, too_large or _too_large

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.each(lambda denoiser, *rows: denoiser(*rows), x, sigma, condition)

    def each(self, ask: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        """`ask(denoiser, *part)` (b, ...) of each part of the rows (B, ...), put together; of all of them
        again, in smaller parts, where memory runs out in one. A model that can't be asked again says
        `Failed`.
        """
        while True:
            try:
                parts = (slice(i, i + self.most) for i in range(0, len(rows[0]), self.most))
                return torch.cat([ask(self.denoiser, *(row[p] for row in rows)) for p in parts])
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, Failed) or not is_out_of_memory(error):
                    raise
                if self.most == 1:
                    raise self.too_large() from error
            recover()
            self.most = (self.most + 1) // 2


def _too_large():
    return NoMemory(
        "One sample of the model must fit into memory where nothing is trained, and does not. Close what "
        "else uses memory, or choose a smaller latent or a smaller or quantised model."
    )


class ByLevel:
    """A `Denoiser` asked for one noise level a call, as samplers ask, for a model with patches that take the
    first sample's level for all.

    of_one_prompt: for one condition a call too.
    """

    def __init__(self, denoiser: Denoiser, of_one_prompt: bool = False):
        self.denoiser, self.of_one_prompt = denoiser, of_one_prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def kinds(self, condition: torch.Tensor) -> torch.Tensor:
        """Rows of one kind are answered in their order."""
        own = getattr(self.denoiser, "kinds", torch.zeros_like)
        return condition if self.of_one_prompt else own(condition)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        key = torch.stack([sigma.double(), condition.double() * self.of_one_prompt], 1)
        _, group = key.unique(dim=0, return_inverse=True)
        places = [(group == number).nonzero()[:, 0] for number in group.unique()]
        parts = [self.denoiser(x[p], sigma[p], condition[p]) for p in places]
        return torch.cat(parts)[torch.cat(places).argsort()]


class Guided:
    """A `Denoiser` at one guidance, which makes it a `Teacher`.

    conditioning: of its identity, what tells its prompts from others.
    """

    def __init__(self, denoiser: Denoiser, cfg: float, conditioning: str = ""):
        self.denoiser, self.cfg = denoiser, float(cfg)
        self.path, self.sigma_of, self.shape = denoiser.path, denoiser.sigma_of, denoiser.shape
        self.conditions, self.noise_scale = denoiser.conditions, denoiser.noise_scale
        self.base = denoiser.base
        self.identity = {
            "model": self.base,
            "patches": "",
            "conditioning": conditioning,
            "guidance": f"CFG {self.cfg:g}",
        }

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return guided(self.denoiser, x, sigma.to(torch.float32), condition, self.cfg)

    def apart(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor, kinds: str
    ) -> tuple[torch.Tensor, ...]:
        """A prediction for each letter of kinds, of one call."""
        each = [condition if kind == CONDITIONAL else torch.full_like(condition, -1) for kind in kinds]
        count = len(kinds)
        answer = self.denoiser(
            x.repeat(count, *[1] * (x.ndim - 1)), sigma.to(torch.float32).repeat(count), torch.cat(each)
        )
        return answer.chunk(count)
