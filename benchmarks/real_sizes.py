"""Models of real size by ComfyUI's own configs and classes: what `memory_plan.py` and `card.py` measure.

ComfyUI is looked for in COMFYUI_PATH, or ~/ComfyUI; it runs in this process, on the CPU without a card.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "adm_in_channels": None,
    "use_temporal_resblock": False,
    "use_temporal_attention": False,
}
SD15 = {
    **UNET,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 768,
}
SDXL = {
    **UNET,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
}
SD35_MEDIUM = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": 24,
    "x_block_self_attn_layers": list(range(13)),
    "qk_norm": "rms",
    "adm_in_channels": 2048,
    "num_patches": 147456,
    "pos_embed_max_size": 384,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 3072,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "mlp_ratio": 4.0,
    "theta": 10000,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "yak_mlp": False,
    "txt_norm": False,
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "qk_norm": True,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN_IMAGE = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}
WAN_13B = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 1536,
    "ffn_dim": 8960,
    "num_heads": 12,
    "num_layers": 30,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model, and what its conditioning holds for a sample.

    cls      in `comfy.supported_models`, with that config
    latents  by the size that people name
    text     (tokens, width) of a prompt; pooled: numbers of its pooled part, 0 for none
    stored   dtype of the file, where that is smaller than the one in which it computes
    """

    cls: str
    config: dict
    latents: dict[str, tuple[int, ...]]
    text: tuple[int, int]
    pooled: int = 0
    stored: torch.dtype = torch.bfloat16
    more: dict[str, Callable] = dataclasses.field(default_factory=dict)


FP8 = torch.float8_e4m3fn
FAMILIES = {
    "SD1.5": Family(cls="SD15", config=SD15, latents={"512": (4, 64, 64)}, text=(77, 768)),
    "SDXL": Family(cls="SDXL", config=SDXL, latents={"1024": (4, 128, 128)}, text=(77, 2048), pooled=2816),
    "SD3.5 medium": Family(
        cls="SD3", config=SD35_MEDIUM, latents={"1024": (16, 128, 128)}, text=(154, 4096), pooled=2048
    ),
    "Flux dev fp8": Family(
        cls="Flux",
        config=FLUX,
        latents={"1024": (16, 128, 128)},
        text=(512, 4096),
        pooled=768,
        stored=FP8,
        more={"guidance": lambda: torch.full((1,), 3.5)},
    ),
    "Z-Image": Family(
        cls="ZImage",
        config=Z_IMAGE,
        latents={"1024": (16, 128, 128)},
        text=(256, 2560),
        more={"num_tokens": lambda: 256},
    ),
    "Qwen-Image fp8": Family(
        cls="QwenImage",
        config=QWEN_IMAGE,
        latents={"1024": (16, 1, 128, 128)},
        text=(256, 3584),
        stored=FP8,
    ),
    "Wan 2.1 1.3B": Family(
        cls="WAN21_T2V",
        config=WAN_13B,
        latents={"480p, 1 frame": (16, 1, 60, 104), "480p, 81 frames": (16, 21, 60, 104)},
        text=(512, 4096),
    ),
}


def folder() -> Path | None:
    """Where ComfyUI is, None where it is not found."""
    found = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "ComfyUI")
    return found if (found / "comfy" / "model_base.py").is_file() else None


@functools.cache
def start() -> None:
    """Make ComfyUI's modules importable, on the CPU where there is no card, as they are while it trains."""
    found = folder()
    if found is None:
        raise SystemExit("ComfyUI is not found: set COMFYUI_PATH to its folder.")
    sys.path.insert(0, str(found))
    import comfy.cli_args

    if not torch.cuda.is_available():
        comfy.cli_args.args.cpu = True
    import comfy.model_management

    comfy.model_management.in_training = True


def build(family: Family, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, **changes):
    """The `BaseModel` that ComfyUI makes of the family's config, changed: frozen, its weights as they come.

    device: "meta" for a model without weights.
    """
    start()
    import copy

    import comfy.supported_models

    config = copy.deepcopy({**family.config, **changes})
    known = getattr(comfy.supported_models, family.cls)(config)
    stored = family.stored if family.stored.itemsize < dtype.itemsize else dtype
    known.set_inference_dtype(stored, None if stored == dtype else dtype)
    return known.get_model({}, "", device=device).requires_grad_(False).eval()


def call(model, x: torch.Tensor, sigma: torch.Tensor, conds: dict, attention: Callable) -> torch.Tensor:
    """x0 (B, ...) of the model, as `ComfyDenoiser` asks it; attention: in place of the host's."""
    options = {"optimized_attention_override": attention, "sigmas": sigma, "sample_sigmas": sigma}
    return model.apply_model(x, sigma, transformer_options=options, **conds)


def conditioning(family: Family, samples: int, device: torch.device | str, dtype: torch.dtype) -> dict:
    """Random conditioning of so many samples, as the model takes it."""
    conds = {"c_crossattn": torch.randn(samples, *family.text, device=device, dtype=dtype)}
    if family.pooled:
        conds["y"] = torch.randn(samples, family.pooled, device=device, dtype=dtype)
    for name, make in family.more.items():
        value = make()
        is_tensor = isinstance(value, torch.Tensor)
        conds[name] = value.to(device, dtype).expand(samples) if is_tensor else value
    return conds
