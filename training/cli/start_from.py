"""The LoRA file that a run from the command line begins with.

As the node's `start_from`: a layer of lower rank than the run's begins with the same function, one of higher
rank with its best approximation, and a layer that the file lacks at zero. What is no plain LoRA of the
model's layers is refused by name, or left out where that is asked for. ComfyUI's loader, by which the node
reads LoHa, DoRA and the like, is not there to ask.
"""

import dataclasses
import hashlib
from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from ..adapter.lora import target_layers
from ..adapter.low_rank import nearest_product
from ..formats.checks import check_flag
from ..formats.files import cause, load_lora
from ..formats.lora_keys import listed, on_layers
from ..models.denoiser import Denoiser

DIGITS = 16  # of a file's fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartFrom:
    """Which file, and whether only what fits of it is wanted; as run.json has it.

    digest: of the file's bytes when the run was begun. Raises ValueError naming what is wrong.
    """

    file: str
    partly: bool = False
    digest: str

    def __post_init__(self) -> None:
        for name in ("file", "digest"):
            if not isinstance(getattr(self, name), str):
                raise BadValue("{name} must be text, got {got!r}.", name=name, got=getattr(self, name))
        check_flag("partly", self.partly)

    @classmethod
    def of(cls, file: str | Path, partly: bool = False) -> "StartFrom":
        """Of a file as it is now."""
        return cls(file=str(Path(file).resolve()), partly=partly, digest=_digest(file))

    def read(self) -> dict[str, torch.Tensor]:
        """The file's tensors; raises ValueError where it is not the one that the run was begun with."""
        if _digest(self.file) != self.digest:
            raise BadValue(
                "{file} must be the LoRA that the run began with, and has changed since. Put that file back, "
                "or start another run.",
                file=self.file,
            )
        return load_lora(self.file)[0]

    def layers_of(
        self, tensors: dict[str, torch.Tensor], denoiser: Denoiser, rank: int
    ) -> dict[str, torch.Tensor]:
        """What the file changes of that model, as `run.Run` takes it: float32, of that rank at most.

        tensors: as `read`. Raises ValueError naming what has no place in a LoRA of the model.
        """
        name = Path(self.file).name
        layers = target_layers(denoiser.module)
        family, blocks = (getattr(denoiser, what, None) for what in ("family", "blocks"))
        try:
            pairs, odd = on_layers(tensors, layers, family, blocks)
        except ValueError as error:
            raise BadValue("{lora}: {error}", lora=name, error=error) from error
        if not pairs:
            raise BadValue(
                "start_from must be a LoRA for this model, {name} has none of its layers. Choose another "
                "file.",
                name=name,
            )
        if odd and not self.partly:
            raise BadValue(
                "start_from must be a plain LoRA of this model's layers; {name} also has {odd}. Choose "
                "another file, or add --start-partly to begin with the rest.",
                name=name,
                odd=listed(odd),
            )
        out = {}
        for layer, (up, down) in pairs.items():
            up, down = up.float(), down.float()
            if len(down) > rank and bool(up.isfinite().all() and down.isfinite().all()):
                up, down = nearest_product(up, down, rank)
            out[f"diffusion_model.{layer}.lora_up.weight"] = up.contiguous()
            out[f"diffusion_model.{layer}.lora_down.weight"] = down.contiguous()
        return out


def _digest(file):
    """Hex digits that tell files apart."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS]
    except OSError as error:
        raise BadValue(
            "start_from must be a LoRA file, and {file} can't be read ({cause}). Check its name, or put the "
            "file back.",
            file=file,
            cause=cause(error),
        ) from error
