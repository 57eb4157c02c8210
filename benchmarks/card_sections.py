"""What one section of `card.py` does: one model, one way, in a process of its own; it prints a JSON object.

    python benchmarks/card_sections.py MODEL WAY [--tiny]

WAY is "resident" or "streamed", this trainer by the very code of its nodes, or "LCM-LoRA", the recipe of the
diffusers scripts on the diffusers model of the same size (`card_recipe`). Weights are random, nothing is
downloaded, and no file is written.
"""

import argparse
import importlib
import json
import sys
import time
import types

import real_sizes
import torch
from card_rates import BATCH, DEVICE, SECONDS, peak, rank_of, rate
from fewstep.training.adapter.proof import slope
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.memory import plan
from fewstep.training.run.run import Run
from fewstep.training.run.student import adapter_for, backward_of
from fewstep.training.trajectories.data import Data

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
PROMPTS = 2


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


# ---- this trainer ----------------------------------------------------------------------------------


def ours(name, way, seconds, tiny):
    """This trainer on a model of ComfyUI's."""
    key, size, changes, small, small_latent = MODELS[name]
    family = real_sizes.FAMILIES[key]
    dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
    real_sizes.start()
    row = {"dynamic_vram": dynamic_vram()}
    model = loaded(family, small if tiny else changes, dtype)
    latent = torch.zeros(1, *(small_latent if tiny else family.latents[size]))
    cfg = 1.0 if "guidance" in family.more else DistilConfig.cfg  # a guidance-distilled one is asked once
    config = DistilConfig(batch=BATCH, rank=rank_of(name, tiny), chunk=BATCH, images=8, lr=1e-5, cfg=cfg)
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
        import card_recipe  # which needs diffusers and peft

        row = card_recipe.measured(args.model, seconds, args.tiny)
    else:
        row = ours(args.model, args.way, seconds, args.tiny)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
