"""The LCM-LoRA recipe (`lcm_recipe`) on diffusers' own models of real size, beside this trainer on `card.py`.

An update is the recipe's: a guided step of the teacher without its adapter, the target at that step's end,
and the student, with the same loss, levels and optimiser; pictures, prompts and weights are random, as speed
and memory do not depend on them. The scripts know UNets that predict noise. A model of Flux's shape gets two
translations: that of a flow model in `lcm_recipe` (levels i/50, the Euler step for DDIM's), and that of its
guidance, which the network takes as a number, 3.5 here, so that a step of the teacher is one call and not
two. diffusers keeps weights in bfloat16 where ComfyUI's model of that size keeps fp8: twice the bytes.
"""

import diffusers
import lcm_recipe
import torch
from card_rates import BATCH, DEVICE, peak, rank_of, rate

CFG, GUIDANCE = 8.0, 3.5  # within the 4 to 16 that the scripts draw; Flux dev's own
TINY_UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_SDXL = {**TINY_UNET, "transformer_layers_per_block": (1, 1), "attention_head_dim": (4, 8)}
FLUX = {"num_layers": 5, "num_single_layers": 10, "guidance_embeds": True}  # a quarter of its depth
TINY_FLUX = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}
MODELS = {  # diffusers' class, its config, changes of the tiny form; a latent; (tokens, width) of a prompt
    "SD1.5": (diffusers.UNet2DConditionModel, SD15, TINY_UNET, (4, 64, 64), (77, 768)),
    "SDXL": (diffusers.UNet2DConditionModel, SDXL, TINY_SDXL, (4, 128, 128), (77, 2048)),
    "Flux-shaped": (diffusers.FluxTransformer2DModel, FLUX, TINY_FLUX, (16, 128, 128), (512, 4096)),
}


class Asked:
    """A model with its adapter as `lcm_recipe` asks it: net(x, times (B,), context) -> float32."""

    def __init__(self, model, dtype, answer):
        self.model, self.disable_adapter = model, model.disable_adapter
        self.dtype, self.answer = dtype, answer

    def __call__(self, x, times, context):
        with torch.autocast(DEVICE.type, self.dtype, enabled=DEVICE.type == "cuda"):
            return self.answer(self.model, x, times, context).float()


def of_unet(model, x, times, context):
    """What a UNet predicts; SDXL's wants a pooled prompt and sizes besides."""
    added = {
        "text_embeds": torch.ones(len(x), 1280, device=DEVICE),
        "time_ids": torch.ones(len(x), 6, device=DEVICE),
    }
    return model(x, times, context, added_cond_kwargs=added).sample


def of_flux(model, x, times, context):
    """What Flux predicts: of 2 x 2 pixels as one token, with their rows and columns."""
    count, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    tokens = x.view(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.cartesian_prod(*(torch.arange(n, device=DEVICE) for n in (1, rows, columns)))
    out = model(
        hidden_states=tokens.reshape(count, rows * columns, 4 * channels),
        encoder_hidden_states=context,
        pooled_projections=torch.ones(count, 768, device=DEVICE),
        timestep=times / lcm_recipe.TIMESTEPS,
        img_ids=places.float(),
        txt_ids=torch.zeros(context.shape[1], 3, device=DEVICE),
        guidance=torch.full((count,), GUIDANCE, device=DEVICE),
    ).sample
    back = out.view(count, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(x.shape)


def levels_of(name):
    """The recipe's levels; Stable Diffusion's betas are evenly spaced in their square roots."""
    if name.startswith("Flux"):
        return lcm_recipe.levels_of("flow", DEVICE)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, lcm_recipe.TIMESTEPS, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    return lcm_recipe.levels_of("epsilon", DEVICE, ((1 - kept) / kept).sqrt())


def cfg_of(name):
    """Guidance of the teacher's step; 1, a single call, where the network takes it as a number."""
    return 1 if name.startswith("Flux") else CFG


def made(name, tiny, dtype):
    """(module on the card, frozen, with random weights; a latent; a prompt's shape)"""
    cls, config, small, latent, prompt = MODELS[name]
    torch.set_default_dtype(dtype)  # made in it: a float32 copy of SDXL alone would fill a small card
    try:
        with torch.device(DEVICE):
            module = cls(**(config | small if tiny else config))
    finally:
        torch.set_default_dtype(torch.float32)
    return module.requires_grad_(False), (latent[0], 8, 8) if tiny else latent, prompt


def measured(name, seconds, tiny):
    """The row of updates, whole or, where that finds no room, with gradient checkpointing."""
    dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
    module, latent, prompt = made(name, tiny, dtype)
    rank, answer = rank_of(name, tiny), of_flux if name.startswith("Flux") else of_unet
    adapted = lcm_recipe.adapted(module, 0, rank)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    for p in parameters:
        p.data = p.data.float()
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=lcm_recipe.WEIGHT_DECAY)
    net, levels = Asked(adapted, dtype, answer), levels_of(name)
    context = torch.randn(BATCH, *prompt, device=DEVICE)

    def update():
        images, noise = torch.randn(2, BATCH, *latent, device=DEVICE)
        index = torch.randint(1, lcm_recipe.LEVELS + 1, (BATCH,), device=DEVICE)
        lcm_recipe.loss_of(net, levels, images, noise, index, context, cfg=cfg_of(name)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, lcm_recipe.CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    row = {"rank": rank, "micro_batch": BATCH, "checkpointing": False}
    try:
        row["peak"] = peak(lambda: (update(), update()))
    except torch.OutOfMemoryError:
        module.enable_gradient_checkpointing()
        row |= {"checkpointing": True, "peak": peak(lambda: (update(), update()))}
    return {**row, "samples_per_second": rate(update, seconds) * BATCH}
