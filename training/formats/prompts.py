"""Prompts to train on: typed, or from a file, the metadata of the user's own pictures or the bundled list.

A prompt is a stripped, non-empty str. ComfyUI's pictures hold their graph in API format under "prompt": {node
id: {"class_type": ..., "inputs": {name: value, or a link [node id, output]}}}; A1111's hold text under
"parameters". PNGs have these as text chunks, WebPs as EXIF fields "prompt:...". A node is known by the names
of its inputs, never by its class. Pillow reads the files. No picture is trusted: what is misshapen is left
out, and no more is read of a file than the bounds below.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL.Image import Exif
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ...diffusion.faults import BadValue
from .checks import is_texts, is_whole

SUFFIXES = (".png", ".webp")  # of pictures
READERS = {b"\x89PNG": PngImageFile, b"RIFF": WebPImageFile}  # by how a file begins
KEYS = ("prompt", "parameters")  # of the texts in pictures
READ = 128 << 20  # bytes of a picture that are read: of a PNG up to its pixels, of a WebP all
READS = 4_000  # portions that these are read in: chunks of a file, fields of its EXIF
LARGEST = 4 << 20  # bytes of a text in a picture, and of its EXIF
LONGEST = 8_000  # characters of a prompt
DEEPEST = 16  # folders below the harvested one
FARTHEST = 50  # links from a text encoder to its text
SIDES = {"positive": ("positive", "guider"), "negative": ("negative",)}  # the inputs that either starts from
TEXT = r"(populated_|user_)?(text|string|prompt|value|t5xxl|mt5xl|bert|llama|clip_[lgh])(_?[a-z0-9])?"
TEXTS = {side: re.compile(rf"{TEXT}|((text|prompt)_)?{side}(_(text|prompt))?") for side in SIDES}
# words in names of inputs that no prompt comes through
ELSEWHERE = set(
    "model clip vae image images pixels samples latent latents mask masks net control noise sampler sigmas "
    "style gligen audio video seed hooks lora".split()
)
UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what no text encoder takes
TAGS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # A1111's, which it does not encode

Sides = tuple[tuple[str, ...], tuple[str, ...]]  # positives, negatives


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

    Lines that begin with # are comments.
    """
    text = re.sub(r"(?m)^[ \t]*#.*$", "", text)
    parts = re.split(r"(?m)^[ \t]*-{3,}[ \t\r]*$", text)
    return _distinct(parts if len(parts) > 1 else text.splitlines())


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

    source: "typed", "file", "my pictures" or "bundled".
    """
    if not is_whole(count) or count < 1:
        raise BadValue("count must be a whole number of 1 or more, got {got!r}.", got=count)
    sources = {"typed": typed, "file": file, "my pictures": harvested, "bundled": bundled}
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
    try:
        sides = of_graph(json.loads(texts["prompt"])) if "prompt" in texts else ((), ())
    except (ValueError, RecursionError):
        return None
    if not sides[0] and "parameters" in texts:
        sides = of_parameters(texts["parameters"])
    return *sides, ((shape,) if sides[0] else ())


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

    That text is the prompt, "Negative prompt: ", and settings from the last "Steps: ".
    """
    before, found, after = ("\n" + text).rpartition("\nSteps: ")
    positive, _, negative = (before if found else after).partition("\nNegative prompt:")
    positive, negative = _plain(positive), _plain(negative)
    if not positive or positive.startswith("{"):  # another program's JSON
        return (), ()
    return (positive,), (negative or "",)


def _plain(text):
    """A text as it is encoded; None where it can't be, or is too long."""
    fit = isinstance(text, str) and len(text) <= LONGEST and not UNFIT.search(text)
    return TAGS.sub("", text).strip() if fit else None


def of_graph(graph: Any) -> Sides:
    """(positives, negatives) of an API-format graph: texts upstream of its positive, negative, guider inputs.

    A text that is upstream of both, as where a negative is the positive zeroed out, is a positive alone.
    """
    nodes = {}
    for name, node in graph.items() if isinstance(graph, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            nodes[name] = node["inputs"]
    positive, negative = (_Upstream(nodes, side).texts() for side in SIDES)
    negative = [text for place, text in negative.items() if place not in positive]
    return tuple(dict.fromkeys(filter(None, positive.values()))), tuple(dict.fromkeys(negative))


def _link(value):
    """The id of the node that an input is linked to, None where it is no link."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    node, output = value
    return str(node) if isinstance(node, (str, int)) and isinstance(output, int) else None


class _Upstream:
    """One side's texts in a graph of {node id: inputs}.

    Each node is looked at once, so cycles end and the work is linear.
    """

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], side: str):
        self.nodes, self.side, self.strings = nodes, side, {}
        (self.other,) = set(SIDES) - {side}

    def texts(self) -> dict[tuple[str, str], str]:
        """{(node id, input): text}, an encoder with several texts giving its longest."""
        waiting = []
        for name, inputs in reversed(self.nodes.items()):
            given = [inputs[key] for key in SIDES[self.side] if key in inputs]
            # a loader may hold its texts itself
            waiting += [name if isinstance(value, str) else _link(value) for value in given]
        found, seen = {}, set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            inputs = self.nodes[name]
            own = {key: self.text(value) for key, value in inputs.items() if self.holds_text(key)}
            own = {key: text for key, text in own.items() if text is not None}
            if own:
                key = max(own, key=lambda k: len(own[k]))
                found[name, key] = own[key]
            for key, value in reversed(inputs.items()):
                if key not in own and self.leads_on(key) and (link := _link(value)) is not None:
                    waiting.append(link)
        return found

    def holds_text(self, key: str) -> bool:
        """Whether an input of that name holds this side's text."""
        return TEXTS[self.side].fullmatch(key) is not None

    def leads_on(self, key: str) -> bool:
        """Whether this side's conditioning may come through an input of that name."""
        return self.other not in key and not ELSEWHERE.intersection(re.split(r"[^a-z]+", key.lower()))

    def text(self, value: Any, links: int = 0) -> str | None:
        """The text of an input: its own, or what the linked nodes make of theirs; None without."""
        name = _link(value)
        if name is None:
            return _plain(value)
        if name in self.strings or name not in self.nodes or links > FARTHEST:
            return self.strings.get(name)
        self.strings[name] = None  # while it is being worked out: a cycle has no text
        inputs = self.nodes[name]
        parts = [self.text(v, links + 1) for key, v in inputs.items() if self.holds_text(key)]
        if set(parts) <= {None}:  # a switch or the like
            linked = [v for key, v in inputs.items() if _link(v) is not None and self.leads_on(key)]
            parts = [self.text(v, links + 1) for v in linked]
            parts = [part for part in parts if part is not None][:1]
        delimiter = inputs["delimiter"] if isinstance(inputs.get("delimiter"), str) else ", "
        if parts:
            self.strings[name] = _plain(delimiter.join(dict.fromkeys(filter(None, parts))))
        return self.strings[name]
