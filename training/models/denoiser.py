"""What the backend knows of a model, and guidance."""

from typing import Protocol

import torch

from ...diffusion.paths import Path

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Denoiser(Protocol):
    """A model as the backend sees it. Adapters: the demo teacher here, a ComfyUI MODEL in `nodes`.

    path        how x, sigma and noise relate (`diffusion.paths`)
    sigma_of    time t in (0, 1] -> sigma, float64 (`diffusion.grids`)
    module      the torch module whose Linear and Conv layers a LoRA may sit on
    shape       the shape of one sample, without the batch
    conditions  how many conditionings it holds; they are called 0, 1, ... and -1 is the unconditional one
    prediction  what its network predicts, one of `diffusion.predictions.KINDS`
    noise_scale what the model multiplies noise by before it mixes it in; 1 for nearly all
    base        fingerprint of the weights (`lora.fingerprint`)
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
        """x_0 (B, *shape) from x (B, *shape), sigma (B,) float32 and condition (B,) int64; float32 in and
        out.

        The result is where x is, whatever device the module runs on: the backend's own tensors stay on the
        CPU.
        """
        ...


def guided(denoiser, x, sigma, condition, cfg):
    """Classifier-free guidance: x0 = u + cfg (c - u) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    One call of twice the batch; cfg = 1 asks for the conditional prediction alone.
    """
    if cfg == 1:
        return denoiser(x, sigma, condition)
    both = denoiser(
        torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([condition, torch.full_like(condition, -1)])
    )
    conditional, unconditional = both.chunk(2)
    return unconditional + cfg * (conditional - unconditional)


def bound(denoiser, condition, cfg=1.0):
    """`(x, sigma) -> x0` for the samplers of `diffusion`: this conditioning, this guidance, sigma a number or
    (B,).
    """

    def call(x, sigma):
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        return guided(denoiser, x, sigma, condition, cfg)

    return call


class InParts:
    """A `Denoiser` asked for at most `most` samples at a time where nothing is trained, and fewer once memory
    ran out.
    """

    def __init__(self, denoiser, most):
        self.denoiser, self.most = denoiser, most

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def __call__(self, x, sigma, condition):
        while True:
            try:
                parts = (slice(i, i + self.most) for i in range(0, len(x), self.most))
                return torch.cat([self.denoiser(x[p], sigma[p], condition[p]) for p in parts])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.most == 1:
                    raise
            self.most = (self.most + 1) // 2


class Guided:
    """A `Denoiser` at one guidance, as fits and caches ask it: (x, sigma, condition) -> x0 with sigma a
    float.

    identity: what of it a cache must tell apart.
    """

    def __init__(self, denoiser, cfg, conditioning=""):
        self.denoiser, self.cfg = denoiser, float(cfg)
        self.path, self.sigma_of, self.shape = denoiser.path, denoiser.sigma_of, denoiser.shape
        self.conditions, self.noise_scale, self.base = (
            denoiser.conditions,
            denoiser.noise_scale,
            denoiser.base,
        )
        self.identity = {
            "model": self.base,
            "patches": "",
            "conditioning": conditioning,
            "guidance": f"CFG {self.cfg:g}",
        }

    def __call__(self, x, sigma, condition):
        return guided(
            self.denoiser, x, torch.full((len(x),), sigma, dtype=torch.float32), condition, self.cfg
        )


def is_out_of_memory(error):
    """Whether an exception says that memory ran out."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)
