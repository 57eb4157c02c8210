"""Folders of one kind below a common one, within a limit of bytes: which are ours, in use, or have to go.

A folder is ours when its name is the hash of what its `manifest.json` says. It is in use while a run has it
locked; the lock ends with the process, however that ends.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that somebody has open can't be removed
    fcntl = None

MANIFEST, LOCK = "manifest.json", ".lock"
ATTEMPTS = 10  # at a lock whose file was removed meanwhile
SHARD = re.compile(r"\d{5,}\.safetensors")
# what a write that was killed leaves behind, ours and safetensors'
LEFT = re.compile(r"\.(.+\.(safetensors|json|png)|fewstep)-[a-z0-9_]{8}|\.tmp[A-Za-z0-9]{6}")


def key(version: int, spec: Mapping[str, Any]) -> str:
    """The name of the folder of that spec, 24 hex digits."""
    text = json.dumps({"version": version, "spec": spec}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def is_ours(folder: Path) -> bool:
    """Whether a folder is no link, and named by the hash of its manifest."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return not folder.is_symlink() and folder.name == key(found["version"], found["spec"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def lock(folder: Path, alone: bool = False) -> BinaryIO | None:
    """An open file that marks a folder as in use until it is closed, at the latest by the end of the process.

    None where the folder can't be written, or its file system has no locks; alone: also when another process
    has it open.
    """
    handle = _locked(folder, alone)
    for _ in range(ATTEMPTS):
        if handle is None or fcntl is None or _is_at(folder / LOCK, handle):
            break
        handle.close()  # of a folder that was removed while this one waited for it
        handle = _locked(folder, alone)
    return handle


def made(folder: Path) -> BinaryIO | None:
    """`lock` of a folder that is made, if it can be, and tidied; again where it is removed meanwhile."""
    for _ in range(2):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        if handle := lock(folder):
            return handle
    return None


def _locked(folder, alone):
    """`lock`, of a file that may not be there any more."""
    try:
        if alone and fcntl is None:
            (folder / LOCK).unlink(missing_ok=True)
        handle = open(folder / LOCK, "ab")
    except OSError:
        return None
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        return handle
    except OSError:
        handle.close()
        return None


def _is_at(path, handle):
    """Whether that is the file at that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
    except OSError:
        return False


def in_use(folder: Path) -> bool:
    """Whether a process has the folder for itself, as far as can be told."""
    alone = lock(folder, alone=True)
    if alone:
        alone.close()
    return alone is None


def tidy(folder: Path) -> None:
    """Remove what killed writes left, unless another run is writing there."""
    if alone := lock(folder, alone=True):
        with alone:
            for file in _named(folder, LEFT):
                with contextlib.suppress(OSError):  # held by another program; it does no harm
                    file.unlink(missing_ok=True)


def make_room(root: Path, limit: int, folder: Path, wanted: int) -> None:
    """Remove the longest unused until `wanted` bytes of `folder` and all others below `root` fit the limit.

    No folder that a run has open is removed, and nothing that is not ours.
    """
    others = [f for f in root.iterdir() if f != folder and is_ours(f)]
    sizes = {f: size(f) for f in sorted(others, key=_used)}
    total = wanted + sum(sizes.values())
    for other, each in sizes.items():
        if total > limit and remove(other):
            total -= each
    if total > limit:
        logging.warning(
            "Fewstep: the trajectory caches in %s take more than their limit, as another run has some open.",
            root,
        )


def remove(folder: Path) -> bool:
    """Delete a folder unless a run has it open; returns whether it is gone.

    The manifest goes last: what the end of the process cuts short is still ours. Files of others stay.
    """
    alone = lock(folder, alone=True)
    if alone is None:
        return False
    try:
        with alone:
            for file in (*_named(folder, SHARD), *_named(folder, LEFT), folder / MANIFEST):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                drop(folder, alone)
    except OSError as error:
        logging.warning("Fewstep: the trajectory cache %s can't be removed (%s).", folder, error)
        return False
    logging.info("Fewstep: removed the trajectory cache %s, unused for longest.", folder)
    return True


def drop(folder: Path, alone: BinaryIO) -> None:
    """Remove a folder that holds no more than its lock, while that is held: whoever waits for it must find
    that it is gone.
    """
    if fcntl is None:  # on Windows nobody can, nor can an open file be removed
        alone.close()
    (folder / LOCK).unlink()
    folder.rmdir()


def size(folder: Path) -> int:
    """Bytes of the files in a folder; one that goes meanwhile does not count."""
    total = 0
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total


def _used(folder):
    try:
        return (folder / MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


def _named(folder, pattern):
    return [file for file in folder.iterdir() if pattern.fullmatch(file.name)]
