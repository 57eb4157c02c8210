"""A loaded MODEL as a `training.models.denoiser.Denoiser`: one differentiable prediction, conditional or not.

It calls the model as the host's sampling does, but for what has no gradient; guidance and what else works on
answers is left out. `teacher_proof` shows before a run that the graph has nothing of that kind.
"""

import collections
import functools
import uuid
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import Message
from ...training.adapter.kinds import plain
from ...training.models.devices import has_float64
from .fingerprints import base_of
from .latents import sample_shape, takes_batch_for_frames
from .levels import noise_scale_of, path_of, prediction_of, sigma_of
from .precision import in_float32
from .residency import streamed_layers, told

HOST_MARGIN = 1.5  # by which the host's sampling has more memory free than a call is said to need


class ComfyDenoiser:
    """(x, sigma (B,), condition (B,)) -> x0 of a loaded ModelPatcher, x in model space.

    positives: CONDITIONING, each entry one condition; negative: its first entry is the unconditional one, -1.
    latent: what would be sampled on, as the graph has it, its first sample alone; where the host takes a
    batch for the frames of one video, all of it is one sample, whose shape is (frames, ...). mask: of the
    parts of it that are to be painted, for models that are told. Every call looks for the user's cancel
    first, by `check`.

    Samples whose conditions the host would batch share a call of the model, whatever their prompts. Where
    nothing is trained a call is as large as the host's own may be; a micro-batch is never parted, since its
    graph would be held all the same.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        positives: list,
        negative: list,
        latent: torch.Tensor,
        mask: torch.Tensor | None = None,
    ):
        sampling = patcher.get_model_object("model_sampling")
        self.path, self.sigma_of = path_of(sampling), sigma_of(sampling)
        self.prediction, self.noise_scale = prediction_of(sampling), noise_scale_of(sampling)
        self.model, self.module = patcher.model, patcher.model.diffusion_model
        self.device, self.base = patcher.load_device, base_of(patcher)
        self.weights = told(patcher)  # where they live, in words
        self.planned: Message | None = None  # what the memory plan decided, in words
        self.in_float32 = functools.partial(in_float32, patcher)
        self.streamed = functools.partial(streamed_layers, patcher)
        self.free_memory = functools.partial(patcher.get_free_memory, patcher.load_device)
        self.conditions = len(positives)
        self.options = {
            **patcher.model_options.get("transformer_options", {}),
            "optimized_attention_override": differentiable_attention,
        }
        self.check = comfy.model_management.throw_exception_if_processing_interrupted
        self.frames = len(latent) if takes_batch_for_frames(self.model) else 0
        self.shape = sample_shape(patcher, latent)
        self.latent, self.mask = latent if self.frames else latent[:1], mask
        about = _About(self.model, positives, negative[:1], mask, self.device)
        self._conds = about.conds(self.latent)
        self._uuids = [uuid.uuid4() for _ in self._conds]
        self._kinds = _kinds(self._conds)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.check()
        numbers = condition.tolist()
        calls = self._calls(numbers)
        if len(calls) == 1:
            return self._predict(x, sigma, numbers).to(x.device)
        parts = [self._predict(x[rows], sigma[rows], [numbers[row] for row in rows]) for rows in calls]
        order = torch.tensor(sum(calls, [])).argsort()
        return torch.cat(parts).to(x.device)[order.to(x.device)]

    def kinds(self, condition: torch.Tensor) -> torch.Tensor:
        """Rows (B,) of one kind can share a call, and are answered in their order."""
        return torch.tensor([self._kinds[number] for number in condition.tolist()])

    def _calls(self, numbers: list[int]) -> list[list[int]]:
        """Which rows share a call."""
        groups = {}
        for row, number in enumerate(numbers):
            groups.setdefault(self._kinds[number], []).append(row)
        calls = []
        for rows in groups.values():
            most = len(rows) if torch.is_grad_enabled() else self._most([numbers[row] for row in rows])
            calls += [rows[i : i + most] for i in range(0, len(rows), most)]
        return calls

    def _most(self, numbers: list[int]) -> int:
        """How many of these samples the host would put into one call."""
        free, sizes = self.free_memory(), collections.defaultdict(list)
        for number in numbers:
            for key, cond in self._conds[number].items():
                sizes[key].append(cond.size())
        for parts in range(1, len(numbers)):
            most = len(numbers) // parts
            shapes = {key: each[:most] for key, each in sizes.items()}
            if self.model.memory_required(self.batch(most), cond_shapes=shapes) * HOST_MARGIN < free:
                return most
        return 1

    def batch(self, count: int) -> list[int]:
        """The shape of that many samples as the model takes them."""
        return [count * self.frames, *self.shape[1:]] if self.frames else [count, *self.shape]

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """x0 on the model's device, of samples whose conditions can be put together."""
        # from the CPU PyTorch would wait for either copy; what it reads is safe as soon as it returns
        sigma = sigma if has_float64(self.device) else sigma.float()
        x, sigma = (part.to(self.device, non_blocking=True) for part in (x, sigma))
        count = len(x)
        if self.frames:
            x, sigma = x.flatten(0, 1), sigma.repeat_interleave(self.frames)
        options = {  # the last four: what patches of attention look at in a sampler's call
            **self.options,
            "sigmas": sigma,
            "sample_sigmas": sigma,
            "cond_or_uncond": [int(number == -1) for number in numbers],
            "uuids": [self._uuids[number] for number in numbers],
        }
        conds = comfy.samplers.cond_cat([self._conds[number] for number in numbers])
        x0 = self.model.apply_model(x, sigma, transformer_options=options, **conds).to(x)
        return plain(x0).view(count, *self.shape)


