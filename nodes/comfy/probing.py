"""Running a SAMPLER on a given denoiser instead of the model: for inspection and comparison. No weights are
loaded.
"""

import comfy.model_patcher
import comfy.samplers
import torch


class DenoiserGuider(comfy.samplers.CFGGuider):
    """The host's guider with `denoiser(x, sigma) -> x0` in the place of the model; sigma a number, x in model
    space.
    """

    def __init__(self, patcher, denoiser):
        super().__init__(patcher)
        self.inner_model, self.denoiser = patcher.model, denoiser

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """x0, which is what the host's guiders return under this name; guided and unguided prediction are the
        same.
        """
        x0 = self.denoiser(x, float(timestep.flatten()[0]))
        for function in (model_options or {}).get(
            "sampler_post_cfg_function", []
        ):  # how cfg_pp samplers ask for the latter
            x0 = function(
                {
                    "denoised": x0,
                    "cond": x0,
                    "uncond": x0,
                    "cond_denoised": x0,
                    "uncond_denoised": x0,
                    "input": x,
                    "model": self.inner_model,
                    "sigma": timestep,
                    "cond_scale": 1.0,
                    "model_options": model_options,
                }
            )
        return x0


def run(patcher, sampler, sigmas, denoiser, noise, latent, seed=0):
    """The result of a SAMPLER on that denoiser, on the CPU; its draws depend on `seed` alone, the global
    generator's too.
    """
    guider = DenoiserGuider(patcher, denoiser)
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    for key in ("wrappers", "callbacks"):  # of other packs: there is no model for them to work on
        options.get("transformer_options", {}).pop(key, None)
    sigmas = sigmas.cpu().clone()  # uni_pc writes into them
    options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
    noise, latent = (
        noise.float(),
        latent.float(),
    )  # what the host samples in, and all that some samplers accept
    options.pop("sampler_post_cfg_function", None)
    guider.model_options = options
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _sampling_of(patcher):
        torch.manual_seed(seed)
        return sampler.sample(
            guider, sigmas, {"model_options": options, "seed": seed}, None, noise, latent, None, True
        )


class _sampling_of:
    """The patcher's own model_sampling on its model for the time of a run: a patched one is otherwise put
    there by loading.
    """

    def __init__(self, patcher):
        self.model, self.sampling = patcher.model, patcher.get_model_object("model_sampling")

    def __enter__(self):
        self.before, self.model.model_sampling = self.model.model_sampling, self.sampling

    def __exit__(self, *failure):
        self.model.model_sampling = self.before


def runner(patcher, sampler, sigmas, seed=0):
    """`run(respond, noise, latent)` of `diffusion.probe` for a SAMPLER on this model's path."""
    return lambda respond, noise, latent: run(patcher, sampler, sigmas, respond, noise, latent, seed)
