"""A diffusers model as a `Denoiser`: a pipeline folder on disk, or a loaded UNet or transformer with
ready-made conditionings.

pipeline                        network                      scheduler       path                 timestep
StableDiffusionPipeline (1, 2)  UNet2DConditionModel         beta schedule   variance exploding   nearest
                                index by log sigma
StableDiffusionXLPipeline       UNet2DConditionModel         beta schedule   variance exploding   nearest
                                index by log sigma
StableDiffusion3Pipeline        SD3Transformer2DModel        flow matching   flow                 1000 sigma
FluxPipeline                    FluxTransformer2DModel       flow matching   flow                 sigma, which
                                it takes times 1000

Latents are in the model's scaled space, what diffusers' `output_type="latent"` gives (Flux: before it packs
them). Discrete models see x / sqrt(1 + sigma^2), variance preserving; sigma = sqrt((1 - a) / a) with a
diffusers' `alphas_cumprod`, and a zero terminal SNR is a = 2^-24, as in its Euler scheduler. A LoRA made here
runs on the same noise levels in ComfyUI, where the index is found the same way.

A flow scheduler's shift s enters `sigma_of`: sigma(t) = s t / (1 + (s - 1) t). Dynamic shifting (Flux dev)
makes s depend on the number n of image tokens: mu is the line through (base_image_seq_len, base_shift) and
(max_image_seq_len, max_shift) at n, and s = exp(mu), or mu itself where time_shift_type is linear. So it is
fixed by the size in pixels. (ComfyUI takes mu = 1.15 at every size; a recipe holds sigmas, so that this does
not matter to it.)

diffusers and transformers are optional, imported late; `pipelines` reads the folder.
"""

import gc
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from ...diffusion.faults import BadValue
from ...diffusion.paths import FLOW, VARIANCE_EXPLODING
from ...diffusion.predictions import expand, to_x0
from ...diffusion.schedules.grids import discrete_sigma, flow_sigma, nearest_index
from .fingerprint import fingerprint
from .pipelines import (
    NO_VAE,
    PIPELINES,
    encode,
    library,
    load_network,
    pixels_per_latent,
    read_index,
    read_object,
)

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
SHIFTS = {
    "shift": 1.0,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
UNUSED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "time_cond_proj_dim",
)  # UNet inputs that we don't give


# ---- the noise levels ------------------------------------------------------------------------------


def schedule(config, tokens):
    """(path, sigma_of, table, prediction) of a scheduler's config, for images of that many tokens (2x2
    latents).

    table: the N ascending sigmas of a discrete model, float64; None for a flow model. Raises ValueError for
    other schedulers.
    """
    name = config.get("_class_name", "")
    if "FlowMatch" in name:
        if odd := [k for k in ("invert_sigmas", "shift_terminal") if config.get(k)]:
            raise BadValue(
                "scheduler must be without {odd}, got {got} with it; such models are not supported.",
                odd=list(odd),
                got=name,
            )
        return FLOW, flow_sigma(flow_shift(config, tokens)), None, "velocity"
    if "beta_schedule" not in config or config.get("use_flow_sigmas"):
        raise ValueError(
            "scheduler must be a flow-matching one or a discrete one with a beta_schedule, got "
            f"{name or 'no _class_name'}{' with use_flow_sigmas' * bool(config.get('use_flow_sigmas'))}."
        )
    prediction, zero_snr = config.get("prediction_type", "epsilon"), config.get("rescale_betas_zero_snr")
    if prediction not in PREDICTIONS:
        raise BadValue(
            "scheduler prediction_type must be one of {predictions}, got {got!r}.",
            predictions=list(PREDICTIONS),
            got=prediction,
        )
    if zero_snr and prediction == "epsilon":
        raise BadValue(
            "scheduler must not have rescale_betas_zero_snr with prediction_type epsilon: at zero SNR "
            "epsilon says nothing of the picture. Use v_prediction if the model was trained so, or switch "
            "the rescaling off.",
        )
    given = {k: config[k] for k in BETAS if config.get(k) is not None}
    try:
        left = library().DDPMScheduler(**given).alphas_cumprod.double()
    except (TypeError, ValueError, RuntimeError) as error:  # of which NotImplementedError is one
        raise BadValue(
            "scheduler must have a beta_schedule that diffusers knows, and numbers beside it, got {got} "
            "({error}).",
            got=given,
            error=error,
        ) from error
    if zero_snr:
        left[-1] = 2.0**-24
    table = ((1 - left) / left).sqrt()
    if not (len(table) > 1 and table[0] > 0 and table[-1] < math.inf and (table.diff() > 0).all()):
        raise BadValue(
            "scheduler must have noise levels that rise, two or more, got those of {given}.",
            given=given,
        )
    return VARIANCE_EXPLODING, discrete_sigma(table), table, PREDICTIONS[prediction]


