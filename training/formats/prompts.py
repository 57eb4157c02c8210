"""Prompts to train on: typed, from a file, from the metadata of the user's own pictures, or from the bundled
list.

A prompt is a stripped, non-empty str. ComfyUI's pictures hold their graph in API format under "prompt": {node
id: {"class_type": ..., "inputs": {name: value, or a link [node id, output]}}}; A1111's hold text under
"parameters". A node is known by the names of its inputs, never by its class. No picture is trusted: what is
misshapen is left out.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import stat
import struct
import zlib
from pathlib import Path

from ...diffusion.faults import BadValue

SUFFIXES, KEYS = (".png", ".webp"), ("prompt", "parameters")  # of pictures, and of the texts in them
LARGEST, LONGEST = 4 << 20, 8_000  # bytes of a text in a picture, characters of a prompt
CHUNKS, FIELDS = 1_000, 64  # of a file, and of its EXIF, that are looked at
DEEPEST, FARTHEST = 16, 50  # folders below the harvested one, links from a text encoder to its text
SIDES = {"positive": ("positive", "guider"), "negative": ("negative",)}  # the inputs that either starts from
TEXT = r"(populated_|user_)?(text|string|prompt|value|t5xxl|mt5xl|bert|llama|clip_[lgh])(_?[a-z0-9])?"
TEXTS = {side: re.compile(rf"{TEXT}|((text|prompt)_)?{side}(_(text|prompt))?") for side in SIDES}
ELSEWHERE = set(
    "model clip vae image images pixels samples latent latents mask masks net control noise sampler sigmas style "
    "gligen audio video seed hooks lora".split()
)  # words in names of inputs that no prompt comes through
UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what no text encoder takes
TAGS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # A1111's, which it doesn't encode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harvest:
    """What a folder's pictures were made with. Each dict counts pictures: the most first, then the newest.

    prompts, negatives   {text: pictures}; "" among the negatives is the empty one
    sizes                {(width, height): pictures} of the pictures with a prompt
    pictures, skipped    how many were looked at, and how many of these could not be read
    """

    prompts: dict
    negatives: dict
    sizes: dict
    pictures: int
    skipped: int


def typed(text):
    """The prompts of a text: one a line; where there are lines of `---`, one between two of them. Lines with
    # are comments.
    """
    text = re.sub(r"(?m)^[ \t]*#.*$", "", text)
    parts = re.split(r"(?m)^[ \t]*-{3,}[ \t\r]*$", text)
    return _distinct(parts if len(parts) > 1 else text.splitlines())


def _distinct(texts):
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text]


def from_file(path):
    """The prompts of a .txt file, see `typed`, or of a .json file that holds a list of texts; UTF-8."""
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
    odd = [v for v in value if not isinstance(v, str)] if isinstance(value, list) else [value]
    if odd:
        raise BadValue(
            'file must hold a list of texts, {name!r} holds {odd!r}. Write ["a prompt", ...].',
            name=path.name,
            odd=str(odd[0])[:60],
        )
    return _distinct(value)


def bundled(count=None):
    """The first `count` prompts of the bundled list, or all; each run of a few has varied subjects and
    styles.
    """
    return typed(Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8"))[:count]


def choose(count, *, typed=(), file=(), harvested=(), bundled=()):
    """[(prompt, source)] of up to `count` different prompts, taken from the sources in this order.

    source: "typed", "file", "my pictures" or "bundled".
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadValue("count must be a whole number of 1 or more, got {got!r}.", got=count)
    chosen = {}
    for source, prompts in (
        ("typed", typed),
        ("file", file),
        ("my pictures", harvested),
        ("bundled", bundled),
    ):
        for prompt in prompts:
            if len(chosen) < count:
                chosen.setdefault(prompt, source)
    return list(chosen.items())


def harvest(folder, limit=1_000, files=10_000, check=lambda: None):
    """The Harvest of the newest `files` pictures in `folder` and below it, each dict cut to `limit`.

    check() is called between pictures: it may raise to stop. What was read is remembered while the process
    lives.
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


def pictures_in(folder, check=lambda: None):
    """[(path, time of change in ns, bytes)] of the pictures in `folder` and below it, the newest first.
    Follows no links.
    """
    found, root = [], os.fspath(folder)
    for here, folders, names in os.walk(root):
        check()
        if here[len(root) :].count(os.sep) >= DEEPEST:
            folders.clear()
        for path in (os.path.join(here, name) for name in names if name.lower().endswith(SUFFIXES)):
            with contextlib.suppress(OSError):  # gone since
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    found.append((path, status.st_mtime_ns, status.st_size))
    return sorted(found, key=lambda picture: (-picture[1], picture[0]))


@functools.lru_cache(maxsize=20_000)
def read(path, changed=0, size=0):
    """(positives, negatives, sizes) of a picture: tuples of texts, and its (width, height) where it has a
    prompt; None if broken.

    changed, size: of the file, so that another one under the same name is read anew.
    """
    try:
        with open(path, "rb") as file:
            shape, texts = {b"\x89PNG": _png, b"RIFF": _webp}[file.read(4)](file)
        sides = of_graph(json.loads(texts["prompt"])) if "prompt" in texts else ((), ())
        if not sides[0] and "parameters" in texts:
            sides = of_parameters(texts["parameters"])
    except (OSError, ValueError, KeyError, RecursionError, struct.error, zlib.error):
        return None
    return *sides, ((shape,) if shape and sides[0] else ())


def _png(file):
    """((width, height), {key: text}) of a PNG, from its chunks before the first pixels."""
    shape, texts, place = None, {}, 8
    for _ in range(CHUNKS):
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"IHDR":
            shape = struct.unpack(">II", file.read(8))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = file.read(min(length, 80)).partition(b"\0")[0].decode("latin-1")
            if key in KEYS and key not in texts:
                file.seek(place + 9 + len(key))
                texts[key] = _text(kind, _exactly(file, length - len(key) - 1))
        place += length + 12
    return shape, texts


def _text(kind, body):
    """The text of a tEXt, zTXt or iTXt chunk, what is before and with its keyword's end cut off."""
    if kind == b"tEXt":
        return body.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(body[1:]).decode("latin-1")
    rest = body[2:].split(b"\0", 2)[2:]  # after the language and the translated keyword
    return b"".join(map(_inflate, rest) if body[:1] == b"\1" else rest).decode("utf-8")


