"""Which model a run without ComfyUI is of, and settings from a file."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import torch

from ...diffusion.faults import BadValue
from ...diffusion.frozen import normalise
from ..formats.checks import check_choice, is_texts
from ..models.demo.net import KINDS
from ..models.denoiser import Denoiser

DEVICES, DTYPES = ("cpu", "cuda"), ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Which model a run is of: a packaged teacher's name, or a diffusers folder with prompts, a negative and
    a size in pixels.

    width, height: None for the model's own. Raises ValueError naming what is wrong.
    """

    model: str
    prompts: tuple[str, ...] = ()
    negative: str = ""
    width: int | None = None
    height: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        named = isinstance(self.model, str) and bool(self.model)
        if not named or (self.model not in KINDS and not Path(self.model).is_dir()):
            raise BadValue(
                "model must be {kinds} or a diffusers folder, got {got!r}.",
                kinds=list(KINDS),
                got=self.model,
            )
        if self.model not in KINDS:
            normalise(self, model=str(Path(self.model).resolve()))
        if not is_texts(self.prompts):
            raise BadValue("prompts must be a list of texts, got {got!r}.", got=self.prompts)
        normalise(self, prompts=tuple(self.prompts))
        if self.model not in KINDS and not self.prompts:
            raise BadValue(
                "prompts must hold at least one prompt for the model {model}, got none. Use --prompts FILE.",
                model=self.model,
            )
        if not isinstance(self.negative, str):
            raise BadValue("negative must be text, got {got!r}.", got=self.negative)
        if {type(self.width), type(self.height)} not in ({int}, {type(None)}):
            raise BadValue(
                "width and height must be whole numbers of pixels, got {width!r} and {height!r}.",
                width=self.width,
                height=self.height,
            )
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, DTYPES)
        check_device(self.device)

    @property
    def is_packaged(self) -> bool:
        """Whether the model is a packaged teacher."""
        return self.model in KINDS

    def denoiser(self, in_pieces: bool = False) -> Denoiser:
        """The model; in_pieces: it will be shared out, and a large one waits on the CPU for that."""
        if self.model in KINDS:
            from ..models.demo.teacher import DemoTeacher

            return DemoTeacher(self.model, self.device)
        from ..models.diffusers_model import DiffusersDenoiser

        size = None if self.width is None else (self.height, self.width)
        return DiffusersDenoiser(
            self.model,
            list(self.prompts),
            self.negative,
            size=size,
            device="cpu" if in_pieces else self.device,
            dtype=getattr(torch, self.dtype),
        )


def check_device(device: str) -> None:
    """Raise ValueError for "cuda" where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadValue("device must be cpu on this machine: PyTorch finds no CUDA GPU. Leave --device out.")


def read_config(path: str | Path) -> dict[str, Any]:
    """A JSON or TOML file's settings as a dict; raises ValueError naming the file and what is wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        shown = repr(values)[:60]
    except RecursionError:
        raise BadValue(
            "{path} must be a config in JSON or TOML, and is nested too deeply to be one.",
            path=path,
        ) from None
    except (OSError, ValueError) as error:
        raise BadValue(
            "{path} must be a config in JSON or TOML, and can't be read ({error}).",
            path=path,
            error=error,
        ) from error
    if not isinstance(values, dict):
        raise BadValue(
            '{path} must hold settings by name, such as {{"steps": 4}}, got {got}.',
            path=path,
            got=shown,
        )
    return values
