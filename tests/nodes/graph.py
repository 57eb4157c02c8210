"""What the tests of nodes in process share: finding and running the pack's nodes, and stock ones around them.
Imported by name.
"""

import sys

import torch


def load(host, kind, label="cat"):
    """What Load Demo Teacher gives: (MODEL, VAE, positive, negative, all labels)."""
    return run(host, "FewstepLoadDemoTeacher", teacher=kind, label=label)


def pack(host, name):
    """A module of the pack as ComfyUI loaded it."""
    return sys.modules[host.NODE_CLASS_MAPPINGS["FewstepFit"].__module__.removesuffix("nodes.fit") + name]


def run(host, node_id, **inputs):
    """Execute a V3 node as the host does, with its hidden inputs empty and inference mode on."""
    node = host.NODE_CLASS_MAPPINGS[node_id]
    node.hidden = type("Hidden", (), dict.fromkeys(("unique_id", "prompt", "extra_pnginfo")))
    with torch.inference_mode():
        return node.execute(**inputs).result


def uniform(host, teacher, steps, denoise=1.0):
    """SIGMAS of Few-Step Schedule, uniform, for a teacher of `load`."""
    return run(
        host,
        "FewstepSchedule",
        model=teacher[0],
        schedule={"schedule": "uniform"},
        steps=steps,
        shift=1.0,
        denoise=denoise,
    )[0]


def sample_custom(
    host, model, cfg, teacher, sampler, sigmas, seed=3, latent=None, count=2, *, add_noise=True
):
    """Latents of the stock node Sampler Custom, with the prompts of a teacher of `load`."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    latent = latent or host.EmptyLatentImage().generate(32, 32, count)[0]
    positive, negative = teacher[2:4]
    with torch.inference_mode():
        out = SamplerCustom.execute(model, add_noise, seed, cfg, positive, negative, sampler, sigmas, latent)
    return out.result[0]["samples"]


def show(host, node_id, **inputs):
    """The whole NodeOutput of a node, with what it shows."""
    with torch.inference_mode():
        return host.NODE_CLASS_MAPPINGS[node_id].execute(**inputs)


def core(name, **options):
    """A SAMPLER of the host's own."""
    import comfy.samplers

    return comfy.samplers.ksampler(name, options) if options else comfy.samplers.sampler_object(name)


def cfg_guider(model, positive, negative, cfg=2.0):
    from comfy_extras.nodes_custom_sampler import CFGGuider

    with torch.inference_mode():
        return CFGGuider.execute(model, positive, negative, cfg).result[0]


def sampled(guider, noise, sampler, sigmas):
    """The stock node's picture from that noise, in model space."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    class Fixed:
        seed = 0

        def generate_noise(self, latent):
            return noise

    empty = {"samples": torch.zeros(noise.shape)}
    with torch.inference_mode():
        out = SamplerCustomAdvanced.execute(Fixed(), guider, sampler, sigmas, empty).result[0]
        return guider.model_patcher.model.process_latent_in(out["samples"])


def off(a, b):
    """RMSE."""
    return float((a - b).square().mean().sqrt())
