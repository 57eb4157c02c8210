"""Distilling without ComfyUI: `fewstep distil`, `reflow`, `resume` and `export`.

A run lives in one folder: run.json (which model, which prompts), the job's own files (`job`), and at the end
curves.png and lora.safetensors in ComfyUI's keys with its recipe; of a diffusers model
lora_diffusers.safetensors too. `resume` needs that folder.
"""

import dataclasses
import json
import tomllib
from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from ..adapter.lora import target_layers
from ..formats.files import check_folder, load_lora, save_lora, write_json
from ..formats.lora_keys import FAMILIES, from_diffusers, listed, read, to_diffusers
from ..models.demo.data import label_width
from ..models.demo.net import KINDS, EmojiNet
from ..models.families import usual
from ..reports import pictures
from ..run.config import DistilConfig
from ..run.job import Job
from ..run.memory import cut
from ..run.phases import usual_shift
from ..run.restoration import run_of

SPEC, LORA, FOR_DIFFUSERS = "run.json", "lora.safetensors", "lora_diffusers.safetensors"
DEVICES, DTYPES = ("cpu", "cuda"), ("float32", "bfloat16", "float16")
LARGE = {"batch": 4, "chunk": 4, "images": 256}  # what suits a packaged teacher is too much of a large model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Which model a run is of: a packaged teacher's name, or a diffusers folder with prompts, a negative and
    a size in pixels.

    width, height: None for the model's own. Raises ValueError naming what is wrong.
    """

    model: str
    prompts: tuple = ()
    negative: str = ""
    width: int | None = None
    height: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self):
        if (
            not isinstance(self.model, str)
            or not self.model
            or self.model not in KINDS
            and not Path(self.model).is_dir()
        ):
            raise BadValue(
                "model must be {kinds} or a diffusers folder, got {got!r}.",
                kinds=list(KINDS),
                got=self.model,
            )
        if self.model not in KINDS:
            object.__setattr__(self, "model", str(Path(self.model).resolve()))
        if not isinstance(self.prompts, (list, tuple)) or not all(
            isinstance(text, str) for text in self.prompts
        ):
            raise BadValue("prompts must be a list of texts, got {got!r}.", got=self.prompts)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.model not in KINDS and not self.prompts:
            raise BadValue(
                "prompts must hold at least one prompt for the model {model}, got none. Use --prompts FILE.",
                model=self.model,
            )
        if not isinstance(self.negative, str):
            raise BadValue("negative must be text, got {got!r}.", got=self.negative)
        if {type(self.width), type(self.height)} not in ({int}, {type(None)}):
            raise BadValue(
                "width and height must be whole numbers of pixels, got {got!r} and {height!r}.",
                got=self.width,
                height=self.height,
            )
        for name, choices in (("device", DEVICES), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise BadValue(
                    "{name} must be one of {choices}, got {got!r}.",
                    name=name,
                    choices=list(choices),
                    got=getattr(self, name),
                )
        check_device(self.device)

    def denoiser(self):
        """The model."""
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
            device=self.device,
            dtype=getattr(torch, self.dtype),
        )


def check_device(device):
    """Raise ValueError for "cuda" where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadValue("device must be cpu on this machine: PyTorch finds no CUDA GPU. Leave --device out.")


def read_config(path):
    """The settings of a JSON or TOML file as a dict; raises ValueError naming the file and what is wrong with
    it.
    """
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


def suited(denoiser, settings):
    """The settings over those that suit the model's family; a packaged teacher is suited by `DistilConfig`'s
    own.
    """
    family = getattr(denoiser, "family", None)
    return {**LARGE, **dataclasses.asdict(usual(family)), **settings} if family else settings


