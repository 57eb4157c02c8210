"""Files that are whole or absent: written beside the target, synced, then renamed over it.

Windows replaces no file that somebody has open or mapped into memory. So nothing that is read here stays
mapped, and what others hold for long is written under another name where that serves as well (`write_near`).
"""

import contextlib
import ctypes
import errno
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from ...diffusion.faults import BadFile, BadValue
from . import version
from .recipe import METADATA_KEY, Recipe

RETRIES = 10  # of a renaming that Windows refuses
# Windows' numbers for that: access denied, sharing and lock violations, a mapped file
HELD = (5, 32, 33, 1224)
SYSTEM = re.compile(r"\(os error (\d+)\)")  # how Rust tells the system's number
NUMBER = re.compile(r"_\d{5,}$")  # at the end of a stem, of `free_name`
TRIAL = 1 << 20  # bytes that are written to see whether a folder can be
STEM = 200  # bytes; file systems take 255, with number, suffix and what marks a temporary file

Name = str | os.PathLike  # of a file or folder


def cause(error: OSError) -> str:
    """What the system says went wrong, without its number for it and without the path."""
    return error.strerror or str(error)


def is_held(error: OSError) -> bool:
    """Whether Windows refused to touch a file because somebody has it open or mapped."""
    return getattr(error, "winerror", None) in HELD


def check_folder(folder: Name, size: int = TRIAL, name: str | None = None) -> Path:
    """Make `folder` and prove that it has `size` bytes free and takes a file of that name, before any long
    work. A run's files may be gigabytes, so they are asked for and not written: a trial of 1 MiB is.

    Raises OSError that names the folder, the cause and the remedy; ValueError for a name that is too long.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder)
        if disk.total and disk.free < size:  # some network drives tell nothing but zeros
            raise _unwritable(folder, size, os.strerror(errno.ENOSPC))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name or 'fewstep'}-") as probe:
            probe.write(bytes(min(size, TRIAL)))
            probe.flush()
            os.fsync(probe.fileno())
    except BadFile:
        raise
    except OSError as error:
        if name and error.errno == errno.ENAMETOOLONG:
            raise BadValue(
                "name must be shorter, as {folder} takes no file name as long as {name}.",
                folder=str(folder),
                name=name,
            ) from error
        raise _unwritable(folder, size, cause(error)) from error
    return folder


def _unwritable(folder, size, why):
    return BadFile(
        "The output folder must be writable with {size:.1f} MiB free: {folder} gave "
        '"{cause}". Free some space, or choose another folder.',
        size=size / 2**20,
        folder=str(folder),
        cause=why,
    )


def write(path: Name, data: bytes) -> Path:
    """Write bytes to `path` whole or not at all."""
    return _whole(path, lambda temporary: temporary.write_bytes(data))


def _whole(path, fill):
    """fill(temporary file), fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        fill(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a scanner holds it; the next run removes it
            temporary.unlink(missing_ok=True)
        raise
    return path


@contextlib.contextmanager
def told_by_name(file: Name) -> Iterator[None]:
    """Within: what the disk refuses is raised as BadFile that names that file, and says what to do."""
    try:
        yield
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(
            '{file} must be written, which gave "{error}". Free some space and run again: what was '
            "written before is kept.",
            file=file,
            error=cause(error),
        ) from error


def write_near(path: Name, write: Callable[[Path], Any]) -> Path:
    """write(path), or write(another free name beside it) where that file is held, which is logged; returns
    the path that was written.
    """
    path = Path(path)
    try:
        write(path)
        return path
    except OSError as error:
        if not is_held(error):
            raise
    other = free_name(path.parent, NUMBER.sub("", path.stem), path.suffix)
    logging.warning("Fewstep: %s is held by another program; saved as %s.", path.name, other.name)
    write(other)
    return other


def _replace(temporary, path):
    """Rename over `path`; whoever reads the file is soon done, as a rule."""
    for left in reversed(range(RETRIES)):
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if not is_held(error) or not left:
                raise
            time.sleep(0.05)


def _sync_folder(folder):
    """Put the renaming itself on the disk; Windows neither needs nor allows it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_stem(name: str) -> str:
    """A plain beginning of file names from what the user typed, of at most `STEM` bytes in UTF-8.

    With the number and suffix of `free_name` it makes none of the names that Windows keeps for itself (CON,
    NUL), and none that ends in a dot or a space. Raises ValueError where nothing of it can be used.
    """
    stem = re.sub(r"[^\w\- ]+", "_", name).strip()
    if not any(c.isalnum() for c in stem):
        raise BadValue("name must hold a letter or a digit, got {got!r}.", got=name)
    return stem.encode()[:STEM].decode(errors="ignore").rstrip()


def free_name(folder: Name, stem: str, suffix: str) -> Path:
    """`folder/stem_00001.suffix`, the first number that is free: a finished file is never overwritten."""
    number = 1
    while (path := Path(folder) / f"{stem}_{number:05d}{suffix}").exists():
        number += 1
    return path


def write_json(path: Name, value: Any) -> Path:
    """Write `value` as indented JSON, whole or not at all."""
    return write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(
    path: Name, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str], signed: bool = True
) -> Path:
    """Write {name: tensor} as safetensors with {key: text} as metadata, whole or not at all.

    signed: with the version of Fewstep that wrote the file in the metadata too.
    """
    metadata = {version.METADATA_KEY: version.VERSION, **metadata} if signed else metadata
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return _whole(path, lambda temporary: _save(tensors, temporary, metadata))


def _save(tensors, path, metadata):
    """Of the library, whose errors tell the system's number as text alone, as OSError."""
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = SYSTEM.search(str(error))
        if number is None:
            raise
        raise _system_error(int(number[1]), str(path)) from error


def _system_error(number, path):
    """The OSError of the system's number for what went wrong."""
    if os.name == "nt":
        return ctypes.WinError(number)
    return OSError(number, os.strerror(number), path)


def read_tensors(path: Name) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """({name: tensor}, {key: text}) of a safetensors file. A damaged one may raise any kind of error.

    The tensors are copies: those of the library keep the file mapped for as long as one of them lives.
    """
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}


def save_lora(path: Name, tensors: Mapping[str, torch.Tensor], recipe: Recipe | None = None) -> Path:
    """Write a LoRA as safetensors with its recipe, if it has one, in the metadata."""
    metadata = {"format": "pt"}
    if recipe:
        metadata[METADATA_KEY] = recipe.to_json()
    return write_tensors(path, tensors, metadata)


def load_lora(path: Name) -> tuple[dict[str, torch.Tensor], Recipe | None]:
    """(tensors, recipe or None) of a LoRA file; raises ValueError naming it and what is wrong with it."""
    try:
        tensors, metadata = read_tensors(path)
        text = metadata.get(METADATA_KEY)
        return tensors, Recipe.from_json(text) if text else None
    except Exception as error:
        raise BadValue(
            "{name} must be a LoRA in safetensors, and can't be read ({error}). Take another.",
            name=Path(path).name,
            error=error,
        ) from error


def save_recipe(path: Name, recipe: Recipe) -> Path:
    """Write a recipe as a file of its own."""
    return write_json(path, json.loads(recipe.to_json()))


def load_recipe(path: Name) -> Recipe:
    """The recipe of a JSON file; raises ValueError naming it and what is wrong with it."""
    try:
        return Recipe.from_json(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadValue("{name}: {error}", name=Path(path).name, error=error) from error
