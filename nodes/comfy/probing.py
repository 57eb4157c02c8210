"""Running a SAMPLER on a given denoiser instead of the model, for inspection and comparison.

No weights are loaded.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

DenoiserAt = Callable[[torch.Tensor, float], torch.Tensor]


class DenoiserGuider(comfy.samplers.CFGGuider):
    """The host's guider with `denoiser(x, sigma) -> x0` as the model; sigma a number, x in model space."""

    answers_apart = True  # as both halves of guidance are the same here
    by_seed = True  # runs from other starting noise draw the same fresh noise, which a probe relies on

    def __init__(self, patcher: ModelPatcher, denoiser: DenoiserAt):
        super().__init__(patcher)
        self.inner_model, self.denoiser = patcher.model, denoiser

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """x0, as the host's guiders return under this name; guided and unguided prediction are the same."""
        x0 = self.denoiser(x, float(timestep.flatten()[0]))
        # how cfg_pp samplers ask for the unguided one
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
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


def run(
    patcher: ModelPatcher,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    denoiser: DenoiserAt,
    noise: torch.Tensor,
    latent: torch.Tensor,
    seed: int = 0,
) -> torch.Tensor:
    """The result of a SAMPLER on that denoiser, on the CPU.

    Its draws depend on `seed` alone, the global generator's too.
    """
    guider = DenoiserGuider(patcher, denoiser)
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    for key in ("wrappers", "callbacks"):  # of other packs: there is no model for them to work on
        options.get("transformer_options", {}).pop(key, None)
    options.pop("sampler_post_cfg_function", None)
    sigmas = sigmas.cpu().clone()  # uni_pc writes into them
    options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
    guider.model_options = options
    # float32 is what the host samples in, and all that some samplers accept
    noise, latent = noise.float(), latent.float()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _own_sampling(patcher):
        torch.manual_seed(seed)
        extra_args = {"model_options": options, "seed": seed}
        return sampler.sample(guider, sigmas, extra_args, None, noise, latent, None, True)


@contextlib.contextmanager
def _own_sampling(patcher: ModelPatcher) -> Iterator[None]:
    """Put the patcher's own model_sampling on its model meanwhile; loading does that otherwise."""
    model, sampling = patcher.model, patcher.get_model_object("model_sampling")
    before, model.model_sampling = model.model_sampling, sampling
    try:
        yield
    finally:
        model.model_sampling = before


def runner(
    patcher: ModelPatcher, sampler: comfy.samplers.Sampler, sigmas: torch.Tensor, seed: int = 0
) -> Callable[[DenoiserAt, torch.Tensor, torch.Tensor], torch.Tensor]:
    """`run(respond, noise, latent)` of `diffusion.probe` for a SAMPLER on this model's path."""

    def run_on(respond: DenoiserAt, noise: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        return run(patcher, sampler, sigmas, respond, noise, latent, seed)

    return run_on
