"""The networks of diffusers that are known here: what they are, and how they are asked."""

import dataclasses
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ...diffusion.faults import BadValue
from .pipelines import PIPELINES

# UNet inputs that we don't give
UNUSED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "time_cond_proj_dim",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a network is.

    family    "sd1", "sd2", "sdxl", "sd3" or "flux" (`formats.lora_keys.FAMILIES`)
    ask       (module, x, t, embeds, pooled, extra) -> its raw output, one of the functions below
    channels  of its latents
    side      latents along the side of one token
    width     of the text's embeds, pooled that of their pooled vector, None where it takes none
    """

    family: str
    ask: Callable[..., torch.Tensor]
    channels: int
    side: int
    width: int
    pooled: int | None


def network_of(module: torch.nn.Module) -> Network:
    """What this network is.

    Raises ValueError for another class, and for inputs that a plain text-to-image model does not have.
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
        return Network(
            family="flux",
            ask=ask_flux,
            channels=channels // 4,
            side=2,
            width=config["joint_attention_dim"],
            pooled=config["pooled_projection_dim"],
        )
    if name == "SD3Transformer2DModel":
        return Network(
            family="sd3",
            ask=ask_sd3,
            channels=channels,
            side=config["patch_size"],
            width=config["joint_attention_dim"],
            pooled=config["pooled_projection_dim"],
        )
    return _unet(config, channels)


def _unet(config, channels):
    added = config["addition_embed_type"]
    odd = [k for k in UNUSED if config.get(k) is not None]
    if odd or added not in (None, "text_time"):
        raise BadValue(
            "module must be the UNet of SD1, SD2 or SDXL, got one with {got}.",
            got=odd or ["addition_embed_type"],
        )
    pooled = None
    if added is None:
        family = "sd2" if config["use_linear_projection"] else "sd1"
    else:
        family = "sdxl"
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return Network(
        family=family,
        ask=ask_unet,
        channels=channels,
        side=1,
        width=config["cross_attention_dim"],
        pooled=pooled,
    )


def ask_unet(
    module: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    embeds: torch.Tensor,
    pooled: torch.Tensor | None,
    extra: torch.Tensor | None,
) -> torch.Tensor:
    """SD1, SD2 and SDXL; t: the index of the noise level; extra: SDXL's time_ids (6,), else None."""
    added = None
    if pooled is not None:
        added = {"text_embeds": pooled, "time_ids": extra.to(x.device).expand(len(x), -1)}
    return module(x, t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]


def ask_sd3(
    module: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    embeds: torch.Tensor,
    pooled: torch.Tensor,
    extra: None,
) -> torch.Tensor:
    """SD3 and 3.5; t: 1000 sigma; extra is not used."""
    out = module(x, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=t, return_dict=False)
    return out[0]


def ask_flux(
    module: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    embeds: torch.Tensor,
    pooled: torch.Tensor,
    extra: torch.Tensor | None,
) -> torch.Tensor:
    """Flux, where 2x2 latents are one token.

    t: 1000 sigma; extra: the guidance that a dev model is told, None for schnell.
    """
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    rows, columns = torch.arange(h).float(), torch.arange(w).float()
    places = torch.cartesian_prod(torch.zeros(1), rows, columns)  # of each token: (image 0, row, column)
    guidance = None if extra is None else extra.to(x.device).expand(len(x))
    # time and guidance go in exactly, as the network would round them to its half precision
    exact = [t] if extra is None else [t, 1000 * guidance]
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
