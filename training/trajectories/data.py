"""What a run learns from: the teacher's pictures, their noise and what lies between, or the user's own data.

    Data.condition (N,)     which conditioning each sample belongs to
    Data.images (N, ...)    model space
    Data.noise (N, ...)     noise that a deterministic solver made the image from (`pair_noise`); None for
                            images of another origin
    Data.anchors (N, kept, ...)     its trajectory at the run's levels, from noise to image; None too

Pairs on disk are one safetensors file: noise, images, condition; the metadata says what they were made with.
"""

import dataclasses
import json
import pathlib

import torch

from ...diffusion.faults import BadValue
from ...diffusion.paths import Path
from ...diffusion.predictions import from_x0
from ..formats.files import read_tensors, told_by_name, write_tensors
from ..models.denoiser import Denoiser

METADATA_KEY = "fewstep.pairs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """See above. Raises ValueError naming the part that does not fit the others."""

    images: torch.Tensor
    condition: torch.Tensor
    noise: torch.Tensor | None = None
    anchors: torch.Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if count < 1:
            raise BadValue("images must hold at least one picture, got none.")
        if self.condition.shape != (count,):
            raise BadValue(
                "condition must hold one number for each of {count} images, got shape {shape}.",
                count=count,
                shape=tuple(self.condition.shape),
            )
        if self.noise is not None and self.noise.shape != self.images.shape:
            raise BadValue(
                "noise must have the images' shape {shape}, got {got}.",
                shape=tuple(self.images.shape),
                got=tuple(self.noise.shape),
            )
        for name in ("images", "noise"):
            value = getattr(self, name)
            if value is not None and not bool(value.isfinite().all()):
                raise BadValue("{name} must be finite, and is not. Make the data again.", name=name)

    @property
    def holds(self) -> tuple[str, ...]:
        """The kinds of data (`methods.method.Method.needs`) that it can serve as."""
        optional = {"pairs": self.noise, "trajectories": self.anchors}
        return ("images", *(kind for kind, part in optional.items() if part is not None))

    def check(self, denoiser: Denoiser, needs: str) -> None:
        """Raise ValueError when it does not fit that model, or lacks what the method needs."""
        if tuple(self.images.shape[1:]) != tuple(denoiser.shape):
            raise BadValue(
                "the data's pictures must have the shape {shape} of the run, got {got}. Use the same "
                "latent size for both.",
                shape=tuple(denoiser.shape),
                got=tuple(self.images.shape[1:]),
            )
        if int(self.condition.min()) < 0 or int(self.condition.max()) >= denoiser.conditions:
            raise BadValue(
                "the data's conditions must be 0 to {last}, got {least} to {most}. Wire the "
                "prompts that it was made with.",
                last=denoiser.conditions - 1,
                least=int(self.condition.min()),
                most=int(self.condition.max()),
            )
        if needs not in self.holds:
            raise BadValue(
                "the method needs {needs}, the data holds {holds}. Choose another method, or let the run "
                "make its own data.",
                needs=needs,
                holds=list(self.holds),
            )


def pair_noise(
    start: torch.Tensor, images: torch.Tensor, path: Path, sigma: torch.Tensor | float
) -> torch.Tensor:
    """The noise with which an image makes its trajectory's start, (x - alpha x_0)/sigma: on a path whose
    largest level is not pure noise, the solver's unit noise would let the picture shine through where
    training begins.

    start, images (N, ...), sigma the largest level.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    return from_x0(images, "epsilon", start, float(path.alpha(sigma)), float(sigma))


def from_trajectories(
    anchors: torch.Tensor, condition: torch.Tensor, needs: str, path: Path, sigma: torch.Tensor | float
) -> Data:
    """`Data` of trajectories (N, kept, ...) from the largest level, sigma, with what that kind of method
    needs and no more, for they are large.
    """
    if needs == "trajectories":
        return Data(images=anchors[:, -1], condition=condition, anchors=anchors)
    images = anchors[:, -1].clone()
    noise = pair_noise(anchors[:, 0], images, path, sigma) if needs == "pairs" else None
    return Data(images=images, condition=condition, noise=noise)


def save_pairs(file: str | pathlib.Path, data: Data, about: dict) -> pathlib.Path:
    """Write noise, images and condition, whole or not at all; about: a JSON-able dict of what made them."""
    tensors = {"noise": data.noise, "images": data.images, "condition": data.condition}
    with told_by_name(file):
        return write_tensors(
            file, tensors, {METADATA_KEY: json.dumps({"version": 1, **about}), "format": "pt"}
        )


def load_pairs(file: str | pathlib.Path) -> tuple[Data, dict]:
    """(Data, about) of a file of `save_pairs`; raises ValueError naming the file and what is wrong."""
    try:
        tensors, metadata = read_tensors(file)
        about = json.loads(metadata[METADATA_KEY])
        tensors = {k: tensors[k] for k in ("noise", "images", "condition")}
    except Exception as error:
        raise BadValue(
            "{path} must be pairs that Fewstep wrote, and can't be read ({error}). Draw them again.",
            path=file,
            error=error,
        ) from error
    if about.get("version") != 1:
        raise BadValue(
            "{path} must be of version 1, got {got!r}. Update Fewstep.",
            path=file,
            got=about.get("version"),
        )
    return Data(**tensors), about
