"""Prompts to train on: typed, or from a file, the metadata of the user's own pictures or the bundled list.

A prompt is a stripped, non-empty str. ComfyUI's pictures hold their graph in API format under "prompt", see
`graph_texts`; A1111's hold text under "parameters". PNGs have these as text chunks, WebPs as EXIF fields
"prompt:...". Pillow reads the files. No picture is trusted: what is misshapen is left out, and no more is
read of a file than the bounds below.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from PIL.Image import Exif
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ...diffusion.faults import BadValue
from .checks import is_texts, is_whole
from .graph_texts import Sides, of_graph, plain

SUFFIXES = (".png", ".webp")  # of pictures
READERS = {b"\x89PNG": PngImageFile, b"RIFF": WebPImageFile}  # by how a file begins
KEYS = ("prompt", "parameters")  # of the texts in pictures
READ = 128 << 20  # bytes of a picture that are read: of a PNG up to its pixels, of a WebP all
READS = 4_000  # portions that these are read in: chunks of a file, fields of its EXIF
LARGEST = 4 << 20  # bytes of a text in a picture, and of its EXIF
MINE = "my pictures"  # a source
DEEPEST = 16  # folders below the harvested one
MARK = r"#|-{3,}[ \t\r]*$"  # of a comment, and between two prompts, where a line begins with it
ESCAPED = re.compile(rf"(?m)^([ \t]*)\\(\\*(?:{MARK}))")
TO_ESCAPE = re.compile(rf"(?m)^([ \t]*)(\\*(?:{MARK}))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harvest:
    """What a folder's pictures were made with. Each dict counts pictures: the most first, then the newest.

    prompts, negatives   {text: pictures}; "" among the negatives is the empty one
    sizes                {(width, height): pictures} of the pictures with a prompt
    pictures, skipped    how many were looked at, and how many of these could not be read
    """

    prompts: dict[str, int]
    negatives: dict[str, int]
    sizes: dict[tuple[int, int], int]
    pictures: int
    skipped: int


def typed(text: str) -> list[str]:
    """The prompts of a text: one a line or, where there are lines of `---`, one between two of them.

    Lines that begin with # are comments. A backslash before either makes it part of a prompt.
    """
    text = re.sub(r"(?m)^[ \t]*#.*$", "", text)
    parts = re.split(r"(?m)^[ \t]*-{3,}[ \t\r]*$", text)
    parts = parts if len(parts) > 1 else text.splitlines()
    return _distinct(ESCAPED.sub(r"\1\2", part) for part in parts)


def as_text(texts: Iterable[str]) -> str:
    """The text of which `typed` makes these prompts."""
    return "".join(f"{escaped(text)}\n---\n" for text in texts)


def escaped(text: str) -> str:
    """A prompt as `typed` wants it written."""
    return TO_ESCAPE.sub(r"\1\\\2", text)


def _distinct(texts):
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text]


def from_file(path: str | os.PathLike) -> list[str]:
    """The prompts of a .txt file, see `typed`, or of a .json file that holds a list of texts; UTF-8.

    Raises ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".json"):
        raise BadValue(
            "file must be a .txt with one prompt a line or a .json with a list of texts, got {got!r}.",
            got=path.name,
        )
    if not path.is_file():
        raise BadValue("file must be there, and {path!r} is not. Check its name and folder.", path=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = typed(text) if path.suffix.lower() == ".txt" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BadValue(
            'file must be readable UTF-8 text or JSON, {name!r} gave "{error}". Save it again.',
            name=path.name,
            error=error,
        ) from error
    if not isinstance(value, list) or not is_texts(value):
        odd = [part for part in value if not isinstance(part, str)] if isinstance(value, list) else [value]
        raise BadValue(
            'file must hold a list of texts, {name!r} holds {odd!r}. Write ["a prompt", ...].',
            name=path.name,
            odd=str(odd[0])[:60],
        )
    return _distinct(value)


def bundled(count: int | None = None) -> list[str]:
    """The first `count` prompts of the bundled list, or all. Any few in a row vary in subject and style."""
    return typed(Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8"))[:count]


def choose(
    count: int,
    *,
    typed: Iterable[str] = (),
    file: Iterable[str] = (),
    harvested: Iterable[str] = (),
    bundled: Iterable[str] = (),
) -> list[tuple[str, str]]:
    """[(prompt, source)] of up to `count` different prompts, taken from the sources in this order.

    source: "typed", "file", MINE or "bundled".
    """
    if not is_whole(count) or count < 1:
        raise BadValue("count must be a whole number of 1 or more, got {got!r}.", got=count)
    sources = {"typed": typed, "file": file, MINE: harvested, "bundled": bundled}
    chosen = {}
    for source, prompts in sources.items():
        for prompt in prompts:
            if len(chosen) < count:
                chosen.setdefault(prompt, source)
    return list(chosen.items())


def harvest(
    folder: str | os.PathLike,
    limit: int = 1_000,
    files: int = 10_000,
    check: Callable[[], Any] = lambda: None,
) -> Harvest:
    """The Harvest of the newest `files` pictures in `folder` and below it, each dict cut to `limit`.

    check() is called between pictures: it may raise to stop. What was read is remembered as long as the
    process lives.
    """
    counts, skipped = ({}, {}, {}), 0
    pictures = pictures_in(folder, check)[:files]
    for picture in pictures:
        check()
        found = read(*picture)
        skipped += found is None
        for seen, values in zip(counts, found or ()):
            for value in values:
                seen[value] = seen.get(value, 0) + 1
    prompts, negatives, sizes = (
        dict(sorted(seen.items(), key=lambda item: -item[1])[:limit]) for seen in counts
    )
    return Harvest(prompts=prompts, negatives=negatives, sizes=sizes, pictures=len(pictures), skipped=skipped)


def pictures_in(
    folder: str | os.PathLike, check: Callable[[], Any] = lambda: None
) -> list[tuple[str, int, int]]:
    """[(path, time of change in ns, bytes)] of the pictures in `folder` and below it, the newest first.

    Follows no links.
    """
    found, root = [], os.fspath(folder)
    for here, folders, names in os.walk(root):
        check()
        if here[len(root) :].count(os.sep) >= DEEPEST:
            folders.clear()
        for name in names:
            if not name.lower().endswith(SUFFIXES):
                continue
            path = os.path.join(here, name)
            with contextlib.suppress(OSError):  # gone since
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    found.append((path, status.st_mtime_ns, status.st_size))
    return sorted(found, key=lambda picture: (-picture[1], picture[0]))


@functools.lru_cache(maxsize=20_000)
def read(path: str, changed: int = 0, size: int = 0) -> tuple[tuple, tuple, tuple] | None:
    """(positives, negatives, sizes) of a picture: tuples of texts, and its (width, height) where it has a
    prompt; None if it is broken.

    changed, size: of the file, so that another one under the same name is read anew.
    """
    try:
        with open(path, "rb") as file:
            shape, texts = _opened(file)
    except Exception:  # Pillow sets no bounds to what a broken file makes it raise
        return None
    graph = _json(texts["prompt"]) if "prompt" in texts else {}
    sides = of_graph(graph)
    if not sides[0] and "parameters" in texts:
        sides = of_parameters(texts["parameters"])
    if graph is None and not sides[0]:
        return None
    return *sides, ((shape,) if sides[0] else ())


def _json(text):
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _opened(file):
    """((width, height), {key: text}) of an open picture. No pixel is decoded."""
    reader = READERS[file.read(4)]
    file.seek(0)
    picture = reader(_Bounded(file, READ))
    texts = picture.info if reader is PngImageFile else _fields(picture.info.get("exif", b""))
    texts = {key: texts[key] for key in KEYS if key in texts}
    if any(len(text) > LARGEST for text in texts.values()):
        raise BadValue("the text is too long")
    return picture.size, texts


def _fields(data):
    """{key: text} of the fields "key:text" in the first directory of an EXIF."""
    exif = Exif()
    if data:
        exif.load_from_fp(_Bounded(io.BytesIO(data.removeprefix(b"Exif\0\0")), LARGEST))
    texts = {}
    for value in exif.values():
        if isinstance(value, str):
            value = value.rstrip("\0").encode("latin-1").decode("utf-8")  # Pillow reads UTF-8 as Latin-1
            key, colon, text = value.partition(":")
            if colon:
                texts.setdefault(key, text)
    return texts


class _Bounded:
    """A file that raises ValueError when more than `left` bytes of it are read, or more often than READS."""

    def __init__(self, file: BinaryIO, left: int):
        self.file, self.left, self.reads = file, left, READS
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            here = self.tell()
            size = self.seek(0, os.SEEK_END) - here
            self.seek(here)
        self.left -= size
        self.reads -= 1
        if self.left < 0 or self.reads < 0:
            raise BadValue("the text is too long")
        return self.file.read(size)


def of_parameters(text: str) -> Sides:
    """(positives, negatives) of A1111's text.

    That text is the prompt, "Negative prompt: ", and settings from the last "Steps: ". Other programs put an
    object in JSON there: of one that is a graph, its texts. A prompt may begin with a brace, too.
    """
    if isinstance(value := _json(text), dict):
        return of_graph(value)
    before, found, after = ("\n" + text).rpartition("\nSteps: ")
    positive, _, negative = (before if found else after).partition("\nNegative prompt:")
    positive, negative = plain(positive), plain(negative)
    if not positive:
        return (), ()
    return (positive,), (negative or "",)
