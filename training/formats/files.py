"""Files that are whole or absent: written beside the target, synced, then renamed over it."""

import json
import os
import secrets
import tempfile
import time
from pathlib import Path

import safetensors.torch
from safetensors import safe_open

from ...diffusion.faults import BadValue
from .recipe import METADATA_KEY, Recipe

RETRIES = 10  # of a renaming that Windows refuses


def check_folder(folder, size=1 << 20):
    """Make `folder` and prove that `size` bytes can be written there, before any long work.

    Raises OSError that names the folder, the cause and the remedy.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fewstep-") as probe:
            probe.write(b"\0" * size)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(
            f"The output folder must be writable with {size / 2**20:.1f} MiB free: {folder} gave "
            f'"{error.strerror or error}". Free some space, or choose another folder.'
        ) from error
    return folder


def write(path, data):
    """Write bytes to `path` whole or not at all: temporary file, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _replace(temporary, path):
    """Rename over `path`; on Windows that is refused as long as somebody reads it, which is soon over."""
    for left in reversed(range(RETRIES)):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if os.name == "posix" or not left:
                raise
            time.sleep(0.05)


def _sync_folder(folder):
    """Have the renaming itself on the disk; Windows neither needs nor allows it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_name(folder, stem, suffix):
    """`folder/stem_00001.suffix`, the first number that is free: a finished file is never overwritten."""
    number = 1
    while (path := Path(folder) / f"{stem}_{number:05d}{suffix}").exists():
        number += 1
    return path


def write_json(path, value):
    """Write `value` as indented JSON, whole or not at all."""
    return write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(path, tensors, metadata):
    """Write {name: tensor} as safetensors with {key: text}, whole or not at all."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return write(path, safetensors.torch.save(tensors, metadata=metadata))


def read_tensors(path):
    """({name: tensor}, {key: text}) of a safetensors file. A damaged one raises whatever its header leads to."""
    with safe_open(str(path), framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}


def save_lora(path, tensors, recipe=None):
    """Write a LoRA as safetensors with its recipe, if it has one, in the metadata."""
    return write_tensors(
        path, tensors, {"format": "pt"} | ({METADATA_KEY: recipe.to_json()} if recipe else {})
    )


def load_lora(path):
    """(tensors, recipe or None) of a LoRA file; raises ValueError naming the file and what is wrong with it."""
    try:
        tensors, metadata = read_tensors(path)
        text = metadata.get(METADATA_KEY)
        return tensors, Recipe.from_json(text) if text else None
    except Exception as error:
        raise BadValue(
            "{name} must be a LoRA in safetensors, can't be read ({error}). Take another.",
            name=Path(path).name,
            error=error,
        ) from error


def save_recipe(path, recipe):
    """Write a recipe as a file of its own."""
    return write_json(path, json.loads(recipe.to_json()))


def load_recipe(path):
    """The recipe of a JSON file; raises ValueError that names the file and what is wrong with it."""
    try:
        return Recipe.from_json(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadValue("{name}: {error}", name=Path(path).name, error=error) from error
