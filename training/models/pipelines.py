"""A diffusers pipeline's folder: what is in it, its prompts encoded, its network loaded.

Weights are read from safetensors alone and nothing is downloaded. Where a folder has only files of a variant
(*.fp16.safetensors) these are taken. Whatever is wrong with a folder is a ValueError that names it.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch

from ...diffusion.faults import BadValue, NotInstalled
from .memory_errors import is_out_of_memory

PIPELINES = {
    "StableDiffusionPipeline": "UNet2DConditionModel",
    "StableDiffusionXLPipeline": "UNet2DConditionModel",
    "StableDiffusion3Pipeline": "SD3Transformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
}
# of one file or many, the variant before or after the number, as in model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
NO_VAE = 8  # pixels per latent where the folder has no VAE to ask
LONGEST = 300  # characters of another library's message


def library() -> ModuleType:
    """The module `diffusers`; raises ImportError that says how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise NotInstalled(
            "Models in diffusers' format need diffusers ({error}): pip install diffusers transformers",
            error=error,
        ) from error
    return diffusers


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Whatever a library raises over a damaged folder becomes one ValueError that names it."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:LONGEST]
        raise BadValue(
            '{folder} must hold a readable diffusers pipeline, got {got} "{why}". Save it again with '
            "pipe.save_pretrained(folder).",
            folder=folder,
            got=type(error).__name__,
            why=why,
        ) from error


def read_object(file: str | Path) -> dict:
    """The object of a JSON file; raises ValueError that names it."""
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadValue(
            '{file} must be readable JSON, got "{error}". Save the pipeline again.',
            file=file,
            error=error,
        ) from error
    if not isinstance(value, dict):
        raise BadValue(
            "{file} must hold a JSON object, got {got}. Save the pipeline again.",
            file=file,
            got=str(value)[:60],
        )
    return value


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder's model_index.json says.

    pipeline  the name of its class, one of `PIPELINES`
    parts     {part: [library, class name], or [None, None] where it is left out}, and the pipeline's settings
    """

    pipeline: str
    parts: dict

    @property
    def network(self) -> str:
        """The class name of its network."""
        return PIPELINES[self.pipeline]

    @property
    def network_part(self) -> str:
        """The subfolder of its network."""
        return "unet" if self.network.startswith("UNet") else "transformer"


def read_index(folder: str | Path) -> Index:
    """The index of a pipeline folder.

    Raises ValueError for no such folder, another pipeline, and parts that are named but missing.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise BadValue(
            "folder must be a diffusers pipeline with a model_index.json, got {got}. Save one with "
            "pipe.save_pretrained(folder); a single checkpoint file is for the ComfyUI nodes.",
            got=folder,
        )
    parts = read_object(folder / "model_index.json")
    name = parts.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise BadValue(
            "folder must hold one of {pipelines}, got {got} in {folder}.",
            pipelines=list(PIPELINES),
            got=str(name),
            folder=folder,
        )
    if name != "StableDiffusionPipeline" and not parts.get("text_encoder_2"):
        raise BadValue(
            "folder must name text_encoder_2 in its model_index.json for a {name}, and {folder} does not. "
            "Save it again with pipe.save_pretrained(folder), from the class that the model is of.",
            name=name,
            folder=folder,
        )
    index = Index(name, parts)
    if (
        not (folder / index.network_part).is_dir()
        or not (folder / "scheduler" / "scheduler_config.json").is_file()
    ):
        raise BadValue(
            "folder must hold {part}/ and scheduler/scheduler_config.json; {folder} does not. Save it all.",
            part=index.network_part,
            folder=folder,
        )
    missing = [
        key
        for key, value in parts.items()
        if key.startswith(("text_encoder", "tokenizer"))
        and isinstance(value, list)
        and any(value)
        and not _filled(folder / key)
    ]
    if missing:
        raise BadValue(
            "folder must hold {missing}, which model_index.json names; {folder} does not. Save the whole "
            "pipeline, or give ready-made conditionings to DiffusersDenoiser.from_component.",
            missing=missing,
            folder=folder,
        )
    return index


def _filled(folder):
    return folder.is_dir() and any(folder.iterdir())