def distil(out, spec, settings, memory=None, show=lambda run, progress: None):
    """Run, or go on with, the distillation in the folder `out`; returns the finished `Distillation`, closed.

    settings: of `DistilConfig`, over what suits the model's family; memory: bytes that the run may take, None
    for what is free. show(run, progress) is called at every step. Raises ValueError, OSError, MemoryError or
    ArithmeticError, all before any long work.
    """
    DistilConfig.from_dict(settings)  # refused before the model is loaded
    out = check_folder(out, 8 << 20)
    denoiser = spec.denoiser()
    settings = suited(denoiser, settings)
    config = DistilConfig.from_dict(settings)
    if "shift" not in settings:
        config = dataclasses.replace(config, shift=usual_shift(denoiser.path, denoiser.sigma_of))
    config, _ = cut(denoiser, config, memory)
    identity = {"patches": "", "conditioning": json.dumps([spec.prompts, spec.negative, spec.model])}
    run = run_of(denoiser, config, (out / "trajectories", identity))
    about = {
        "base": denoiser.base,
        "shape": list(denoiser.shape),
        "prompts": list(spec.prompts),
        "negative": spec.negative,
    }
    try:
        with Job(out, run, about) as job:
            write_json(
                out / SPEC,
                {"version": 1, "spec": dataclasses.asdict(spec), "settings": settings, "memory": memory},
            )
            try:
                for progress in job.progress():
                    show(run, progress)
            finally:
                if run.done:
                    _save(run, out)
                    pictures.run_curves(run.loss, run.fidelity).save(out / "curves.png")
    finally:
        run.close()
    return run


def _save(run, out):
    """The LoRA: of a packaged teacher in its own keys, which are ComfyUI's; of a diffusers model in both
    programs'.
    """
    family = getattr(run.denoiser, "family", None)
    if family is None:
        run.save(out / LORA)
        return
    tensors, options, recipe = (
        run.lora_tensors(),
        {"family": family, "blocks": run.denoiser.blocks},
        run.recipe(),
    )
    # names and shapes are part of a fingerprint, so that ComfyUI's of the same weights is another; `export`
    # reads the family
    recipe = dataclasses.replace(recipe, base="", trained={**recipe.trained, **options})
    save_lora(out / LORA, from_diffusers(tensors, **options), recipe)
    save_lora(out / FOR_DIFFUSERS, to_diffusers(tensors, **options), recipe)


def resume(out, **options):
    """Go on with the run in a folder, as `distil` with what its run.json says."""
    file = Path(out) / SPEC
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        spec, settings, memory = Spec(**found["spec"]), {**found["settings"]}, found["memory"]
    except FileNotFoundError:
        raise BadValue(
            "{out} must be the folder of a run, and has no {spec}. Start one with fewstep distil.",
            out=out,
            spec=SPEC,
        ) from None
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise BadValue(
            "{file} must tell what a run is of, and can't be used ({error}). Mend it, or start another run "
            "with fewstep distil.",
            file=file,
            error=error,
        ) from error
    if memory is not None and not (type(memory) in (int, float) and 0 < memory < 1e300):
        raise BadValue(
            "memory in {file} must be a number of bytes or null, got {got!r}.",
            file=file,
            got=memory,
        )
    return distil(out, spec, settings, memory, **options)


def export(lora, out, to="diffusers", family=None):
    """Write a LoRA in another program's keys, "diffusers" (peft) or "comfyui"; returns how many layers it
    has.

    family: one of `export.FAMILIES`, None for what the file tells. Raises ValueError for a file that there is
    already, for weights that are not finite, and for layers that the format has no name for: nothing is left
    out.
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
        converted = (to_diffusers if to == "diffusers" else from_diffusers)(tensors, family, blocks)
    except ValueError as error:
        raise BadValue("{lora}: {error}", lora=lora, error=error) from error
    try:
        save_lora(out, converted, recipe)
    except OSError as error:
        raise OSError(
            f"{out} can't be written ({error.strerror or error}). Free some space, or choose another folder."
        ) from error
    return len({key.rsplit(".", 2)[0] for key in converted if not key.endswith(".alpha")})


def _demo_layers():
    """The names of a packaged teacher's layers."""
    with torch.device("meta"):
        return set(target_layers(EmojiNet(KINDS[0], label_width())))
