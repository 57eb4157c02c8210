"""What one section of `card.py` does: one model, one way, in a process of its own; it prints a JSON object.

    python benchmarks/card_sections.py MODEL WAY [--tiny]

WAY is "resident" or "streamed", this trainer by the very code of its nodes, or "LCM-LoRA", the recipe of the
diffusers scripts (`lcm_recipe`) on the diffusers model of the same size. Weights are random, nothing is
downloaded, and no file is written.
"""

import argparse
import gc
import importlib
import json
import sys
import time
import types

import real_sizes
import torch
from fewstep.training.adapter.proof import slope
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.memory import plan
from fewstep.training.run.run import Run
from fewstep.training.run.student import adapter_for, backward_of
from fewstep.training.trajectories.data import Data

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS = 12  # of each measurement
SMALL_UNET = {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -2,
}
KOALA = {
    "channel_mult": [1],
    "num_res_blocks": [3],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_middle": -2,
}
MODELS = {  # family of `real_sizes`, size, changes of its config, those of the tiny form, its latent there
    "SD1.5": ("SD1.5", "512", {}, SMALL_UNET, (4, 8, 8)),
    "SDXL": ("SDXL", "1024", {}, {**KOALA, "transformer_depth_output": [0] * 4}, (4, 8, 8)),
    "Flux-shaped": (
        "Flux dev fp8",
        "1024",
        {"depth": 5, "depth_single_blocks": 10},
        {"depth": 1, "depth_single_blocks": 1, "hidden_size": 128, "num_heads": 1},
        (16, 8, 8),
    ),
}
PROMPTS, BATCH = 2, 4


def pack(name):
    """A module of `fewstep.nodes`, without the nodes themselves, which need a server."""
    if "fewstep.nodes" not in sys.modules:
        nodes = types.ModuleType("fewstep.nodes")
        nodes.__path__ = [str(importlib.import_module("fewstep").__path__[0]) + "/nodes"]
        sys.modules["fewstep.nodes"] = nodes
    return importlib.import_module(f"fewstep.nodes.{name}")


# ---- the model -------------------------------------------------------------------------------------


def tensors_of(family, changes, dtype):
    """Random weights that keep activations near 1, by the names of published files, not on the card."""
    model = real_sizes.build(family, "meta", dtype, **changes).diffusion_model
    generator = torch.Generator(DEVICE).manual_seed(0)
    found = {}
    for name, like in model.state_dict().items():
        noise = torch.randn(like.shape, generator=generator, device=DEVICE)
        if like.ndim > 1:
            noise /= like[0].numel() ** 0.5
        elif name.endswith(("weight", "scale")):
            noise = 1 + 0.05 * noise
        else:
            noise *= 0.05
        stored = dtype if like.ndim < 2 or like.dtype.itemsize > dtype.itemsize else like.dtype
        name = name.replace("query_norm.weight", "query_norm.scale").replace(
            "key_norm.weight", "key_norm.scale"
        )
        found[name] = noise.to(stored).cpu()
    return found


def loaded(family, changes, dtype):
    """The MODEL that ComfyUI's loader makes of them; it can be loaded again, as one from a file can."""
    import comfy.sd

    tensors = tensors_of(family, changes, dtype)
    options = {} if DEVICE.type == "cpu" or family.stored.itemsize < 2 else {"dtype": dtype}

    def load(disable_dynamic=False):
        state = {name: tensor.clone() for name, tensor in tensors.items()}
        found = comfy.sd.load_diffusion_model_state_dict(
            state, dict(options), disable_dynamic=disable_dynamic
        )
        found.cached_patcher_init = (load, ())
        return found

    return load()