def _inflate(data):
    out = zlib.decompressobj().decompress(data, LARGEST + 1)
    if len(out) > LARGEST:
        raise BadValue("the text is too long")
    return out


def _exactly(file, length):
    """`length` bytes of `file`; raises ValueError where these are too many, or more than there are."""
    if not 0 <= length <= LARGEST or len(data := file.read(length)) < length:
        raise BadValue("the text is too long or cut off")
    return data


def _webp(file):
    """((width, height), {key: text}) of a WebP, from its header and its EXIF, in which "key:text" is what
    ComfyUI writes.
    """
    shape, texts, place = None, {}, 12
    for _ in range(CHUNKS):
        file.seek(place)
        if not (head := file.read(8)):
            break
        kind, length = struct.unpack("<4sI", head)
        if kind == b"VP8X":
            numbers = _exactly(file, 10)
            shape = tuple(1 + int.from_bytes(numbers[i : i + 3], "little") for i in (4, 7))
        elif kind == b"EXIF":
            for text in _tiff(_exactly(file, length).removeprefix(b"Exif\0\0")):
                key, colon, rest = text.partition(":")
                if colon and key in KEYS:
                    texts.setdefault(key, rest)
        place += length + length % 2 + 8
    return shape, texts


def _tiff(data):
    """The texts of a TIFF's first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, start)
    for i in range(min(entries, FIELDS)):
        _, kind, length, where = struct.unpack_from(order + "HHII", data, start + 2 + 12 * i)
        if kind == 2 and length > 4:  # shorter ones are in the place of `where`
            yield data[where : where + length].rstrip(b"\0").decode("utf-8")


def of_parameters(text):
    """(positives, negatives) of A1111's text: the prompt, "Negative prompt: ", and settings from the last
    "Steps: ".
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


def of_graph(graph):
    """(positives, negatives) of a graph in API format: the texts upstream of inputs named positive, negative
    and guider.

    A text that is upstream of both, as where a negative is the positive zeroed out, is a positive alone.
    """
    pairs = graph.items() if isinstance(graph, dict) else ()
    nodes = {
        name: node["inputs"]
        for name, node in pairs
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    positive, negative = (_Upstream(nodes, side).texts() for side in SIDES)
    negative = [text for place, text in negative.items() if place not in positive]
    return tuple(dict.fromkeys(filter(None, positive.values()))), tuple(dict.fromkeys(negative))


def _link(value):
    """The id of the node that an input is linked to, None where it is no link."""
    linked = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], (str, int))
        and isinstance(value[1], int)
    )
    return str(value[0]) if linked else None


class _Upstream:
    """One side's texts in a graph of {node id: inputs}. Each node is looked at once, so cycles end and the
    work is linear.
    """

    def __init__(self, nodes, side):
        self.nodes, self.side, self.strings = nodes, side, {}
        (self.other,) = set(SIDES) - {side}

    def texts(self):
        """{(node id, input): text}, an encoder with several texts giving its longest."""
        waiting = [
            name if isinstance(inputs[key], str) else _link(inputs[key])  # a loader may hold its texts itself
            for name, inputs in reversed(self.nodes.items())
            for key in SIDES[self.side]
            if key in inputs
        ]
        found, seen = {}, set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            own = {
                key: text
                for key, value in self.nodes[name].items()
                if TEXTS[self.side].fullmatch(key) and (text := self.text(value)) is not None
            }
            if own:
                key = max(own, key=lambda k: len(own[k]))
                found[name, key] = own[key]
            waiting += [
                link
                for key, value in reversed(self.nodes[name].items())
                if key not in own and self.leads_on(key) and (link := _link(value)) is not None
            ]
        return found

    def leads_on(self, key):
        """Whether this side's conditioning may come through an input of that name."""
        return self.other not in key and not ELSEWHERE.intersection(re.split(r"[^a-z]+", key.lower()))

    def text(self, value, links=0):
        """The text of an input: its own, or what the linked nodes make of theirs; None without."""
        name = _link(value)
        if name is None:
            return _plain(value)
        if name in self.strings or name not in self.nodes or links > FARTHEST:
            return self.strings.get(name)
        self.strings[name] = None  # while it is being worked out: a cycle has no text
        inputs = self.nodes[name]
        parts = [self.text(v, links + 1) for key, v in inputs.items() if TEXTS[self.side].fullmatch(key)]
        if set(parts) <= {None}:  # a switch or the like
            parts = [
                self.text(v, links + 1)
                for key, v in inputs.items()
                if _link(v) is not None and self.leads_on(key)
            ]
            parts = [part for part in parts if part is not None][:1]
        delimiter = inputs["delimiter"] if isinstance(inputs.get("delimiter"), str) else ", "
        self.strings[name] = _plain(delimiter.join(dict.fromkeys(filter(None, parts)))) if parts else None
        return self.strings[name]
