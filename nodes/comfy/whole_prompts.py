"""Whether conditioning entries are prompts for the whole picture, by the host's own arithmetic."""

from types import SimpleNamespace

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import BadValue, Message


def check_whole(
    name: str,
    entries: list,
    model: ModelPatcher,
    shape: tuple[int, ...],
    sigmas: torch.Tensor,
    remedy: Message,
) -> None:
    """Raise ValueError for a conditioning entry that is no prompt for the whole picture at all levels, naming
    what makes it so. The host's own arithmetic says where an entry counts; nothing is loaded.
    """
    sampling = SimpleNamespace(model_sampling=model.get_model_object("model_sampling"))
    levels = sigmas[sigmas > 0].float()
    for number, entry in enumerate(entries):
        if torch.is_tensor(entry[0]) and len(entry[0]) > 1:
            raise BadValue(
                "{name} must hold one prompt in each of its entries, got {most} at once. Join prompts with "
                "Conditioning Combine, or use Prompts for Distilling.",
                name=name,
                most=len(entry[0]),
            )
        if _is_whole(entry, sampling, shape, levels):
            continue
        alone = [
            key
            for key in entry[1]
            if _is_whole([entry[0], {k: v for k, v in entry[1].items() if k != key}], sampling, shape, levels)
        ]
        raise BadValue(
            "{name} must be prompts for the whole picture at every noise level, and entry {number} is not, "
            "by its {parts}. {remedy}.",
            name=name,
            number=number + 1,
            parts=alone or sorted(entry[1]),
            remedy=remedy,
        )


def _is_whole(entry, sampling, shape, levels):
    """Whether an entry counts everywhere alike, at all levels."""
    cond = comfy.sampler_helpers.convert_cond([[None, {**entry[1], "model_conds": {}}]])
    cond[0].pop("gligen", None)  # a patch, not a place
    x = torch.zeros(1, *shape)
    try:
        comfy.samplers.resolve_areas_and_cond_masks_multidim(cond, x.shape[2:], x.device)
        comfy.samplers.calculate_start_end_timesteps(sampling, cond)
        parts = [comfy.samplers.get_area_and_mult(cond[0], x, level[None]) for level in levels]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return all(part is not None and part.mult.shape == x.shape and _is_even(part.mult) for part in parts)


def _is_even(mult):
    return bool((mult == mult.flatten()[0]).all()) and float(mult.flatten()[0]) != 0
