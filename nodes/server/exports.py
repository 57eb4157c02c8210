"""A copy of a LoRA beside it, in other keys or fewer bits."""

from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from ...training.cli.export import converted
from ...training.formats.files import free_name, load_lora, save_lora

KEYS = ("comfyui", "diffusers")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def copy_of(lora: Path, to: str = "comfyui", precision: str = "float32") -> Path:
    """Write the copy under a free name; its path. The recipe goes with it.

    Raises ValueError for keys or a precision that there is not, for a LoRA that other keys have no name for,
    and for weights too large for float16.
    """
    for name, value, known in (("to", to, KEYS), ("precision", precision, tuple(PRECISIONS))):
        if value not in known:
            raise BadValue("{name} must be one of {known}, got {got!r}.", name=name, known=known, got=value)
    tensors, recipe = load_lora(lora)
    if to == "diffusers":
        tensors = converted(lora, tensors, recipe)
    small = {key: tensor.to(PRECISIONS[precision]) for key, tensor in tensors.items()}
    if lost := [key for key, tensor in small.items() if not tensor.isfinite().all()]:
        raise BadValue(
            "precision must hold every weight, and {precision} does not hold {key}. Take bfloat16.",
            precision=precision,
            key=lost[0],
        )
    suffix = "" if precision == "float32" else f"_{precision}"
    return save_lora(free_name(lora.parent, f"{lora.stem}_{to}{suffix}", lora.suffix), small, recipe)
