"""A copy of a LoRA beside it, in other keys or fewer bits."""

from pathlib import Path

from ...diffusion.faults import BadValue
from ...training.cli.export import converted
from ...training.formats.files import free_name, load_lora, save_lora
from ...training.formats.precision import PRECISIONS, in_precision

KEYS = ("comfyui", "diffusers")


def copy_of(lora: Path, to: str = "comfyui", precision: str = "fp32") -> Path:
    """Write the copy under a free name; its path. The recipe goes with it.

    precision: of `formats.precision`. Raises ValueError for keys or a precision that there is not, and for a
    LoRA that other keys have no name for.
    """
    for name, value, known in (("to", to, KEYS), ("precision", precision, tuple(PRECISIONS))):
        if value not in known:
            raise BadValue("{name} must be one of {known}, got {got!r}.", name=name, known=known, got=value)
    tensors, recipe = load_lora(lora)
    if to == "diffusers":
        tensors = converted(lora, tensors, recipe)
    small = in_precision({key: tensor.float() for key, tensor in tensors.items()}, precision)
    suffix = "" if precision == "fp32" else f"_{precision}"
    return save_lora(free_name(lora.parent, f"{lora.stem}_{to}{suffix}", lora.suffix), small, recipe)
