"""Schedules and samplers as nodes: SIGMAS and SAMPLER for the host's own sampling nodes."""

import comfy.samplers
from comfy_api.latest import io
from tqdm.auto import trange

from ..diffusion import grids, samplers
from ..diffusion.paths import check_sigmas
from ..diffusion.step import check_churn
from . import host


class Schedule(io.ComfyNode):
    """FewstepSchedule."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepSchedule",
            display_name="Few-Step Schedule",
            category="Fewstep",
            description="Where between noise and picture the model is asked, for the wired model's own range and shift. Always "
                        "exactly `steps` steps, from the model's largest noise level to 0.",
            search_aliases=["sigmas", "scheduler", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled."),
                io.Combo.Input("schedule", options=list(grids.NAMES), default="uniform",
                               tooltip="uniform: equal time steps, what distilled LoRAs are made on. log-SNR: equal steps of the "
                                       "signal-to-noise ratio. karras: more steps near the picture."),
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Model calls for one picture."),
                io.Float.Input("shift", default=1.0, min=0.1, max=100.0, step=0.1,
                               tooltip="Above 1: more of the steps near the noise, on top of the model's own shift. Few steps "
                                       "gain from it; 3 is what Distil Few-Step LoRA uses."),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                               tooltip="Image to image: the share of the way that is run. 1 starts from pure noise."),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS")],
        )

    @classmethod
    def execute(cls, model, schedule, steps, shift, denoise):
        sampling = model.get_model_object("model_sampling")
        sigma_of = grids.shifted(host.sigma_of(sampling), shift)
        sigmas = grids.grid(schedule, steps, sigma_of, host.path_of(sampling), denoise)
        return io.NodeOutput(sigmas.float())


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, churn=0.0, kappa=None, order=1):
    """`diffusion.samplers.sample` in the signature of ComfyUI's sampler functions.

    Noise comes from generators of its own, seeded from the host's seed, one for each picture of the batch.
    """
    extra_args = extra_args or {}
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    path = host.path_of(sampling)
    check_sigmas(sigmas, path, "sigmas")
    if float(sigmas[0]) > float(sampling.sigma_max) * (1 + 1e-4):
        raise ValueError(f"sigmas must start at this model's largest noise level {float(sampling.sigma_max):g} or below, got "
                         f"{float(sigmas[0]):g}. Use a schedule made for this model.")
    fresh = samplers.batch_noise(extra_args.get("seed") or 0)
    scale = float(getattr(sampling, "noise_scale", 1.0))
    ones = x.new_ones(x.shape[0])

    def denoiser(x, sigma):
        return model(x, sigma * ones, **extra_args)

    run = samplers.sample(denoiser, x, sigmas, path, churn=churn, kappa=kappa, order=order,
                          noise=lambda x: scale * fresh(x))
    for _ in trange(len(sigmas) - 1, disable=disable):
        before, state = x, next(run)
        if callback is not None:
            callback({"x": before, "i": state.index, "sigma": state.sigma, "sigma_hat": state.sigma, "denoised": state.x0})
        x = state.x
    return x


class Sampler(io.ComfyNode):
    """FewstepSampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepSampler",
            display_name="Few-Step Sampler",
            category="Fewstep",
            description="Flow matching (Euler), DDIM and DDPM in one sampler: they differ only in churn, which means the same on "
                        "every model and for every step count.",
            search_aliases=["ddim", "euler", "flow", "churn", "fewstep"],
            inputs=[
                io.Float.Input("churn", default=0.0, min=0.0, max=100.0, step=0.05, round=False,
                               tooltip="How much of each step is noised afresh. 0: none, the same picture from the same seed at "
                                       "any step count (DDIM, flow Euler). 1: as much as DDPM. More: towards the consistency "
                                       "sampler. Fewer steps want less."),
                io.Combo.Input("order", options=["1", "2"], default="1",
                               tooltip="2 uses the last prediction too: better for a model that is not distilled. Distilled LoRAs "
                                       "want 1."),
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER")],
        )

    @classmethod
    def execute(cls, churn, order):
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, {"churn": check_churn(churn), "order": int(order)}))


class ConsistencySampler(io.ComfyNode):
    """FewstepConsistencySampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepConsistencySampler",
            display_name="Consistency Sampler",
            category="Fewstep",
            description="Multistep consistency sampling (LCM): predict the picture, add fresh noise, predict again. For "
                        "consistency LoRAs that blur or drift without fresh noise, on epsilon, v and flow models alike.",
            search_aliases=["lcm", "consistency", "fewstep"],
            inputs=[
                io.Float.Input("fresh_noise", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of new noise in each step. 1: all of it (LCM). 0: none, the same as churn 0."),
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER")],
        )

    @classmethod
    def execute(cls, fresh_noise):
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, {"kappa": fresh_noise}))


NODES = [Schedule, Sampler, ConsistencySampler]