def dynamic_vram():
    """Switch dynamic VRAM on as ComfyUI's start does, where card and host have it; whether it is on."""
    import comfy.memory_management
    import comfy.model_management as management
    import comfy.model_patcher

    try:
        import comfy_aimdo.control as control

        control.init()
        if DEVICE.type != "cuda" or not control.init_devices(
            d.index for d in management.get_all_torch_devices()
        ):
            return False
    except Exception as error:
        print(f"dynamic VRAM is off: {error}", file=sys.stderr)
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def prompts_of(family, dtype):
    """CONDITIONING of so many prompts, random."""
    g, width = torch.Generator().manual_seed(1), family.pooled
    found = []
    for _ in range(PROMPTS + 1):
        options = {"guidance": 3.5} if family.more else {}
        if width:
            options["pooled_output"] = torch.randn(1, 1280 if width == 2816 else width, generator=g)
        found.append([torch.randn(1, *family.text, generator=g), options])
    return found[:PROMPTS], found[PROMPTS:]


# ---- measurements ----------------------------------------------------------------------------------


def wait():
    """Until the card has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rate(work, seconds=SECONDS):
    """Calls of `work` a second, after one to warm up; at least one."""
    work()
    wait()
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        work()
        wait()
        calls += 1
    return calls / (time.perf_counter() - began)


def peak(work):
    """Bytes at the worst moment of `work`, of all that lies on the card; None without one."""
    if DEVICE.type != "cuda":
        work()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait()
    return torch.cuda.max_memory_allocated()


def ours(name, way, seconds, tiny):
    """This trainer on a model of ComfyUI's."""
    key, size, changes, small, small_latent = MODELS[name]
    family = real_sizes.FAMILIES[key]
    dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
    real_sizes.start()
    row = {"dynamic_vram": dynamic_vram()}
    model = loaded(family, small if tiny else changes, dtype)
    latent = torch.zeros(1, *(small_latent if tiny else family.latents[size]))
    config = DistilConfig(
        batch=BATCH, rank=64 if key.startswith("SD") else 32, chunk=BATCH, images=8, lr=1e-5
    )
    if tiny:
        config = DistilConfig(batch=BATCH, rank=4, chunk=BATCH, images=8, lr=1e-5)
    residency, session = pack("comfy.residency"), pack("comfy.session")
    memory = importlib.import_module("fewstep.training.run.memory")
    positive, negative = prompts_of(family, dtype)
    beside = 0
    if DEVICE.type == "cuda" and way == "streamed":  # without dynamic VRAM the host would keep what fits
        free = residency.management.get_free_memory(DEVICE)
        beside = max(0, free - residency.weight_bytes(model.model) / 2)
    with session.training_session(model, way, beside=beside) as patcher:
        denoiser = pack("comfy.denoiser").ComfyDenoiser(patcher, positive, negative, latent)
        row["streamed_layers"] = len(denoiser.streamed())
        budget = residency.room(patcher, memory.staying(denoiser), None)
        began = time.perf_counter()
        planned = plan(denoiser, config, budget, lower_rank=True)
        row |= {
            "plan_seconds": time.perf_counter() - began,
            "predicted_peak": planned.peak,
            "micro_batch": planned.micro,
            "checkpointing": planned.checkpointing,
            "rank": planned.rank,
        }
        row["slope"] = proof_of(denoiser, planned.applied(config))
        row |= trained(denoiser, planned.applied(config), seconds)
    return row


def proof_of(denoiser, config):
    """Slope of the gradient along itself, 1 where it is right; a text where it can't be told."""
    lora = adapter_for(denoiser, config)
    try:
        g = torch.Generator().manual_seed(2)
        x, goal = (torch.randn(1, *denoiser.shape, generator=g) for _ in range(2))
        sigma, condition = denoiser.sigma_of(torch.tensor([0.5])).float(), torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            for pair in lora.weights.values():  # an adapter of its own, that its rounding is small beside it
                pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))

        def loss():
            return (denoiser(x * (1 + sigma), sigma, condition) - goal).square().mean()

        parameters = lora.parameters()
        backward = backward_of(denoiser, parameters, config.checkpointing)
        return slope(loss, parameters, 3e-2 if DEVICE.type == "cuda" else 1e-3, backward)
    except ArithmeticError as error:
        return str(error)
    finally:
        lora.remove()


