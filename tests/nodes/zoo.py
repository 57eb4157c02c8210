"""Tiny models of twelve families with random weights, which ComfyUI detects from their tensors as it does
real files.

Width is what detection fixes (SD3's is 64 * depth); `blocks` is how many transformer blocks a model has.
Weights, conditioning and latents depend on the family's name alone.
"""

import copy
import dataclasses
import json
import zlib

import torch

UNET = dict(
    use_checkpoint=False,
    image_size=32,
    use_spatial_transformer=True,
    legacy=False,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    channel_mult=[1],
    num_res_blocks=[1],
    transformer_depth_output=[0, 0],
    transformer_depth_middle=-2,
    adm_in_channels=None,
    use_temporal_resblock=False,
    use_temporal_attention=False,
)
KOALA = dict(
    UNET,
    num_classes="sequential",
    adm_in_channels=2816,
    use_linear_in_transformer=True,
    context_dim=2048,
    num_res_blocks=[3],
    transformer_depth=[0, 2, 5],
    transformer_depth_output=[0, 0, 0, 0],
)  # the smallest SDXL
MMDIT = dict(
    in_channels=16,
    out_channels=16,
    patch_size=2,
    input_size=None,
    adm_in_channels=2048,
    num_patches=1024,
    pos_embed_max_size=32,
    pos_embed_scaling_factor=None,
)
FLUX = dict(
    image_model="flux",
    axes_dim=[16, 56, 56],
    num_heads=1,
    mlp_ratio=4.0,
    theta=10000,
    in_channels=16,
    out_channels=16,
    qkv_bias=True,
    txt_ids_dims=[],
    hidden_size=128,
    context_in_dim=4096,
    patch_size=2,
    vec_in_dim=768,
    yak_mlp=False,
    txt_norm=False,
)
FLUX2 = dict(
    FLUX,
    image_model="flux2",
    axes_dim=[32, 32, 32, 32],
    mlp_ratio=3.0,
    theta=2000,
    in_channels=128,
    out_channels=128,
    qkv_bias=False,
    txt_ids_dims=[3],
    context_in_dim=7680,
    patch_size=1,
    vec_in_dim=None,
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
    guidance_embed=False,
)
WAN = dict(
    image_model="wan2.1",
    model_type="t2v",
    dim=128,
    in_dim=16,
    out_dim=16,
    num_heads=1,
    ffn_dim=256,
    patch_size=(1, 2, 2),
    freq_dim=256,
    window_size=(-1, -1),
    qk_norm=True,
    cross_attn_norm=True,
    eps=1e-6,
)
LTXV = dict(
    image_model="ltxv", attention_head_dim=4, cross_attention_dim=128, use_keyframes_abs_pos_embedding=False
)
NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm)


@dataclasses.dataclass(frozen=True)
class Family:
    """cls of comfy.supported_models; config(blocks) of its model; the smallest latent; what its conditioning
    holds.
    """

    cls: str
    config: object
    latent: tuple
    cross: tuple
    pooled: int = 0
    extra: dict = dataclasses.field(default_factory=dict)
    markers: dict = dataclasses.field(default_factory=dict)  # tensors that only tell detection something
    deep: int = 8  # the most blocks that tests should ask for


def unet(linear, width):
    return lambda n: dict(UNET, use_linear_in_transformer=linear, context_dim=width, transformer_depth=[n])


def mmdit(**more):
    return lambda n: dict(
        MMDIT,
        depth=n,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 64 * n},
        },
        **more,
    )


