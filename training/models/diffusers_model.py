"""A diffusers model as a `Denoiser`.

It is a pipeline folder on disk, or a loaded UNet or transformer with ready-made conditionings.

pipeline                        network                 scheduler      path                timestep
StableDiffusionPipeline (1, 2)  UNet2DConditionModel    beta schedule  variance exploding  nearest index
StableDiffusionXLPipeline       UNet2DConditionModel    beta schedule  variance exploding  nearest index
StableDiffusion3Pipeline        SD3Transformer2DModel   flow matching  flow                1000 sigma
FluxPipeline                    FluxTransformer2DModel  flow matching  flow                sigma

The index is the nearest by log sigma; Flux itself takes its timestep times 1000. Latents are in the model's
scaled space, what diffusers' `output_type="latent"` gives (Flux: before it packs them).

diffusers and transformers are optional, imported late. `pipelines` reads the folder, `diffusers_schedulers`
the noise levels; `diffusers_networks` knows the networks.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...diffusion.faults import BadValue, Message
from ...diffusion.predictions import expand, to_x0
from ...diffusion.schedules.grids import nearest_index
from .diffusers_networks import network_of
from .diffusers_schedulers import levels_of
from .fingerprint import fingerprint
from .pipelines import NO_VAE, encode, load_network, pixels_per_latent, read_index, read_object

# embeds (T, D) and, where the network takes one, the pooled vector (P,)
Conditioning = tuple[torch.Tensor, torch.Tensor | None]


class DiffusersDenoiser:
    """A `Denoiser` over a diffusers pipeline folder; each prompt is one condition.

    size           (height, width) in pixels, None for the model's own
    negative       text of the unconditional prediction; None for what the pipeline takes without one (SDXL:
                   zeros)
    guidance       what a guidance-distilled model (Flux dev) is told; it costs no second call. Others ignore
                   it
    variant        of the weight files, "fp16" for instance; None for plain ones, or where there are none, the
                   variant that there is
    prediction     "epsilon", "v" or "velocity" (`diffusion.predictions.KINDS`)
    family, blocks what `formats.lora_keys` asks: "sd1", "sd2", "sdxl", "sd3" or "flux", and a UNet's residual
                   blocks a level
    """

    def __init__(
        self,
        folder: str | Path,
        prompts: str | Sequence[str],
        negative: str | None = "",
        size: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        guidance: float = 3.5,
        variant: str | None = None,
    ):
        folder, prompts = Path(folder), [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise BadValue("prompts must hold at least one text, got none.")
        read_index(folder)
        scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
        scale = pixels_per_latent(folder)
        conditionings = encode(folder, prompts, negative, device, dtype, variant)
        gc.collect()  # the text encoders
        module = load_network(folder, dtype, variant)
        self._set_network(module, scheduler, size, scale, guidance)
        self._set_conditionings(conditionings)
        self._place(module, device, dtype)

    @classmethod
    def from_component(
        cls,
        module: torch.nn.Module,
        scheduler: Any,
        conditionings: Sequence[Conditioning],
        negative: Conditioning,
        size: Sequence[int] | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        guidance: float = 3.5,
        scale: int = NO_VAE,
    ) -> "DiffusersDenoiser":
        """The same over a loaded network, which is moved to `device` and `dtype` and frozen.

        scheduler      a diffusers scheduler, or the dict of its scheduler_config.json
        conditionings  [(embeds (T, D), pooled (P,) or None)], negative one such pair
        scale          pixels per latent
        """
        if not isinstance(scheduler, Mapping):
            scheduler = {**scheduler.config, "_class_name": type(scheduler).__name__}
        self = cls.__new__(cls)
        self._set_network(module, scheduler, size, scale, guidance)
        self._set_conditionings([*conditionings, negative])
        self._place(module, device, dtype)
        return self

    def _set_network(self, module, scheduler, size, scale, guidance):
        """What network, noise levels and size there are; refuses what does not go together."""
        self._network = network = network_of(module)
        self.family, self.blocks = network.family, module.config.get("layers_per_block")
        own = module.config.get("sample_size") or 128
        if size is None and isinstance(own, int):
            size = (own * scale, own * scale)
        h, w = (s // scale for s in checked_size(size, scale * network.side))
        self.shape, self.noise_scale = (network.channels, h, w), 1.0
        levels = levels_of(scheduler, (h // 2) * (w // 2))
        self.path, self.sigma_of, self.prediction = levels.path, levels.sigma_of, levels.prediction
        self.table = levels.table
        _check_together(network.family, type(module).__name__, levels, scheduler)
        self._extra = None
        if self.family == "sdxl":  # original size, crop, target size
            self._extra = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
        if self.family == "flux" and module.config["guidance_embeds"]:
            self._extra = torch.tensor(float(guidance))

    def _set_conditionings(self, conditionings):
        """Of the prompts, and of the negative as the last."""
        self._embeds, self._pooled = stacked(conditionings, self._network.width, self._network.pooled)
        self.conditions = len(conditionings) - 1

    def _place(self, module, device, dtype):
        self.device, self.dtype = torch.device(device), dtype
        if module.dtype != dtype:
            module = module.to(dtype)
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.base = fingerprint(module)

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Within: the network computes in float32. Its weights are cast there and back: nothing is lost."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        before, kept = self.dtype, [(t, t.dtype) for t in tensors if t.is_floating_point()]
        try:
            self.dtype = torch.float32
            for tensor, _ in kept:
                tensor.data = tensor.data.float()
            yield
        finally:
            self.dtype = before
            for tensor, dtype in kept:
                tensor.data = tensor.data.to(dtype)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        home, x = x.device, x.to(self.device, torch.float32)
        sigma, condition = sigma.to(self.device, torch.float32), condition.cpu()
        level = expand(sigma, x)
        if self.table is None:
            velocity = self._predict(x, 1000 * sigma, condition)
            return to_x0(velocity, "velocity", x, 1 - level, level).to(home)
        index = nearest_index(sigma, self.table)
        scale = (level.square() + 1).rsqrt()
        out = self._predict(x * scale, index, condition)
        if self.prediction == "v":  # of the variance preserved x
            return to_x0(out, "v", x * scale, scale, level * scale).to(home)
        return to_x0(out, "epsilon", x, torch.ones_like(level), level).to(home)

    def _predict(self, x, t, condition):
        """The raw prediction, float32, of x as the network sees it."""
        embeds = self._embeds[condition].to(self.device, self.dtype)
        pooled = None if self._pooled is None else self._pooled[condition].to(self.device, self.dtype)
        return self._network.ask(self.module, x.to(self.dtype), t, embeds, pooled, self._extra).float()


def _check_together(family, name, levels, scheduler):
    """Raise ValueError where network and scheduler are of different kinds."""
    is_flow = levels.table is None
    if is_flow and family not in ("sd3", "flux"):
        raise BadValue(
            "scheduler must be a discrete one for a {name}, got {got}.",
            name=name,
            got=scheduler.get("_class_name"),
        )
    if not is_flow and family in ("sd3", "flux"):
        raise BadValue(
            "scheduler must be a flow-matching one for a {name}, got {got}.",
            name=name,
            got=scheduler.get("_class_name"),
        )


def stacked(
    conditionings: Sequence[Conditioning], width: int, pooled_width: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(embeds (C, T, D), pooled (C, P) or None) of C pairs (embeds (T, D), pooled (P,) or None), the last
    of which is the negative's; on the CPU. Refuses other shapes.
    """
    tokens = conditionings[0][0].shape[0]
    wanted = None if pooled_width is None else (pooled_width,)
    for number, (embeds, pooled) in enumerate(conditionings):
        name = Message("conditioning {number}", number=number)
        if number == len(conditionings) - 1:
            name = Message("the negative")
        fits = embeds.ndim == 2 and embeds.shape[0] == tokens
        if not fits or (isinstance(width, int) and embeds.shape[1] != width):
            raise BadValue(
                "{name} must have embeds of shape {tokens} × {width}, got {got}. Pad all prompts to one "
                "length, and encode them with this model's own text encoders.",
                name=name,
                tokens=tokens,
                width=width,
                got=tuple(embeds.shape),
            )
        got = None if pooled is None else tuple(pooled.shape)
        if got != wanted:
            raise BadValue(
                "{name} must have pooled of shape {wanted}, got {got}.", name=name, wanted=wanted, got=got
            )
    every_pooled = None if pooled_width is None else torch.stack([p for _, p in conditionings]).cpu()
    return torch.stack([e for e, _ in conditionings]).cpu(), every_pooled


def checked_size(size: Any, multiple: int) -> tuple[int, int]:
    """(height, width) in pixels; raises ValueError unless both are multiples of `multiple`."""
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise BadValue("size must be a height and a width in pixels, got {got}.", got=size)
    if any(isinstance(s, bool) or int(s) != s or s < multiple or s % multiple for s in size):
        height, width = size
        raise BadValue(
            "size must be of multiples of {multiple} pixels, got {width} wide and {height} high.",
            multiple=multiple,
            width=width,
            height=height,
        )
    return int(size[0]), int(size[1])
