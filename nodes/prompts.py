"""Prompts for Distilling: typed, of the user's own pictures, or bundled; each encoded as its own entry."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Failed, Message
from ..training.formats import prompts
from ..training.models.memory_errors import named
from . import show, zero
from .comfy import spoken

TYPED, MINE, BUNDLED = SOURCES = ("typed only", "my pictures, then the bundled list", "bundled list")
LISTED = 8  # of the pictures' sizes


class Prompts(io.ComfyNode):
    """FewstepPrompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepPrompts",
            display_name="Prompts for Distilling",
            category="Fewstep/training",
            description="Prompts to distil or fit with: your own, one per line; those that your own pictures "
            "were made with; and a bundled list. No data set is needed. Each prompt becomes one conditioning "
            "entry.",
            search_aliases=["prompt list", "data set", "train", "harvest", "metadata", "fewstep"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model, as for any prompt."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="one prompt a line, or none",
                    tooltip="Your prompts, one per line; between lines of --- they may be longer. They come "
                    "first.",
                ),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default=MINE,
                    tooltip="Where the rest come from, up to count. my pictures: the prompts saved in the "
                    "pictures in your output folder, most used first.",
                ),
                io.Int.Input(
                    "count",
                    default=32,
                    min=1,
                    max=1000,
                    tooltip="Prompts in all, at most. More take more memory.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The negative prompt. If left empty, it is the one that your pictures use most, "
                    "where they are the source.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    advanced=True,
                    extra_dict=zero.ALL,
                    tooltip="A folder inside the output folder to read pictures from; empty for the whole "
                    "output folder.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="One entry per prompt."),
                io.Conditioning.Output(display_name="negative"),
                io.String.Output(
                    display_name="prompts",
                    tooltip="All prompts with their source, in a form that can be pasted into text.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        text: str | None = "",
        source: str | None = MINE,
        count: int | None = 32,
        negative: str | None = "",
        folder: str | None = "",
        **others: Any,
    ) -> str:
        """Changes with the choice of prompts, not with each new picture, as a run on others starts again.

        Inputs that are wired are None here: then it changes with the names and times of all pictures.
        """
        if source in (TYPED, BUNDLED):
            return ""
        if None in (text, source, count, folder):
            found = prompts.pictures_in(folder_paths.get_output_directory())
        else:
            chosen, negative, _ = choice(text, source, count, negative or "", folder)
            found = [chosen, negative]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    @classmethod
    def execute(
        cls,
        clip: io.Clip.Type | None,
        text: str,
        source: str,
        count: int,
        negative: str = "",
        folder: str = "",
    ) -> io.NodeOutput:
        if clip is None:
            raise Failed(
                "clip must be a text encoder, got None. If it comes from a checkpoint loader, that "
                "checkpoint has none in it: load one with a CLIP loader.",
            )
        check = comfy.model_management.throw_exception_if_processing_interrupted
        chosen, negative, harvest = choice(text, source, count, negative, folder, check)
        bar = comfy.utils.ProgressBar(len(chosen) + 1, node_id=cls.hidden.unique_id)
        texts, entries = [prompt for prompt, _ in chosen], []
        same = {"text": prompts.as_text(texts), "source": TYPED, "count": len(texts), "negative": negative}
        for prompt in (negative, *texts):
            check()
            entries.append(spoken.remember(encode(clip, prompt), prompt, cls.hidden.unique_id, same))
            bar.update(1)
        line = heading(chosen, len(prompts.typed(text)) - sum(of == "typed" for _, of in chosen))
        show.say(cls.hidden.unique_id, line)
        told = listing(line, chosen, negative, harvest)
        return io.NodeOutput(entries[1:], entries[:1], told, ui={"text": (line,)})


def choice(
    text: str, source: str, count: int, negative: str, folder: str, check: Callable[[], Any] = lambda: None
) -> tuple[list[tuple[str, str]], str, prompts.Harvest | None]:
    """([(prompt, source)], negative prompt, the Harvest or None) for the node's inputs.

    Those of the pictures come in the order of the alphabet, which stays as pictures are added. check() is
    called between pictures: it may raise to stop. Raises ValueError where there is no prompt at all, or the
    folder is not one in the output folder.
    """
    harvest = None
    if source == MINE:
        harvest = prompts.harvest(output_folder(folder), check=check)
        negative = negative.strip() or next(iter(harvest.negatives), "")
    chosen = prompts.choose(
        count,
        typed=prompts.typed(text),
        harvested=harvest.prompts if harvest else (),
        bundled=() if source == TYPED else prompts.bundled(),
    )
    if not chosen:
        raise BadValue(
            'text must hold at least one prompt where source is "{typed}", got none. Type one a line, or '
            "choose another source.",
            typed=TYPED,
        )
    mine = iter(sorted(one for one in chosen if one[1] == prompts.MINE))
    return [next(mine) if one[1] == prompts.MINE else one for one in chosen], negative, harvest


def output_folder(folder: str) -> Path:
    """The path of a folder in ComfyUI's output folder; raises ValueError for one missing or outside."""
    root = Path(folder_paths.get_output_directory()).resolve()
    try:
        path = Path(root, folder).resolve()
    except (OSError, ValueError, RuntimeError):  # no path at all, or a circle of links
        path = None
    if path is None or not path.is_relative_to(root):
        raise BadValue(
            "folder must lie in ComfyUI's output folder, got {got!r}. Give its name as it is seen from "
            "there.",
            got=folder,
        )
    if folder and not path.is_dir():
        raise BadValue(
            "folder must be in ComfyUI's output folder, got {got!r}, which is not there. Leave it empty "
            "for all of {root}.",
            got=folder,
            root=os.fspath(root),
        )
    return path


def encode(clip: comfy.sd.CLIP, text: str) -> list:
    """A prompt's conditioning entry, as CLIP Text Encode makes it; raises ValueError if it makes several."""
    with named(Message("a prompt was encoded")):
        entries = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(entries) != 1:
        raise BadValue(
            "clip must make one conditioning entry of a prompt, this one makes {count}, as it has "
            "scheduled hooks. Wire the CLIP from before that node.",
            count=len(entries),
        )
    return entries[0]


def heading(chosen: list[tuple[str, str]], left: int = 0) -> Message:
    """How many prompts were chosen from which sources; left: typed ones that were not."""
    count = len(chosen)
    sources = [
        Message("{count} {source}", count=n, source=source)
        for source, n in Counter(source for _, source in chosen).items()
    ]
    if count == 1:
        line = Message("1 prompt: {sources}", sources=sources)
    else:
        line = Message("{count} prompts: {sources}", count=count, sources=sources)
    if left > 0:
        return Message(
            "{chosen}; {left} typed left out, count is {count}", chosen=line, left=left, count=count
        )
    return line


def listing(
    line: Message, chosen: list[tuple[str, str]], negative: str, harvest: prompts.Harvest | None
) -> str:
    """What was chosen, as a text that `text` could hold: all but the prompts are comments, `line` first."""
    lines = [f"# {line}", f"# negative: {_line(negative) or '(empty)'}"]
    if harvest:
        sizes = ", ".join(
            f"{width}x{height} ({n})" for (width, height), n in list(harvest.sizes.items())[:LISTED]
        )
        lines.append(
            f"# {harvest.pictures} pictures, {harvest.skipped} could not be read; sizes: {sizes or 'none'}"
        )
    for source in dict.fromkeys(source for _, source in chosen):
        lines += ["", f"# {source}"]
        lines += [prompts.escaped(_line(prompt)) for prompt, of in chosen if of == source]
    return "\n".join(lines)


def _line(text):
    return " ".join(text.split())


NODES = [Prompts]