def flux(base, **more):
    return lambda n: dict(base, depth=max(1, n // 4), depth_single_blocks=n - max(1, n // 4), **more)


SD2_V = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}
SDXL_V = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
FAMILIES = {
    "sd15": Family("SD15", unet(False, 768), (4, 8, 8), (77, 768)),
    "sd2_eps": Family("SD20", unet(True, 1024), (4, 8, 8), (77, 1024)),
    "sd2_v": Family("SD20", unet(True, 1024), (4, 8, 8), (77, 1024), markers=SD2_V, deep=2),
    "sdxl": Family("KOALA_700M", lambda n: KOALA, (4, 8, 8), (77, 2048), 1280, deep=2),
    "sdxl_v": Family("KOALA_700M", lambda n: KOALA, (4, 8, 8), (77, 2048), 1280, markers=SDXL_V, deep=2),
    "sd3": Family("SD3", mmdit(x_block_self_attn_layers=[]), (16, 8, 8), (77, 4096), 2048, deep=4),
    "sd35m": Family(
        "SD3", mmdit(x_block_self_attn_layers=[0], qk_norm="rms"), (16, 8, 8), (77, 4096), 2048, deep=4
    ),
    "flux_dev": Family(
        "Flux", flux(FLUX, guidance_embed=True), (16, 8, 8), (32, 4096), 768, {"guidance": 3.5}
    ),
    "flux_schnell": Family("FluxSchnell", flux(FLUX, guidance_embed=False), (16, 8, 8), (32, 4096), 768),
    "flux2": Family("Flux2", flux(FLUX2), (128, 4, 4), (32, 7680)),
    "wan21": Family("WAN21_T2V", lambda n: dict(WAN, num_layers=n), (16, 1, 8, 8), (32, 4096)),
    "ltxv": Family(
        "LTXV",
        lambda n: dict(LTXV, num_layers=n),
        (128, 1, 4, 4),
        (32, 4096),
        extra={"attention_mask": torch.ones(1, 32, dtype=torch.long)},
    ),
}


def load(name, blocks=2, change=dict, **options):
    """The MODEL that ComfyUI makes of the family's tensors, changed. Raises AssertionError where it detects
    another family.
    """
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(change(state_dict(name, blocks)), model_options=options)
    assert type(model.model.model_config).__name__ == FAMILIES[name].cls
    return model


def state_dict(name, blocks=2):
    """Random float32 weights of the family's diffusion model, by the names of published files."""
    import comfy.supported_models

    family = FAMILIES[name]
    config = getattr(comfy.supported_models, family.cls)(copy.deepcopy(family.config(blocks)))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "").diffusion_model
    fill(model, name)
    tensors = {
        k.replace("query_norm.weight", "query_norm.scale").replace(
            "key_norm.weight", "key_norm.scale"
        ): v.detach().clone()
        for k, v in model.state_dict().items()
    }
    return {**tensors, **family.markers}


def quantised(tensors, layout="float8_e4m3fn"):
    """The state dict with its blocks' Linear weights in ComfyUI's own quantised layout."""
    out = dict(tensors)
    for key, weight in tensors.items():
        if key.endswith(".weight") and weight.ndim == 2 and "blocks" in key and "norm" not in key:
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            prefix = key.removesuffix("weight")
            out[key], out[f"{prefix}weight_scale"] = (weight / scale).to(torch.float8_e4m3fn), scale
            out[f"{prefix}comfy_quant"] = torch.tensor(
                list(json.dumps({"format": layout}).encode()), dtype=torch.uint8
            )
    return out


@torch.no_grad()
def fill(module, name):
    """Weights that keep activations near 1; ComfyUI leaves them uninitialised."""
    g = generator(name)
    for part in module.modules():
        for key, p in part.named_parameters(recurse=False):
            noise = torch.randn(p.shape, generator=g)
            if key in ("weight", "scale", "gamma") and (isinstance(part, NORMS) or p.ndim == 1):
                p.copy_(1 + 0.05 * noise)
            elif key == "weight":
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_((0.05 if key == "bias" else 0.1) * noise)
        for key, b in part.named_buffers(recurse=False):
            if key == "pos_embed":
                b.copy_(0.1 * torch.randn(b.shape, generator=g))


def conditioning(name, seed=0):
    """Random CONDITIONING as the family's text encoders shape it."""
    family, g = FAMILIES[name], generator(name, seed)
    pooled = {"pooled_output": torch.randn(1, family.pooled, generator=g)} if family.pooled else {}
    return [[torch.randn(1, *family.cross, generator=g), {**pooled, **copy.deepcopy(family.extra)}]]


def latent(name, batch=1, seed=0):
    """Random latents (batch, ...) of the smallest size."""
    return torch.randn(batch, *FAMILIES[name].latent, generator=generator(name, 100 + seed))


def generator(name, seed=0):
    return torch.Generator().manual_seed(zlib.crc32(f"{name}/{seed}".encode()))
