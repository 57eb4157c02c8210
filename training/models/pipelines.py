"""A diffusers pipeline's folder: what is in it, its prompts encoded, its network loaded.

Weights are read from safetensors alone and nothing is downloaded. Where a folder has only files of a variant
(*.fp16.safetensors) these are taken. Whatever is wrong with a folder is a ValueError that names it.
"""

import contextlib
import json
import re
from pathlib import Path

import torch

from ...diffusion.faults import BadValue, NotInstalled
from .memory_errors import is_out_of_memory

PIPELINES = {
    "StableDiffusionPipeline": "UNet2DConditionModel",
    "StableDiffusionXLPipeline": "UNet2DConditionModel",
    "StableDiffusion3Pipeline": "SD3Transformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
}
# of one file or many, the variant before or after the number: model.safetensors,
# model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
NO_VAE = 8  # pixels per latent where the folder has no VAE to ask
LONGEST = 300  # characters of another library's message


def library():
    """The module `diffusers`; raises ImportError that says how to install it."""
    try:
        import diffusers
    except ImportError as error:
        raise NotInstalled(
            "Models in diffusers' format need diffusers ({error}): pip install fewstep[diffusers]",
            error=error,
        ) from error
    return diffusers


@contextlib.contextmanager
def reading(folder):
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


def read_object(file):
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


def read_index(folder):
    """(pipeline class name, name of the network's subfolder, model_index.json) of a pipeline folder.

    Raises ValueError for no such folder, another pipeline, and parts that are named but missing.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise BadValue(
            "folder must be a diffusers pipeline with a model_index.json, got {got}. Save one with "
            "pipe.save_pretrained(folder); a single checkpoint file is for the ComfyUI nodes.",
            got=folder,
        )
    index = read_object(folder / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise BadValue(
            "folder must hold one of {pipelines}, got {got} in {folder}.",
            pipelines=list(PIPELINES),
            got=str(name),
            folder=folder,
        )
    if name != "StableDiffusionPipeline" and not index.get("text_encoder_2"):
        raise BadValue(
            "folder must name text_encoder_2 in its model_index.json for a {name}, and {folder} does not. "
            "Save it again with pipe.save_pretrained(folder), from the class that the model is of.",
            name=name,
            folder=folder,
        )
    part = "unet" if PIPELINES[name].startswith("UNet") else "transformer"
    if not (folder / part).is_dir() or not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise BadValue(
            "folder must hold {part}/ and scheduler/scheduler_config.json; {folder} does not. Save it all.",
            part=part,
            folder=folder,
        )
    missing = [
        key
        for key, value in index.items()
        if key.startswith(("text_encoder", "tokenizer"))
        and isinstance(value, list)
        and any(value)
        and not _filled(folder / key)
    ]
    if missing:
        raise BadValue(
            "folder must hold {missing}, which model_index.json names; {folder} does not. Save the whole "
            "pipeline, or give ready-made conditionings to DiffusersDenoiser.from_component.",
            missing=list(missing),
            folder=folder,
        )
    return name, part, index


def _filled(folder):
    return folder.is_dir() and any(folder.iterdir())


def pixels_per_latent(folder):
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


def variant_of(folder):
    """The variant ("fp16") of the weights in a part's folder where there are no plain ones, else None."""
    found = {
        match[1]
        for file in sorted(Path(folder).glob("*.safetensors"))
        if (match := WEIGHTS.fullmatch(file.name))
    }
    return None if None in found else min(found, default=None)


def load_network(folder, dtype, variant=None):
    """The UNet or transformer of a pipeline's folder."""
    name, part, _ = read_index(folder)
    network = getattr(library(), PIPELINES[name])
    with reading(folder):
        return network.from_pretrained(
            folder,
            subfolder=part,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant=variant or variant_of(Path(folder) / part),
        )


@torch.no_grad()
def encode(folder, prompts, negative, device, dtype, variant=None):
    """[(embeds (T, D), pooled (P,) or None)] of every prompt and, last, the negative, by the pipeline's own
    `encode_prompt`.
    """
    diffusers, (name, part, index) = library(), read_index(folder)
    network = getattr(diffusers, PIPELINES[name])
    encoders = sorted(Path(folder).glob("text_encoder*"))
    variant = variant or next(filter(None, map(variant_of, encoders)), None)
    with reading(folder):
        absent = {
            k: None for k in ("vae", "safety_checker", "feature_extractor", "image_encoder") if k in index
        }
        if name == "StableDiffusion3Pipeline":  # often kept without T5
            absent.update({k: None for k in ("text_encoder_3", "tokenizer_3") if not any(index.get(k) or ())})
        with torch.device("meta"):  # the pipeline asks the network for widths, never for weights
            empty = network.from_config(network.load_config(folder, subfolder=part, local_files_only=True))
        pipe = getattr(diffusers, name).from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            torch_dtype=dtype,
            **{part: empty},
            **absent,
        )
    for key, component in pipe.components.items():
        if key.startswith("text_encoder") and component is not None:
            component.to(device)
    with reading(folder):
        return [
            (*(t[0].to("cpu", dtype) for t in item), None)[:2]
            for item in _encoded(pipe, name, prompts, negative, device)
        ]


def _encoded(pipe, name, prompts, negative, device):
    """What `encode_prompt` gives for every prompt and the negative: (embeds (1, T, D), pooled (1, P)) or
    (embeds,).
    """
    options = {"device": device, "num_images_per_prompt": 1}
    if name == "FluxPipeline":
        return [pipe.encode_prompt(text, **options)[:2] for text in [*prompts, negative or ""]]
    if name == "StableDiffusion3Pipeline":
        options.update(prompt_2=None, prompt_3=None)
    out = [pipe.encode_prompt(text, do_classifier_free_guidance=False, **options)[::2] for text in prompts]
    out.append(
        pipe.encode_prompt(prompts[0], do_classifier_free_guidance=True, negative_prompt=negative, **options)[
            1::2
        ]
    )
    return out
