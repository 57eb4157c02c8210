"""Distilling without ComfyUI: `fewstep distil`, `reflow`, `resume` and `export`.

A run lives in one folder: run.json (which model, which prompts), the job's own files (`job`), and at the end curves.png and
lora.safetensors in ComfyUI's keys with its recipe; of a diffusers model lora_diffusers.safetensors too. `resume` needs that folder.
"""

import dataclasses
import json
import tomllib
from pathlib import Path

import torch

from . import pictures
from .config import DistilConfig
from .demo.net import KINDS
from .export import from_diffusers, to_diffusers
from .files import check_folder, load_lora, save_lora, write_json
from .job import Job
from .memory import cut
from .phases import usual_shift
from .restoration import run_of

SPEC, LORA, FOR_DIFFUSERS = "run.json", "lora.safetensors", "lora_diffusers.safetensors"
# what suits a packaged teacher is too hot for a large model; both give way to the config file
DEFAULTS = {"demo": {}, "diffusers": {"lr": 1e-4, "rank": 32, "batch": 4, "chunk": 4, "images": 256, "cfg": 5.0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Which model a run is of: a packaged teacher's name, or a diffusers folder with prompts, a negative and a size in pixels."""

    model: str
    prompts: tuple = ()
    negative: str = ""
    width: int = 512
    height: int = 512
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if Path(self.model).is_dir() and self.model not in KINDS:
            object.__setattr__(self, "model", str(Path(self.model).resolve()))
        if self.model not in KINDS and not Path(self.model).is_dir():
            raise ValueError(f"model must be {', '.join(KINDS)} or a diffusers folder, got {self.model!r}.")
        if self.model not in KINDS and not self.prompts:
            raise ValueError(f"prompts must hold at least one prompt for the model {self.model}, got none. Use --prompts FILE.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device must be cpu on this machine: PyTorch finds no CUDA GPU. Leave --device out.")

    @property
    def family(self):
        """"demo" or "diffusers"."""
        return "demo" if self.model in KINDS else "diffusers"

    def denoiser(self):
        """The model."""
        if self.family == "demo":
            from .demo.teacher import DemoTeacher

            return DemoTeacher(self.model, self.device)
        from .diffusers_model import DiffusersDenoiser

        return DiffusersDenoiser(self.model, list(self.prompts), self.negative, size=(self.height, self.width), device=self.device,
                                 dtype=getattr(torch, self.dtype))


def read_config(path):
    """The settings of a JSON or TOML file as a dict; raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return dict(values)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a config in JSON or TOML, and can't be read ({error}).") from error


def distil(out, spec, settings, memory=None, show=lambda run, progress: None):
    """Run, or go on with, the distillation in the folder `out`; returns the finished `Distillation`, closed.

    settings: of `DistilConfig`, over `DEFAULTS`; memory: bytes that the run may take, None for what is free. show(run, progress) is
    called at every step. Raises ValueError, OSError, MemoryError or ArithmeticError, all before any long work.
    """
    settings = {**DEFAULTS[spec.family], **settings}
    config = DistilConfig.from_dict(settings)
    out = check_folder(out, 8 << 20)
    denoiser = spec.denoiser()
    if "shift" not in settings:
        config = dataclasses.replace(config, shift=usual_shift(denoiser.path, denoiser.sigma_of))
    config, _ = cut(denoiser, config, memory)
    identity = {"patches": "", "conditioning": json.dumps([spec.prompts, spec.negative, spec.model])}
    run = run_of(denoiser, config, (out / "trajectories", identity))
    about = {"base": denoiser.base, "shape": list(denoiser.shape), "prompts": list(spec.prompts), "negative": spec.negative}
    try:
        with Job(out, run, about) as job:
            write_json(out / SPEC, {"version": 1, "spec": dataclasses.asdict(spec), "settings": settings, "memory": memory})
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
    """The LoRA: of a packaged teacher in its own keys, which are ComfyUI's; of a diffusers model in both programs'."""
    family = getattr(run.denoiser, "family", None)
    if family is None:
        run.save(out / LORA)
        return
    # names and shapes are part of a fingerprint, so that ComfyUI's of the same weights is another
    recipe = dataclasses.replace(run.recipe(), base="")
    tensors, options = run.lora_tensors(), {"family": family, "blocks": run.denoiser.blocks}
    save_lora(out / LORA, from_diffusers(tensors, **options), recipe)
    save_lora(out / FOR_DIFFUSERS, to_diffusers(tensors, **options), recipe)


def resume(out, **options):
    """Go on with the run in a folder, as `distil` with what its run.json says."""
    file = Path(out) / SPEC
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        spec, settings, memory = Spec(**found["spec"]), dict(found["settings"]), found["memory"]
    except (OSError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} must be the folder of a run, and its {SPEC} can't be read ({error}). Start one with fewstep "
                         "distil.") from error
    return distil(out, spec, settings, memory, **options)


def export(lora, out, to="diffusers"):
    """Write a LoRA in another program's keys, "diffusers" (peft) or "comfyui"; returns how many layers it has.

    Raises ValueError for layers that the format has no name for: nothing is left out.
    """
    tensors, recipe = load_lora(lora)
    converted = to_diffusers(tensors) if to == "diffusers" else from_diffusers(tensors)
    save_lora(Path(out), converted, recipe)
    return len({key.rsplit(".", 2)[0] for key in converted if not key.endswith(".alpha")})
