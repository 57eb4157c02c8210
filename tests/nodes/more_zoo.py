"""Tiny models of families whose widths ComfyUI's detection fixes, made from its own classes without it, and
what they are sampled with.
"""

import copy
import dataclasses

import torch
import zoo

UNET = dict(
    zoo.UNET, model_channels=64, transformer_depth=[1], use_linear_in_transformer=False, context_dim=768
)
REFINER = dict(
    UNET,
    model_channels=64,
    num_classes="sequential",
    adm_in_channels=2560,
    use_linear_in_transformer=True,
    context_dim=1280,
)
SVD = dict(
    UNET,
    in_channels=8,
    model_channels=64,
    num_classes="sequential",
    adm_in_channels=768,
    use_linear_in_transformer=True,
    context_dim=1024,
    use_temporal_attention=True,
    use_temporal_resblock=True,
    extra_ff_mix_layer=True,
    use_spatial_context=True,
    merge_strategy="learned_with_images",
    merge_factor=0.0,
    video_kernel_size=[3, 1, 1],
)
COSMOS = dict(
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=128,
    concat_padding_mask=True,
    crossattn_emb_channels=1024,
    pos_emb_cls="rope3d",
    pos_emb_learnable=True,
    min_fps=1,
    max_fps=30,
    use_adaln_lora=True,
    adaln_lora_dim=16,
    num_blocks=2,
    num_heads=2,
    extra_per_block_abs_pos_emb=False,
    rope_enable_fps_modulation=False,
)
COGVIDEO = dict(
    image_model="cogvideox",
    num_attention_heads=2,
    attention_head_dim=64,
    time_embed_dim=64,
    num_layers=2,
    patch_size=2,
    in_channels=16,
    text_embed_dim=128,
    use_learned_positional_embeddings=False,
    use_rotary_positional_embeddings=True,
)
ERNIE = dict(
    image_model="ernie",
    hidden_size=256,
    num_attention_heads=2,
    num_layers=2,
    ffn_hidden_size=256,
    text_in_dim=128,
)
QWEN = dict(
    image_model="qwen_image",
    in_channels=64,
    num_layers=2,
    num_attention_heads=1,
    joint_attention_dim=128,
    default_ref_method="index",
)
FLUX = zoo.flux(zoo.FLUX, guidance_embed=True)


@dataclasses.dataclass(frozen=True)
class Family:
    """cls of comfy.supported_models; the config of its model; the latent; what its conditioning holds; and
    the frames of a video whose frames are the latent's batch.
    """

    cls: str
    config: dict
    latent: tuple
    cross: tuple
    pooled: int = 0
    extra: dict = dataclasses.field(default_factory=dict)
    frames: int = 1


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


IMAGE = {"concat_latent_image": drawn(1, 4, 8, 8), "concat_mask": (drawn(1, 1, 64, 64) > 0).float()}
FLUX_IMAGE = {"concat_latent_image": drawn(1, 16, 8, 8), "concat_mask": (drawn(1, 1, 64, 64) > 0).float()}
KOALA = dict(zoo.KOALA, in_channels=9, model_channels=64)
FAMILIES = {
    "sd15 inpainting, plain": Family("SD15", dict(UNET, in_channels=9), (4, 8, 8), (77, 768)),
    "sd15 inpainting": Family("SD15", dict(UNET, in_channels=9), (4, 8, 8), (77, 768), extra=IMAGE),
    "sdxl inpainting, plain": Family("KOALA_700M", KOALA, (4, 8, 8), (77, 2048), 1280),
    "sdxl inpainting": Family("KOALA_700M", KOALA, (4, 8, 8), (77, 2048), 1280, IMAGE),
    "flux fill, plain": Family(
        "FluxInpaint", dict(FLUX(2), in_channels=96), (16, 8, 8), (32, 4096), 768, {"guidance": 30.0}
    ),
    "flux fill": Family(
        "FluxInpaint", dict(FLUX(2), in_channels=96), (16, 8, 8), (32, 4096), 768, FLUX_IMAGE
    ),
    "flux kontext": Family(
        "Flux", FLUX(2), (16, 8, 8), (32, 4096), 768, {"reference_latents": [drawn(1, 16, 8, 8)]}
    ),
    "qwen image edit": Family(
        "QwenImage", QWEN, (16, 1, 8, 8), (32, 128), 0, {"reference_latents": [drawn(1, 16, 1, 8, 8)]}
    ),
    "sdxl refiner": Family("SDXLRefiner", REFINER, (4, 8, 8), (77, 1280), 1280),
    "svd": Family(
        "SVD_img2vid", SVD, (4, 8, 8), (1, 1024), 0, {"concat_latent_image": drawn(1, 4, 8, 8)}, frames=3
    ),
    "anima": Family(
        "Anima",
        dict(COSMOS, image_model="anima"),
        (16, 1, 8, 8),
        (16, 1024),
        extra={"t5xxl_ids": torch.arange(16), "t5xxl_weights": torch.ones(16)},
    ),
    "ernie": Family("ErnieImage", ERNIE, (128, 4, 4), (16, 128)),
    "cosmos predict2": Family(
        "CosmosT2IPredict2", dict(COSMOS, image_model="cosmos_predict2"), (16, 1, 8, 8), (16, 1024)
    ),
    "cogvideox": Family("CogVideoX_T2V", COGVIDEO, (16, 2, 8, 8), (16, 128)),
}


def load(name):
    """The MODEL of a family, float32, weights random by its name."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    family = FAMILIES[name]
    config = getattr(comfy.supported_models, family.cls)(copy.deepcopy(family.config))
    config.set_inference_dtype(torch.float32, None)
    if family.config.get("in_channels") == 9:
        config.inpaint_model = lambda: True
    for key, value in getattr(config, "unet_extra_config", {}).items():
        config.unet_config.setdefault(key, value)
    model = config.get_model({}, "")
    if family.config.get("in_channels") == 9:
        model.set_inpaint()
    zoo.fill(model.diffusion_model, name.removesuffix(", plain"))
    cpu = management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


def conditioning(name, seed=0):
    """CONDITIONING as the family's nodes make it."""
    family, g = FAMILIES[name], zoo.generator(name, seed)
    pooled = {"pooled_output": torch.randn(1, family.pooled, generator=g)} if family.pooled else {}
    return [[torch.randn(1, *family.cross, generator=g), {**pooled, **copy.deepcopy(family.extra)}]]


def latent(name, batch=1):
    """Random latents (batch, ...), of a video all of its frames."""
    family = FAMILIES[name]
    return torch.randn(batch * family.frames, *family.latent, generator=zoo.generator(name, 100))
