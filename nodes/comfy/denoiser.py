"""A loaded MODEL as a `training.models.denoiser.Denoiser`: one differentiable prediction, conditional or not.

It calls the model as the host's sampling does, but for what has no gradient; guidance and what else works on
answers is left out. `teacher_proof` shows before a run that the graph has nothing of that kind.
"""

import functools
import uuid
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from .fingerprints import base_of
from .levels import noise_scale_of, path_of, prediction_of, sigma_of
from .residency import streamed_layers


class ComfyDenoiser:
    """(x, sigma (B,), condition (B,)) -> x0 of a loaded ModelPatcher, x in model space.

    positives: CONDITIONING, each entry one condition; negative: its first entry is the unconditional one, -1.
    latent: one sample of the shape to be asked for. Every call looks for the user's cancel first, by `check`.
    """

    def __init__(self, patcher: ModelPatcher, positives: list, negative: list, latent: torch.Tensor):
        sampling = patcher.get_model_object("model_sampling")
        self.path, self.sigma_of = path_of(sampling), sigma_of(sampling)
        self.prediction, self.noise_scale = prediction_of(sampling), noise_scale_of(sampling)
        self.model, self.module = patcher.model, patcher.model.diffusion_model
        self.device, self.base = patcher.load_device, base_of(patcher)
        self.streamed = functools.partial(streamed_layers, patcher)
        self.shape, self.conditions = tuple(latent.shape[1:]), len(positives)
        self.options = {
            **patcher.model_options.get("transformer_options", {}),
            "optimized_attention_override": differentiable_attention,
        }
        self.check = comfy.model_management.throw_exception_if_processing_interrupted
        self.uuid = uuid.uuid4()
        self._conds = _model_conds(self.model, [*positives, negative[0]], latent, self.device)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.check()
        home, x, sigma = x.device, x.to(self.device), sigma.to(self.device)
        out = torch.empty_like(x)
        for number in condition.unique().tolist():  # conditions of one prompt share a call; shapes may differ
            rows = (condition == number).to(self.device)
            x0 = self._predict(x[rows], sigma[rows], number)
            out = out.index_put((rows.nonzero()[:, 0],), x0.to(out))
        return out.to(home)

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, number: int) -> torch.Tensor:
        conds = self._conds[number]
        kwargs = {key: cond.process_cond(batch_size=len(x), area=None).cond for key, cond in conds.items()}
        options = {  # the last four: what patches of attention look at in a sampler's call
            **self.options,
            "sigmas": sigma,
            "sample_sigmas": sigma,
            "cond_or_uncond": [int(number == -1)],
            "uuids": [self.uuid],
        }
        return self.model.apply_model(x, sigma, transformer_options=options, **kwargs)


def differentiable_attention(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """PyTorch's attention whatever backend the user chose: sage, flash and int8 have no gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _model_conds(model: BaseModel, entries: list, latent: torch.Tensor, device: torch.device) -> list[dict]:
    """What `apply_model` takes, one dict a conditioning entry, its tensors cloned out of inference mode."""
    noise = torch.zeros_like(latent).to(device)
    out = []
    for entry in entries:
        conds = {"positive": comfy.sampler_helpers.convert_cond([clone(entry)])}
        done = comfy.samplers.process_conds(model, noise, conds, device, seed=0, latent_shapes=[noise.shape])
        out.append(done["positive"][0]["model_conds"])
    return out


def clone(value: Any) -> Any:
    """Conditioning with every tensor cloned: autograd refuses inference tensors, which other nodes make."""
    if torch.is_tensor(value):
        return value.clone()
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clone(v) for v in value)
    return value
