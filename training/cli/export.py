"""`fewstep export`: a LoRA in another program's keys."""

from pathlib import Path

import torch

from ...diffusion.faults import BadFile, BadValue
from ..adapter.lora import target_layers
from ..formats.files import cause, load_lora, save_lora
from ..formats.lora_keys import FAMILIES, from_diffusers, listed, read, to_diffusers
from ..formats.recipe import Recipe
from ..models.demo.data import label_width
from ..models.demo.net import KINDS, EmojiNet


def export(lora: str | Path, out: str | Path, to: str = "diffusers", family: str | None = None) -> int:
    """Write a LoRA in keys of another program, "diffusers" (peft) or "comfyui"; returns its number of layers.

    family: one of `lora_keys.FAMILIES`, None for what the file tells. Raises ValueError for a file that there
    is already, for weights that are not finite, and for layers that the format has no name for: nothing is
    left out.
    """
    out = Path(out)
    if out.exists():
        raise BadValue("out must be a new file, and {out} is there already. Choose another name.", out=out)
    if not out.parent.is_dir():
        raise BadValue(
            "out must be a file in a folder that is there, and {parent} is not. Make it, or choose another.",
            parent=out.parent,
        )
    tensors, recipe = load_lora(lora)
    made = converted(lora, tensors, recipe, to, family)
    try:
        save_lora(out, made, recipe)
    except OSError as error:
        raise BadFile(
            "{out} can't be written ({cause}). Free some space, or choose another folder.",
            out=out,
            cause=cause(error),
        ) from error
    return len({key.rsplit(".", 2)[0] for key in made if not key.endswith(".alpha")})


def converted(
    lora: str | Path,
    tensors: dict[str, torch.Tensor],
    recipe: Recipe | None,
    to: str = "diffusers",
    family: str | None = None,
) -> dict[str, torch.Tensor]:
    """A LoRA file's tensors in keys of another program; lora: its name in messages, others as of `export`."""
    if odd := [key for key, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise BadValue(
            "{lora} must hold finite weights, got NaN or infinity in {odd}. Take another.",
            lora=lora,
            odd=listed(odd),
        )
    told = recipe.trained if recipe else {}
    family = family or (told.get("family") if told.get("family") in FAMILIES else None)
    blocks = told.get("blocks") if type(told.get("blocks")) is int and 0 < told["blocks"] < 10 else None
    try:
        if read(tensors).keys() <= _demo_layers():
            raise BadValue("a packaged teacher's LoRA has no other format. ComfyUI loads it as it is.")
        return (to_diffusers if to == "diffusers" else from_diffusers)(tensors, family, blocks)
    except ValueError as error:
        raise BadValue("{lora}: {error}", lora=lora, error=error) from error


def _demo_layers():
    """The names of a packaged teacher's layers."""
    with torch.device("meta"):
        return set(target_layers(EmojiNet(KINDS[0], label_width())))
