"""LoRA formats against the real ComfyUI: its layer names, its stock loader, and its own reading of diffusers'
format.
"""

import pytest
import torch
from fewstep.training.adapter.lora import Lora, target_layers
from fewstep.training.formats.lora_keys import from_diffusers, to_diffusers

pytestmark = pytest.mark.comfy

UNET = dict(
    use_checkpoint=False,
    image_size=32,
    use_spatial_transformer=True,
    legacy=False,
    in_channels=4,
    out_channels=4,
    use_temporal_resblock=False,
    use_temporal_attention=False,
)
SD1 = dict(
    UNET,
    adm_in_channels=None,
    model_channels=32,
    channel_mult=[1, 2, 4, 4],
    num_res_blocks=[2] * 4,
    context_dim=768,
    transformer_depth=[1] * 6 + [0, 0],
    transformer_depth_output=[1] * 9 + [0] * 3,
    transformer_depth_middle=1,
    use_linear_in_transformer=False,
)
MMDIT = dict(
    in_channels=16,
    out_channels=16,
    patch_size=2,
    depth=2,
    input_size=None,
    adm_in_channels=64,
    num_patches=64,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
    pos_embed_max_size=8,
    pos_embed_scaling_factor=None,
    qk_norm="rms",
    x_block_self_attn_layers=[0],
)
FLUX = dict(
    image_model="flux",
    axes_dim=[16, 56, 56],
    num_heads=1,
    mlp_ratio=4.0,
    theta=10000,
    out_channels=16,
    qkv_bias=True,
    txt_ids_dims=[],
    in_channels=16,
    hidden_size=128,
    context_in_dim=32,
    patch_size=2,
    vec_in_dim=16,
    depth=2,
    depth_single_blocks=2,
    guidance_embed=True,
    yak_mlp=False,
    txt_norm=False,
)
# family: (class in comfy.supported_models, its config); all levels and blocks of the real ones, but thin
CONFIGS = {
    "sd1": ("SD15", SD1),
    "sd2": ("SD20", dict(SD1, model_channels=64, use_linear_in_transformer=True, context_dim=1024)),
    "sdxl": (
        "SDXL",
        dict(
            UNET,
            num_classes="sequential",
            adm_in_channels=2816,
            use_linear_in_transformer=True,
            context_dim=2048,
            model_channels=64,
            channel_mult=[1, 2, 4],
            num_res_blocks=[2] * 3,
            transformer_depth_middle=3,
            transformer_depth=[0, 0, 2, 2, 3, 3],
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 3, 3, 3],
        ),
    ),
    "sd3": ("SD3", MMDIT),
    "flux": ("Flux", FLUX),
}


def comfy_model(family):
    """A thin ComfyUI model of that family, its weights 0: a LoRA patched into it is all there is."""
    import comfy.supported_models

    name, settings = CONFIGS[family]
    config = getattr(comfy.supported_models, name)(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


def trained(module, alpha=3.0):
    """The native keys of a LoRA on every layer, random on both sides."""
    lora = Lora(module, 2, alpha)
    g = torch.Generator().manual_seed(1)
    lora.load([torch.randn(p.shape, generator=g) for p in lora.parameters()])
    lora.remove()
    return lora.state_dict()


def patched(model, tensors, caplog):
    """({key: weight} after the stock loader, what it said it could not use)."""
    import comfy.model_patcher
    import comfy.sd

    cpu = torch.device("cpu")
    with caplog.at_level("WARNING"):
        caplog.clear()
        patcher, _ = comfy.sd.load_lora_for_models(
            comfy.model_patcher.ModelPatcher(model, cpu, cpu), None, dict(tensors), 1.0, 0
        )
    left = [r.getMessage() for r in caplog.records if "not loaded" in r.getMessage().lower()]
    zeros = model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, zeros[key].clone(), key)
        for key, patches in patcher.patches.items()
    }, left


def same(a, b):
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in a)


@pytest.mark.parametrize("family", CONFIGS)
def test_native_layers_come_back_and_the_stock_loader_takes_every_key(host, family, caplog):
    model = comfy_model(family)
    native = trained(model.diffusion_model)
    back = from_diffusers(to_diffusers(native))
    assert back.keys() == native.keys() and len(back) == 3 * len(target_layers(model.diffusion_model))
    wanted, _ = patched(model, native, caplog)
    weights, left = patched(model, back, caplog)
    assert left == [] and same(weights, wanted) < 1e-6
    assert weights.keys() == {
        f"diffusion_model.{name}.weight" for name in target_layers(model.diffusion_model)
    }


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_unet_names_are_comfyuis_own(host, family, caplog):
    """Its map from diffusers' names, and its loader on those that it takes in this format (not the attention
    of UNets).
    """
    import comfy.utils

    model = comfy_model(family)
    theirs = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    native = trained(model.diffusion_model)
    for name in target_layers(model.diffusion_model):
        one = {k: v for k, v in native.items() if k.startswith(f"diffusion_model.{name}.")}
        key = next(iter(to_diffusers(one, family))).removeprefix("unet.").removesuffix(".lora_A.weight")
        assert theirs[f"{key}.weight"] == f"{name}.weight"
    weights, left = patched(model, to_diffusers(native), caplog)
    wanted, _ = patched(model, native, caplog)
    assert same(weights, {k: wanted[k] for k in weights}) < 1e-6
    assert len(left) == 2 * (len(wanted) - len(weights)) and all(".to_" in line for line in left)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_comfyui_reads_the_diffusers_format_as_the_native_one(host, family, caplog):
    model = comfy_model(family)
    native = trained(model.diffusion_model)
    weights, left = patched(model, to_diffusers(native), caplog)
    wanted, _ = patched(model, native, caplog)
    assert left == [] and same(weights, wanted) < 1e-6


@pytest.mark.parametrize("family", CONFIGS)
def test_a_lora_trained_on_the_diffusers_model_fits_comfyuis(host, family, caplog):
    """The same architecture on both sides: their layers correspond one to one, in name and shape."""
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
    model = comfy_model(family)
    native = from_diffusers(trained(diffusers_model(diffusers, family)), family)
    weights, left = patched(model, native, caplog)
    assert left == [] and weights.keys() == {
        f"diffusion_model.{name}.weight" for name in target_layers(model.diffusion_model)
    }
    assert all(w.abs().max() > 0.1 for w in weights.values())


def diffusers_model(diffusers, family):
    """The diffusers model with the architecture of `comfy_model(family)`."""
    if family == "flux":
        return diffusers.FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
        )
    if family == "sd3":
        return diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=128,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    attends = [False, True, True] if family == "sdxl" else [True, True, True, False]
    settings = CONFIGS[family][1]
    extra = (
        dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            transformer_layers_per_block=[1, 2, 3],
        )
        if family == "sdxl"
        else {}
    )
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[settings["model_channels"] * m for m in settings["channel_mult"]],
        layers_per_block=2,
        norm_num_groups=32,
        cross_attention_dim=settings["context_dim"],
        attention_head_dim=8,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        use_linear_projection=family != "sd1",
        **extra,
    )