def pixels_per_latent(folder: str | Path) -> int:
    """How many pixels a latent spans, from the VAE's config; 8 without one."""
    config = Path(folder) / "vae" / "config.json"
    if not config.is_file():
        return NO_VAE
    channels = read_object(config).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise BadValue(
            "{config} must tell block_out_channels, a list, got {got}. Save the pipeline again.",
            config=config,
            got=channels,
        )
    return 2 ** (len(channels) - 1)


def variant_of(folder: str | Path) -> str | None:
    """The variant ("fp16") of the weights in a part's folder where there are no plain ones, else None."""
    found = {
        match[1]
        for file in sorted(Path(folder).glob("*.safetensors"))
        if (match := WEIGHTS.fullmatch(file.name))
    }
    return None if None in found else min(found, default=None)


def load_network(folder: str | Path, dtype: torch.dtype, variant: str | None = None) -> torch.nn.Module:
    """The UNet or transformer of a pipeline's folder."""
    index = read_index(folder)
    network = getattr(library(), index.network)
    with reading(folder):
        return network.from_pretrained(
            folder,
            subfolder=index.network_part,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant=variant or variant_of(Path(folder) / index.network_part),
        )


@torch.no_grad()
def encode(
    folder: str | Path,
    prompts: Sequence[str],
    negative: str | None,
    device: str | torch.device,
    dtype: torch.dtype,
    variant: str | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """[(embeds (T, D), pooled (P,) or None)] of every prompt and, last, the negative; on the CPU.

    Encoded by the pipeline's own `encode_prompt`.
    """
    pipe, name = _encoders(folder, dtype, variant)
    for key, component in pipe.components.items():
        if key.startswith("text_encoder") and component is not None:
            component.to(device)
    with reading(folder):
        encoded = _encoded(pipe, name, prompts, negative, device)
        return [tuple(None if v is None else v[0].to("cpu", dtype) for v in pair) for pair in encoded]


def _encoders(folder, dtype, variant):
    """(the pipeline with nothing in it but what encodes prompts, the name of its class)."""
    diffusers, index = library(), read_index(folder)
    network = getattr(diffusers, index.network)
    encoders = sorted(Path(folder).glob("text_encoder*"))
    absent = [k for k in ("vae", "safety_checker", "feature_extractor", "image_encoder") if k in index.parts]
    if index.pipeline == "StableDiffusion3Pipeline":  # often kept without T5
        absent += [k for k in ("text_encoder_3", "tokenizer_3") if not any(index.parts.get(k) or ())]
    with reading(folder):
        config = network.load_config(folder, subfolder=index.network_part, local_files_only=True)
        with torch.device("meta"):  # the pipeline asks the network for widths, never for weights
            empty = network.from_config(config)
        pipe = getattr(diffusers, index.pipeline).from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            variant=variant or next(filter(None, map(variant_of, encoders)), None),
            torch_dtype=dtype,
            **{index.network_part: empty},
            **dict.fromkeys(absent),
        )
    return pipe, index.pipeline


def _encoded(pipe, name, prompts, negative, device):
    """[(embeds (1, T, D), pooled (1, P) or None)] of every prompt and the negative, as `encode_prompt` gives
    them: (embeds, pooled, ids) for Flux, (embeds, negative embeds) for SD1 and SD2, and (embeds, negative
    embeds, pooled, negative pooled) for SDXL and SD3.
    """
    options = {"device": device, "num_images_per_prompt": 1}
    if name == "FluxPipeline":
        return [pipe.encode_prompt(text, **options)[:2] for text in [*prompts, negative or ""]]
    if name == "StableDiffusion3Pipeline":
        options.update(prompt_2=None, prompt_3=None)
    out = []
    for text in prompts:
        embeds, _, *pooled = pipe.encode_prompt(text, do_classifier_free_guidance=False, **options)
        out.append((embeds, pooled[0] if pooled else None))
    _, embeds, *pooled = pipe.encode_prompt(
        prompts[0], do_classifier_free_guidance=True, negative_prompt=negative, **options
    )
    out.append((embeds, pooled[1] if pooled else None))
    return out