def trained(denoiser, config, seconds):
    """Rates of the guided teacher and of updates, and the peak of an update; data are random."""
    run = Run(denoiser, config)
    try:
        kept, g = len(run.phases.kept), torch.Generator().manual_seed(3)
        anchors = torch.randn(8, kept, *denoiser.shape, generator=g)
        condition = torch.arange(8) % denoiser.conditions
        run.source.data = Data(images=anchors[:, -1].clone(), condition=condition, anchors=anchors)
        x, sigma = anchors[: config.chunk, 0], torch.full((config.chunk,), 0.7)
        with torch.no_grad():
            calls = rate(lambda: run.student.teacher_in_parts(x, sigma, condition[: len(x)]), seconds)
        most = peak(lambda: (run.update(), run.update()))
        updates = rate(run.update, seconds)
        return {
            "teacher_samples_per_second": calls * len(x),
            "samples_per_second": updates * config.batch,
            "peak": most,
            "skipped": run.descent.skipped,
        }
    finally:
        run.close()


# ---- the recipe of the diffusers scripts -------------------------------------------------------------


def unet(name, tiny):
    """(diffusers' UNet of that size with random weights, latent, what it is asked with for B samples)."""
    import diffusers

    small = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8} if tiny else {}
    types_ = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    if name == "SD1.5":
        options = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
        return (
            diffusers.UNet2DConditionModel(**options, **small, **(types_ if tiny else {})),
            (4, 64, 64),
            768,
        )
    options = {
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
    if tiny:
        options |= {**small, **types_, "transformer_layers_per_block": (1, 1), "attention_head_dim": (4, 8)}
    return diffusers.UNet2DConditionModel(**options), (4, 128, 128), 2048


def recipe(name, seconds, tiny):
    """One update after another of the LCM-LoRA recipe, whole or with gradient checkpointing."""
    import lcm_recipe

    dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
    torch.set_default_dtype(dtype)  # made in it: a float32 copy of SDXL alone would fill a small card
    try:
        with torch.device(DEVICE):
            module, latent, width = unet(name, tiny)
    finally:
        torch.set_default_dtype(torch.float32)
    module = module.requires_grad_(False)
    model = lcm_recipe.adapted(module, 0, 4 if tiny else 64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.data = p.data.float()
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-2)
    shape = (BATCH, 4, 8, 8) if tiny else (BATCH, *latent)
    context = torch.randn(BATCH, 77, width, device=DEVICE)
    added = {}
    if name == "SDXL":
        added = {
            "text_embeds": torch.randn(BATCH, 1280, device=DEVICE),
            "time_ids": torch.ones(BATCH, 6, device=DEVICE),
        }

    def ask(x, prompt, t):
        with torch.autocast(DEVICE.type, dtype, enabled=DEVICE.type == "cuda"):
            return model(x, t, prompt, added_cond_kwargs=added).sample.float()

    def update():
        x, t = torch.randn(shape, device=DEVICE), torch.randint(20, 1000, (BATCH,), device=DEVICE)
        with torch.no_grad():
            with model.disable_adapter():
                c, u = ask(x, context, t), ask(x, torch.zeros_like(context), t)
            x_s = x - 0.02 * (u + 7 * (c - u))
            target = x_s - ask(x_s, context, t - 20)
        loss = lcm_recipe.distance(x - ask(x, context, t), target, "huber")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, lcm_recipe.CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    row = {"rank": 4 if tiny else 64, "micro_batch": BATCH, "checkpointing": False}
    try:
        row["peak"] = peak(lambda: (update(), update()))
    except torch.OutOfMemoryError:
        module.enable_gradient_checkpointing()
        row |= {"checkpointing": True, "peak": peak(lambda: (update(), update()))}
    return {**row, "samples_per_second": rate(update, seconds) * BATCH}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("way", choices=("resident", "streamed", "LCM-LoRA"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    seconds = 0 if args.tiny else SECONDS
    if args.way == "LCM-LoRA":
        row = recipe(args.model, seconds, args.tiny)
    else:
        row = ours(args.model, args.way, seconds, args.tiny)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
