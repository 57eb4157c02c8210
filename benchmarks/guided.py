"""Distilling the demo teacher through a guider that changes what it draws, beside plain guidance.

    python benchmarks/guided.py [--json FILE] [--picture FILE] [--updates N] [--images N]

Both LoRAs are trained by *Distil Few-Step LoRA* in a real ComfyUI (COMFYUI_PATH), with the same settings: one
from the model at CFG 5, one from a guider, the stock *CFGGuider* at CFG 5 over a model with *RescaleCFG* at
1. Each is loaded by the stock loader and sampled in 4 steps at CFG 1 on the plain model, without the guider.

distance  RMSE between the LoRA's pictures and its own teacher's 50 steps from the same noise, 32 noises that
          no run has seen, as a share of the spread of the teacher's pictures
untrained the same for the model itself in 4 steps with that guidance
apart     distance between the two teachers, as a share of the spread of the guided one's pictures

The picture has the teacher at plain CFG, the teacher with the guider, and the LoRA, from the same noise.
"""

import argparse
import tempfile
from pathlib import Path

import core
import torch
from fewstep.training.formats.files import write_json
from fewstep.training.reports import pictures

CFG, STEPS, LABELS, EACH = 5.0, 4, 8, 4
SHOWN = 4  # rows of the picture


def rescaled(model):
    """The MODEL with the guidance that changes it."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 1.0)[0]


def guider(model, positive, negative, cfg):
    """The stock node's GUIDER."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    return CFGGuider.execute(model, positive, negative, cfg).result[0]


def run(node_id, **inputs):
    """The outputs of one of our nodes."""
    node = core.start().NODE_CLASS_MAPPINGS[node_id]
    node.hidden = type("Hidden", (), dict.fromkeys(("unique_id", "prompt", "extra_pnginfo")))
    return node.execute(**inputs).result


def drawn(model, prompts, negative, cfg, sampler, sigmas):
    """Latents (LABELS * EACH, ...) of stock sampling, EACH of every prompt, always from the same noise."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    empty, out = core.start().EmptyLatentImage().generate(32, 32, EACH)[0], []
    for number, prompt in enumerate(prompts):
        noise = Noise_RandomNoise(1000 + number)
        asked = guider(model, [prompt], negative, cfg)
        out.append(SamplerCustomAdvanced.execute(noise, asked, sampler, sigmas, empty).result[0]["samples"])
    return torch.cat(out)


def share(a, b):
    """RMSE of a to b as a share of b's spread."""
    return float((a - b).square().mean().sqrt() / b.std())


def measured(model, teacher, prompts, negative, options):
    """({distance, untrained}, pictures of the teacher and of the LoRA) for one teacher."""
    from nodes import LoraLoaderModelOnly

    wired = {} if teacher is model else {"guider": guider(teacher, prompts[:1], negative, CFG)}
    latent = core.start().EmptyLatentImage().generate(32, 32, 1)[0]
    settings = dict(quality="quick", updates=options.updates, batch=8, seed=1, name="guided", method="phased")
    inputs = dict(model=model, positive=prompts, negative=negative, latent=latent, steps=STEPS, cfg=CFG)
    *_, sigmas, file = run("FewstepDistil", **inputs, **settings, **wired)
    fine = run("FewstepSampler", churn=0.0, order="auto")[0], _uniform(model, 50)
    plain = run("FewstepSampler", churn=0.0, order="1")[0], sigmas
    goal = drawn(teacher, prompts, negative, CFG, *fine)
    student = LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)[0]
    ours = drawn(student, prompts, negative, 1.0, *plain)
    untrained = drawn(teacher, prompts, negative, CFG, *plain)
    return {"distance": share(ours, goal), "untrained": share(untrained, goal)}, goal, ours


def _uniform(model, steps):
    settings = dict(schedule={"schedule": "uniform"}, steps=steps, shift=3.0, denoise=1.0)
    return run("FewstepSchedule", model=model, **settings)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--updates", type=int, default=160)
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    core.start()
    import folder_paths

    core.pack_module("FewstepDistil").QUALITY["quick"] = (options.updates, options.images)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
        folder_paths.set_user_directory(folder)
        model, vae, _, negative, every = run("FewstepLoadDemoTeacher", teacher="flow", label="cat")
        prompts = every[:: max(1, len(every) // LABELS)][:LABELS]
        plain, goal, _ = measured(model, model, prompts, negative, options)
        guided, other, ours = measured(model, rescaled(model), prompts, negative, options)
        table = {
            "plain": plain,
            "guided": guided,
            "ratio": guided["distance"] / plain["distance"],
            "apart": share(goal, other),
            "settings": {"cfg": CFG, "steps": STEPS, "updates": options.updates, "images": options.images},
        }
        for name, value in table.items():
            print(name, value)
        if options.json:
            write_json(options.json, table)
        if options.picture:
            names = ("the model\nCFG 5", "with the guider\nRescaleCFG, CFG 5", "the LoRA\n4 steps, CFG 1")
            decoded = {n: _pixels(vae, x[::EACH][:SHOWN]) for n, x in zip(names, (goal, other, ours))}
            pictures.grid(decoded, [""] * SHOWN, "Same starting noise", 4).save(options.picture)


def _pixels(vae, latents):
    return vae.decode(latents).movedim(-1, 1) * 2 - 1


if __name__ == "__main__":
    main()