def differentiable_attention(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """PyTorch's attention whatever backend the user chose: sage, flash and int8 have no gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


class _About(NamedTuple):
    """What the host works out conditioning from."""

    model: BaseModel
    positives: list
    negatives: list
    mask: torch.Tensor | None
    device: torch.device

    def conds(self, latent: torch.Tensor) -> list[dict]:
        """What `apply_model` takes for one sample, all of `latent`, as the host's COND objects, one dict a
        conditioning entry: on the device, and cloned out of inference mode.
        """
        latent = latent.to(self.device)
        noise, mask = torch.zeros_like(latent), None
        if latent.any():  # an empty one stays so
            latent = self.model.process_latent_in(latent)
        if self.mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(self.mask.clone(), noise.shape, self.device)
        entries = [("positive", entry) for entry in self.positives]
        entries += [("negative", entry) for entry in self.negatives]
        out = []
        for kind, entry in entries:
            conds = comfy.samplers.process_conds(
                self.model,
                noise,
                {kind: comfy.sampler_helpers.convert_cond([clone(entry)])},
                self.device,
                latent_image=latent,
                denoise_mask=mask,
                seed=0,
                latent_shapes=[noise.shape],
            )
            found = conds[kind][0]["model_conds"]
            each = {key: cond.process_cond(batch_size=len(latent), area=None) for key, cond in found.items()}
            out.append({key: _on(cond, self.device) for key, cond in each.items()})
        return out


def _on(cond: Any, device: torch.device) -> Any:
    """A COND with what the model would take there at every call already on the device."""
    if torch.is_tensor(cond.cond):
        cond.cond = cond.cond.to(device)
    elif isinstance(cond.cond, list):
        cond.cond = [part.to(device) if torch.is_tensor(part) else part for part in cond.cond]
    return cond


def _kinds(conds: list[dict]) -> list[int]:
    """For each condition the first one that it can share a call with, by the host's own judgement."""
    firsts, kinds = [], []
    for number, cond in enumerate(conds):
        same = (first for first in firsts if comfy.samplers.cond_equal_size(cond, conds[first]))
        kinds.append(next(same, number))
        if kinds[-1] == number:
            firsts.append(number)
    return kinds


def clone(value: Any) -> Any:
    """Conditioning with every tensor cloned: autograd refuses inference tensors, which other nodes make."""
    if torch.is_tensor(value):
        return value.clone()
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(clone(v) for v in value)
    return value
