"""Messages in the language of the user's ComfyUI: what nodes and routes say, put into words at the edge.

Messages are values (`diffusion.faults`): a key, which is the English text, and fields. The file
locales/<language>/errors.json has each key's text in that language with the same fields, such as
{"shift must be above 0, got {got}.": "“偏移”必须大于 0，当前为 {got}。"}, and words that a field may
hold. Inputs of nodes are called what the nodes show, which nodeDefs.json says.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import folder_paths

from ...diffusion.faults import ENGLISH, Fault, Language, Message
from ...training.reports.lettering import lettered

LOCALES = Path(__file__).parent.parent.parent / "locales"
WIDE = re.compile("[\u3000-\u9fff\uff00-\uffef“”]")
SPACED = re.compile(
    "[\u4e00-\u9fff][^\u3000-\u9fff\uff00-\uffef“”]|[^\u3000-\u9fff\uff00-\uffef“”][\u4e00-\u9fff]"
)
HEARD = {}  # the language that the frontend shows, where its user has chosen none in the settings


# ---- which language ------------------------------------------------------------------------------


def language() -> str:
    """The user's language: of ComfyUI's settings, else of the frontend, else English.

    Always one that there are words for.
    """
    try:
        file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        chosen = json.loads(file.read_text(encoding="utf-8")).get("Comfy.Locale")
    except (OSError, ValueError, AttributeError):
        chosen = None
    return _known(chosen) or HEARD.get("language", "en")


def hear(name: str) -> str:
    """Take down what the frontend shows; returns the language that is spoken for it."""
    HEARD["language"] = _known(name) or "en"
    return HEARD["language"]


def _known(name):
    """The folder of locales/ for "zh" or "zh-TW", None without one."""
    if not isinstance(name, str):
        return None
    there = {path.name for path in LOCALES.iterdir()}
    return next((n for n in (name, name.split("-")[0]) if n in there), None)


# ---- its words -----------------------------------------------------------------------------------


class Translation(Language):
    """A language that has a table of texts: {message key: text with the same fields, word: word}.

    names: {what a field may hold: what it is called}. A key or a value that is not in them stays English.
    """

    def __init__(self, texts: Mapping[str, str], names: Mapping[str, str]):
        self.texts, self.names = texts, names
        self.comma = texts.get(Language.comma, Language.comma)

    def text(self, key: str) -> str:
        """The text of a message key, with the same fields."""
        return self.texts.get(key, key)

    def name(self, value: str) -> str:
        """The name of an input as the node shows it, in quotes; the translation of a word."""
        return self.names.get(value, value)

    def joined(self, pieces: list[str]) -> str:
        """Texts and values, spaced as Chinese is where they are Chinese."""
        return functools.reduce(_join, pieces, "")


def _join(before, after):
    """Two pieces of a text: a space between Chinese characters and others, none between Chinese ones or at
    Chinese marks; one full stop where a message that ends with one is a field at the end of another.
    """
    left, right = before.rstrip(" "), after.lstrip(" ")
    ends = left[-1:] + right[:1]
    if ends == "。。":
        return left + right[1:]
    if not WIDE.search(ends):
        return before + after
    return left + (" " if SPACED.fullmatch(ends) else "") + right


def spoken(node: str = "") -> Language:
    """The user's language; node: the id of the one whose inputs are named."""
    return in_language(language(), node)


@functools.cache
def in_language(name: str, node: str = "") -> Language:
    """The language of that folder of locales/, English where it has no texts.

    A word is called what the node calls its input of that name, else what the table says, else what any other
    node calls an input of that name.
    """
    texts, nodes = (_read(LOCALES / name / f"{file}.json") for file in ("errors", "nodeDefs"))
    if not texts:
        return ENGLISH
    shown = {
        other: {key: f"“{part['name']}”" for key, part in of["inputs"].items()} for other, of in nodes.items()
    }
    anywhere = {key: called for inputs in shown.values() for key, called in inputs.items()}
    return Translation(texts, anywhere | texts | shown.get(node, {}))


def _read(file):
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


# ---- at the edge ---------------------------------------------------------------------------------


def told(message: Message | Fault | str, node: str = "") -> str:
    """The message in the user's language, plain text as it is; node: id of the one whose inputs it names."""
    if isinstance(message, Fault):
        message = message.message
    return message.worded(spoken(node)) if isinstance(message, Message) else message


def of_run(run: dict | None) -> dict | None:
    """A run's summary with its messages in the user's language; None for None.

    They are messages as JSON holds them; the error of older runs is a text.
    """
    if run is None:
        return None
    said = {
        name: told(Message.from_dict(run[name])) for name in ("error", "weights", "plan") if run.get(name)
    }
    log = [{**entry, "message": told(Message.from_dict(entry["message"]))} for entry in run.get("log", ())]
    return {**run, **said, **({"log": log} if log else {})}


def speaking(node: type) -> type:
    """The node class, speaking the user's language: in exceptions, refused inputs and lines of text."""
    name = node.define_schema().node_id
    for method in ("execute", "validate_inputs"):
        if method in vars(node):
            setattr(node, method, classmethod(in_words(vars(node)[method].__func__, name)))
    return node


def in_words(function: Callable, node: str = "") -> Callable:
    """The function with what it says, and writes on pictures, in the user's language.

    An exception stays the same object, of its type and with its traceback; only the text of one of ours is
    put into words. Exceptions that are not ours pass as they are.
    """

    @functools.wraps(function)
    def worded(*args, **kwargs):
        try:
            with lettered(language(), spoken(node)):
                result = function(*args, **kwargs)
        except Exception as error:
            _word(error, node)
            raise
        if isinstance(result, (Message, Fault)):
            return told(result, node)
        shown = getattr(result, "ui", None)
        if isinstance(shown, dict) and "text" in shown:
            shown["text"] = tuple(told(line, node) for line in shown["text"])
        return result

    worded.__signature__ = inspect.signature(function)  # the host asks which inputs it takes
    return worded


def _word(error, node):
    """Put what an exception of ours says into words, also where another, raised because of it, quotes it."""
    cause = error.__cause__
    if isinstance(error, Fault):
        error.args = (told(error, node),)
    elif isinstance(cause, Fault):
        text = told(cause, node)
        error.args = tuple(
            part.replace(str(cause.message), text) if isinstance(part, str) else part for part in error.args
        )
        cause.args = (text,)