def flow_shift(config, tokens):
    """The shift s of a flow scheduler's config at that many image tokens."""
    values = [config.get(name, usual) for name, usual in SHIFTS.items()]
    shift, few, many, low, high = values
    if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in values) or few == many:
        raise BadValue(
            "scheduler must have numbers for {shifts}, got {got}.",
            shifts=list(SHIFTS),
            got=list(map(repr, values)),
        )
    if config.get("use_dynamic_shifting"):
        mu = low + (high - low) * (tokens - few) / (many - few)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(min(mu, 100))
    if not 1e-3 <= shift <= 1e3:
        raise BadValue("scheduler must have a shift from 0.001 to 1000, got {got}.", got=shift)
    return float(shift)


# ---- the networks ----------------------------------------------------------------------------------


def ask_unet(module, x, t, embeds, pooled, extra):
    """SD1, SD2 and SDXL; extra: SDXL's time_ids (6,), else None."""
    added = (
        None if pooled is None else {"text_embeds": pooled, "time_ids": extra.to(x.device).expand(len(x), -1)}
    )
    return module(x, t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]


def ask_sd3(module, x, t, embeds, pooled, extra):
    return module(x, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=t, return_dict=False)[
        0
    ]


def ask_flux(module, x, t, embeds, pooled, extra):
    """Flux: 2x2 latents are one token; extra: the guidance that a dev model is told, None for schnell."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    places = torch.cartesian_prod(
        torch.zeros(1), torch.arange(h).float(), torch.arange(w).float()
    )  # (image 0, row, column)
    guidance = None if extra is None else extra.to(x.device).expand(len(x))
    exact = (
        [t] if extra is None else [t, 1000 * guidance]
    )  # the network would round both to its half precision
    hook = module.time_text_embed.register_forward_pre_hook(lambda _, args: (*exact, args[-1]))
    try:
        out = module(
            F.pixel_unshuffle(x, 2).flatten(2).mT,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=t / 1000,
            guidance=guidance,
            img_ids=places.to(x),
            txt_ids=torch.zeros(embeds.shape[1], 3).to(x),
            return_dict=False,
        )[0]
    finally:
        hook.remove()
    return F.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)


def describe(module):
    """(family, how to ask it, latent channels, pixels of a latent that make one token's side, width, pooled
    width or None).

    Family as `export` has it. Raises ValueError for another class, and for inputs that a plain text-to-image
    model has not.
    """
    name, config = type(module).__name__, getattr(module, "config", {})
    if name not in PIPELINES.values():
        raise BadValue(
            "module must be one of {pipelines}, got {got}.",
            pipelines=list(dict.fromkeys(PIPELINES.values())),
            got=name,
        )
    channels, out = config["in_channels"], config["out_channels"] or config["in_channels"]
    if channels != out:
        raise BadValue(
            "module must be a text-to-image model with as many channels in as out, got {got} in and {out} "
            "out (inpainting, editing and control models are not supported).",
            got=channels,
            out=out,
        )
    if name == "FluxTransformer2DModel":
        return (
            "flux",
            ask_flux,
            channels // 4,
            2,
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
        )
    if name == "SD3Transformer2DModel":
        return (
            "sd3",
            ask_sd3,
            channels,
            config["patch_size"],
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
        )
    odd = [k for k in UNUSED if config.get(k) is not None]
    if odd or config["addition_embed_type"] not in (None, "text_time"):
        raise ValueError(
            f"module must be the UNet of SD1, SD2 or SDXL, got one with {', '.join(odd) or 'addition_embed_type'}."
        )
    if config["addition_embed_type"] is None:
        return (
            "sd2" if config["use_linear_projection"] else "sd1",
            ask_unet,
            channels,
            1,
            config["cross_attention_dim"],
            None,
        )
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return "sdxl", ask_unet, channels, 1, config["cross_attention_dim"], pooled


def stacked(conditionings, width, pooled_width):
    """(embeds (C, T, D), pooled (C, P) or None) of [(embeds (T, D), pooled (P,) or None)], on the CPU;
    refuses other shapes.
    """
    tokens = conditionings[0][0].shape[0]
    for number, (embeds, pooled) in enumerate(conditionings):
        name = "the negative" if number == len(conditionings) - 1 else f"conditioning {number}"
        if (
            embeds.ndim != 2
            or embeds.shape[0] != tokens
            or (isinstance(width, int) and embeds.shape[1] != width)
        ):
            raise BadValue(
                "{name} must have embeds of shape ({tokens}, {width}), got {got}. Pad all prompts to one "
                "length, and encode them with this model's own text encoders.",
                name=name,
                tokens=tokens,
                width=width,
                got=tuple(embeds.shape),
            )
        got = None if pooled is None else tuple(pooled.shape)
        if got != (None if pooled_width is None else (pooled_width,)):
            raise ValueError(
                f"{name} must have pooled of shape {pooled_width and (pooled_width,)}, got {got}."
            )
    pooled = None if pooled_width is None else torch.stack([p for _, p in conditionings]).cpu()
    return torch.stack([e for e, _ in conditionings]).cpu(), pooled


def checked_size(size, multiple):
    """(height, width) in pixels; raises ValueError unless both are multiples of `multiple`."""
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise BadValue("size must be a height and a width in pixels, got {got}.", got=size)
    if any(isinstance(s, bool) or int(s) != s or s < multiple or s % multiple for s in size):
        height, width = size
        raise BadValue(
            "size must be of multiples of {multiple} pixels, got {got} wide and {height} high.",
            multiple=multiple,
            got=width,
            height=height,
        )
    return int(size[0]), int(size[1])


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
    family, blocks what `export` asks: "sd1", "sd2", "sdxl", "sd3" or "flux", and a UNet's residual blocks a
    level
    """

    def __init__(
        self,
        folder,
        prompts,
        negative="",
        size=None,
        *,
        device="cpu",
        dtype=torch.float32,
        guidance=3.5,
        variant=None,
    ):
        folder, prompts = Path(folder), [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise BadValue("prompts must hold at least one text, got none.")
        read_index(folder)
        config, scale = read_object(folder / "scheduler" / "scheduler_config.json"), pixels_per_latent(folder)
        *conditionings, last = encode(folder, prompts, negative, device, dtype, variant)
        gc.collect()  # the text encoders
        self._set(
            load_network(folder, dtype, variant),
            config,
            conditionings,
            last,
            size,
            scale,
            device,
            dtype,
            guidance,
        )

    @classmethod
    def from_component(
        cls,
        module,
        scheduler,
        conditionings,
        negative,
        size=None,
        *,
        device="cpu",
        dtype=torch.float32,
        guidance=3.5,
        scale=NO_VAE,
    ):
        """The same over a loaded network, which is moved to `device` and `dtype` and frozen.

        scheduler      a diffusers scheduler, or the dict of its scheduler_config.json
        conditionings  [(embeds (T, D), pooled (P,) or None)], negative one such pair
        scale          pixels per latent
        """
        config = (
            scheduler
            if isinstance(scheduler, dict)
            else {**scheduler.config, "_class_name": type(scheduler).__name__}
        )
        self = cls.__new__(cls)
        self._set(module, config, conditionings, negative, size, scale, device, dtype, guidance)
        return self

    def _set(self, module, config, conditionings, negative, size, scale, device, dtype, guidance):
        self.family, self._ask, channels, side, width, pooled = describe(module)
        own = module.config.get("sample_size") or 128
        if size is None and isinstance(own, int):
            size = (own * scale, own * scale)
        h, w = (s // scale for s in checked_size(size, scale * side))
        self.path, self.sigma_of, self.table, self.prediction = schedule(config, (h // 2) * (w // 2))
        if (self.table is None) != (self._ask is not ask_unet):
            raise ValueError(
                f"scheduler must be {'a discrete one' if self._ask is ask_unet else 'a flow-matching one'} for a "
                f"{type(module).__name__}, got {config.get('_class_name')}."
            )
        self._embeds, self._pooled = stacked([*conditionings, negative], width, pooled)
        self.device, self.dtype = torch.device(device), dtype
        self.module = (
            (module if module.dtype == dtype else module.to(dtype))
            .to(self.device)
            .eval()
            .requires_grad_(False)
        )
        self.shape, self.conditions, self.noise_scale = (channels, h, w), len(conditionings), 1.0
        self.base = fingerprint(module)
        self.blocks = module.config.get("layers_per_block")
        self._extra = None
        if self.family == "sdxl":
            self._extra = torch.tensor(
                [*size, 0, 0, *size], dtype=torch.float32
            )  # original size, crop, target size
        if self.family == "flux" and module.config["guidance_embeds"]:
            self._extra = torch.tensor(float(guidance))

    def __call__(self, x, sigma, condition):
        home, x = x.device, x.to(self.device, torch.float32)
        sigma, condition = sigma.to(self.device, torch.float32), condition.cpu()
        level = expand(sigma, x)
        if self.table is None:
            return to_x0(self._network(x, 1000 * sigma, condition), "velocity", x, 1 - level, level).to(home)
        index = nearest_index(sigma, self.table)
        scale = (level.square() + 1).rsqrt()
        out = self._network(x * scale, index, condition)
        if self.prediction == "v":  # of the variance preserved x
            return to_x0(out, "v", x * scale, scale, level * scale).to(home)
        return to_x0(out, "epsilon", x, torch.ones_like(level), level).to(home)

    def _network(self, x, t, condition):
        """The raw prediction, float32, of x as the network sees it."""
        embeds = self._embeds[condition].to(self.device, self.dtype)
        pooled = None if self._pooled is None else self._pooled[condition].to(self.device, self.dtype)
        return self._ask(self.module, x.to(self.dtype), t, embeds, pooled, self._extra).float()
