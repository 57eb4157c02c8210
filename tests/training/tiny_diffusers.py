"""Tiny random diffusers models and pipelines, and how diffusers' own pipelines ask the networks. Imported by
name.
"""

import diffusers
import torch
import transformers
from fewstep.training.models.diffusers_model import DiffusersDenoiser

WIDTH, POOLED = 16, 16
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = {
    **FLOW,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
SCALED = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
V = {**SCALED, "prediction_type": "v_prediction"}


def module(family, levels=1, layers=2, **changes):
    """A tiny random network of that family; every UNet of it has the blocks of the real one, with `levels` up
    to 4.
    """
    torch.manual_seed(0)
    if family == "flux":
        settings = dict(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=POOLED,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        made = diffusers.FluxTransformer2DModel(**{**settings, **changes})
    elif family == "sd3":
        settings = dict(
            sample_size=8,
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            out_channels=16,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=POOLED,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
        )
        made = diffusers.SD3Transformer2DModel(**{**settings, **changes})
    else:
        attends = {"sdxl": [i in (1, 2) for i in range(levels)]}.get(family, [i < 3 for i in range(levels)])
        settings = dict(
            sample_size=8,
            block_out_channels=(32,) * levels,
            layers_per_block=layers,
            norm_num_groups=8,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            use_linear_projection=family != "sd1",
        )
        if family == "sdxl":
            settings.update(
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                transformer_layers_per_block=2,
                projection_class_embeddings_input_dim=6 * 8 + POOLED,
            )
        made = diffusers.UNet2DConditionModel(**{**settings, **changes})
    with torch.no_grad():  # several parts start at 0
        for p in made.parameters():
            p += 0.05 * torch.randn(p.shape)
    return made.eval()


def conditionings(family, count=3, tokens=5):
    """[(embeds, pooled or None)], random; the last may serve as the negative."""
    g = torch.Generator().manual_seed(1)
    pooled = family in ("sdxl", "sd3", "flux")
    return [
        (torch.randn(tokens, WIDTH, generator=g), torch.randn(POOLED, generator=g) if pooled else None)
        for _ in range(count)
    ]


def denoiser(family, scheduler=None, net=None, **options):
    scheduler = scheduler or {"sd3": FLOW, "flux": DYNAMIC, "sd2": V}.get(family, SCALED)
    *prompts, negative = conditionings(family)
    net = net or module(family, levels=2 if family == "sdxl" else 1)
    return DiffusersDenoiser.from_component(
        net, scheduler, prompts, negative, size=options.pop("size", (64, 64)), **options
    )


def raw(family, net, x, t, item, guidance=3.5):
    """What the network says, called as diffusers' pipelines call it; batch of 1."""
    embeds, pooled = (None if v is None else v[None] for v in item)
    with torch.no_grad():
        if family == "flux":
            pipe = diffusers.FluxPipeline
            packed = pipe._pack_latents(x, 1, 16, *x.shape[-2:])
            ids = pipe._prepare_latent_image_ids(1, x.shape[-2] // 2, x.shape[-1] // 2, "cpu", torch.float32)
            out = net(
                packed,
                encoder_hidden_states=embeds,
                pooled_projections=pooled,
                timestep=t / 1000,
                img_ids=ids,
                txt_ids=torch.zeros(embeds.shape[1], 3),
                guidance=torch.tensor([guidance]),
            )[0]
            return pipe._unpack_latents(out, 8 * x.shape[-2], 8 * x.shape[-1], 8)
        if family == "sd3":
            return net(x, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=t)[0]
        size = (8.0 * x.shape[-2], 8.0 * x.shape[-1])
        added = (
            {"text_embeds": pooled, "time_ids": torch.tensor([[*size, 0, 0, *size]])}
            if family == "sdxl"
            else None
        )
        return net(x, t, encoder_hidden_states=embeds, added_cond_kwargs=added)[0]


def clip(projected):
    config = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=8 if projected else WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=8,
        bos_token_id=62,
        eos_token_id=63,
        pad_token_id=63,
    )
    torch.manual_seed(3)
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(
        config
    ).eval()


def clip_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(c + "</w>" for c in letters)]
    vocab = {**{word: i for i, word in enumerate(words)}, "<|startoftext|>": 62, "<|endoftext|>": 63}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5():
    config = transformers.T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(4)
    letters = [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return transformers.T5EncoderModel(config).eval(), transformers.T5Tokenizer(vocab=vocab, extra_ids=0)


def pipeline(family, scheduler=None):
    """A whole tiny pipeline, as `save_pretrained` would find it on an artist's disk."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    if family == "flux":
        second, tokenizer = t5()
        return diffusers.FluxPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler or DYNAMIC),
            vae,
            clip(False),
            clip_tokenizer(),
            second,
            tokenizer,
            module("flux"),
        )
    if family == "sd3":  # without T5, as many keep it
        net = module("sd3", pooled_projection_dim=16, joint_attention_dim=WIDTH)
        return diffusers.StableDiffusion3Pipeline(
            net,
            diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLOW),
            vae,
            clip(True),
            clip_tokenizer(),
            clip(True),
            clip_tokenizer(),
            None,
            None,
        )
    euler = diffusers.EulerDiscreteScheduler.from_config(
        {**(scheduler or SCALED), "timestep_spacing": "trailing"}
    )
    if family == "sdxl":
        net = module("sdxl", levels=2, projection_class_embeddings_input_dim=6 * 8 + 8)
        return diffusers.StableDiffusionXLPipeline(
            vae, clip(True), clip(True), clip_tokenizer(), clip_tokenizer(), net, euler
        )
    return diffusers.StableDiffusionPipeline(
        vae, clip(False), clip_tokenizer(), module(family), euler, None, None, None, False
    )
