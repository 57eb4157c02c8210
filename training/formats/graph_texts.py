"""The prompts of a ComfyUI graph: the texts that its samplers' conditioning was made from.

A graph is in API format: {node id: {"class_type": ..., "inputs": {name: value, or a link [node id,
output]}}}. A node is known by the names of its inputs, never by its class. No graph is trusted: what is
misshapen is left out. A text that is produced while the graph runs, as by a language model, is not in the
graph, and what it is produced from is no prompt.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 8_000  # characters of a prompt
FARTHEST = 50  # links from a text encoder to its text
SIDES = {"positive": ("positive", "guider"), "negative": ("negative",)}  # the inputs that either starts from
TEXT = r"(populated_|user_)?(text|string|prompt|value|t5xxl|mt5xl|bert|llama|clip_[lgh])(_?[a-z0-9])?"
TEXTS = {side: re.compile(rf"{TEXT}|((text|prompt)_)?{side}(_(text|prompt))?") for side in SIDES}
# words in names of inputs that no prompt comes through
ELSEWHERE = set(
    "model clip vae image images pixels samples latent latents mask masks net control noise sampler sigmas "
    "style gligen audio video seed hooks lora".split()
)
# words in names of inputs of a node that makes its text itself, as language models do from a template
GENERATING = set(
    "llm vlm gpt ollama chat agent temperature tokens sampling thinking reasoning repetition".split()
)
ASKING = set("model system instruction instructions api url".split())  # too, but for nodes that encode
SEEING = set("image images video audio".split())  # too, where they are links
ENCODING = set("clip conditioning positive negative".split())
UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # what no text encoder takes
TAGS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # A1111's, which it does not encode

Sides = tuple[tuple[str, ...], tuple[str, ...]]  # positives, negatives


class _Unknown:
    """A text that is not in the graph."""


UNKNOWN = _Unknown()


def plain(text: Any) -> str | None:
    """A text as it is encoded; None where it can't be, or is too long."""
    fit = isinstance(text, str) and len(text) <= LONGEST and not UNFIT.search(text)
    return TAGS.sub("", text).strip() if fit else None


def of_graph(graph: Any) -> Sides:
    """(positives, negatives) of an API-format graph: texts upstream of its positive, negative, guider inputs.

    A text that is upstream of both, as where a negative is the positive zeroed out, is a positive alone. A
    side has none at all where one of its texts is not in the graph.
    """
    nodes = {}
    for name, node in graph.items() if isinstance(graph, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            nodes[name] = node["inputs"]
    positive, negative = (_Upstream(nodes, side).texts() for side in SIDES)
    negative = {place: text for place, text in negative.items() if place not in positive}
    positives, negatives = (
        () if UNKNOWN in texts.values() else tuple(dict.fromkeys(texts.values()))
        for texts in (positive, negative)
    )
    return tuple(filter(None, positives)), negatives


def _generates(inputs):
    """Whether a node with these inputs makes its text itself, be it of texts or of conditioning."""
    return bool(_words(inputs) & GENERATING)


def _is_produced(inputs):
    """Whether a node with these inputs, that is linked to for a text, makes it itself."""
    words = _words(inputs)
    sees = _words(key for key, value in inputs.items() if _link(value) is not None) & SEEING
    return _generates(inputs) or not words & ENCODING and bool(words & ASKING or sees)


def _words(keys):
    """The words in names of inputs."""
    return {word for key in keys for word in re.split(r"[^a-z]+", key.lower())}


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

    def texts(self) -> dict[tuple[str, str], str | _Unknown]:
        """{(node id, input): text}, an encoder with several texts giving its longest.

        It is `UNKNOWN` where one of them is not in the graph.
        """
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
            own = {
                key: self.text(value, key == self.side)
                for key, value in inputs.items()
                if self.holds_text(key)
            }
            own = {key: text for key, text in own.items() if text is not None}
            if _generates(inputs):
                own = dict.fromkeys(own, UNKNOWN)
            if own:
                key = max(own, key=lambda k: math.inf if own[k] is UNKNOWN else len(own[k]))
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
        return self.other not in key and not _words([key]) & ELSEWHERE

    def text(self, value: Any, encoded: bool, links: int = 0) -> str | _Unknown | None:
        """The text of an input: its own, or what the linked nodes make of theirs.

        None where there is none, and `UNKNOWN` where it is not in the graph. encoded: whether the input may
        be linked to conditioning instead of to a text.
        """
        name = _link(value)
        if name is None:
            return plain(value)
        if name in self.strings or name not in self.nodes or links > FARTHEST:
            return self.strings.get(name)
        self.strings[name] = None  # while it is being worked out: a cycle has no text
        self.strings[name] = self._made(self.nodes[name], encoded, links + 1)
        return self.strings[name]

    def _made(self, inputs, encoded, links):
        """The text that a node makes of its inputs."""
        told = {key: value for key, value in inputs.items() if self.holds_text(key)}
        told = {key: value for key, value in told.items() if key.startswith("populated_")} or told
        populated = any(key.startswith("populated_") for key in told)
        if not populated and (_generates(inputs) if encoded else _is_produced(inputs)):
            return UNKNOWN
        parts = {key: self.text(value, key == self.side, links) for key, value in told.items()}
        if set(parts.values()) <= {None}:  # a switch or the like
            linked = [v for key, v in inputs.items() if _link(v) is not None and self.leads_on(key)]
            found = [self.text(value, encoded, links) for value in linked]
            return UNKNOWN if UNKNOWN in found else next((text for text in found if text is not None), None)
        lost = [key for key, text in parts.items() if text is None and _link(told[key]) in self.nodes]
        if UNKNOWN in parts.values() or set(lost) - {self.side}:
            return UNKNOWN  # as a whole
        delimiter = inputs["delimiter"] if isinstance(inputs.get("delimiter"), str) else ", "
        return plain(delimiter.join(dict.fromkeys(filter(None, parts.values()))))
