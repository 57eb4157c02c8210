"""What nodes say, in the language of the user's ComfyUI. Messages are written in English, and translated on
their way out.

locales/<language>/errors.json has them as templates: {"steps must be 1 or more, got {}.": "“步数”必须至少为 1，当前为
{0}。"}.
"""

import functools
import inspect
import json
import re
from pathlib import Path

import folder_paths

LOCALES = Path(__file__).parent.parent.parent / "locales"
BETWEEN = re.compile(", | and ")
WIDE = re.compile("[\u3000-\u9fff\uff00-\uffef“”]")
SPACED = re.compile(
    "[\u4e00-\u9fff][^\u3000-\u9fff\uff00-\uffef“”]|[^\u3000-\u9fff\uff00-\uffef“”][\u4e00-\u9fff]"
)
HEARD = {}  # the language that the frontend shows, where its user has chosen none in the settings


def language():
    """The user's language, one that there are words for: of ComfyUI's settings, else of the frontend, else
    English.
    """
    try:
        file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        chosen = json.loads(file.read_text(encoding="utf-8")).get("Comfy.Locale")
    except (OSError, ValueError, AttributeError):
        chosen = None
    return _known(chosen) or HEARD.get("language", "en")


def hear(name):
    """Take down what the frontend shows; returns the language that is spoken for it."""
    HEARD["language"] = _known(name) or "en"
    return HEARD["language"]


def _known(name):
    """The folder of locales/ for "zh" or "zh-TW", None without one."""
    there = {path.name for path in LOCALES.iterdir()}
    return (
        next((n for n in (name, name.split("-")[0]) if n in there), None) if isinstance(name, str) else None
    )


def of_run(run):
    """A run's summary with its error in the user's language; None for None."""
    return {**run, "error": told(run["error"])} if run and run["error"] else run


def told(message, node=""):
    """The message in the user's language; node: the id of the one whose inputs it names."""
    return translated(message, language(), node)


def translated(message, language, node=""):
    """The message in that language where a template fits it as a whole, its values and the messages inside it
    too.
    """
    templates, words, names = _table(language)
    if not templates or not message:
        return message
    return _translated(message, templates, names[""] | words | names.get(node, {}))


def _translated(message, templates, names):
    if message in names:
        return names[message]
    if all(part in names for part in BETWEEN.split(message)):
        return "、".join(names[part] for part in BETWEEN.split(message))
    for pattern, text in templates:
        if found := pattern.fullmatch(message):
            pieces = re.split(r"\{(\d+)\}", text)
            pieces[1::2] = [_translated(found[int(place) + 1], templates, names) for place in pieces[1::2]]
            return functools.reduce(_join, pieces)
    head, colon, rest = message.partition(": ")
    words = _translated(rest, templates, names) if colon else rest
    return f"{_translated(head, templates, names)}：{words}" if words != rest else message


def _pattern(parts):
    """Values between these parts of a text, each as short as can be. No way back once one is found: the time
    stays that of reading the text, however long it is.
    """
    first, *inner, last = map(re.escape, parts)
    return re.compile(first + "".join(f"(?>(.*?){part})" for part in inner) + "(.*)" + last, re.DOTALL)


def _join(before, after):
    """Two pieces of a text, spaced as Chinese is: between its characters and others, not between themselves
    or at its marks.
    """
    left, right = before.rstrip(" "), after.lstrip(" ")
    ends = left[-1:] + right[:1]
    if ends == "。。":
        return left + right[1:]
    if not WIDE.search(ends):
        return before + after
    return left + " " * bool(SPACED.fullmatch(ends)) + right


@functools.cache
def _table(language):
    """(patterns with their texts, the most literal first; phrases without values; {node or "": {input: its
    name there}}).
    """
    folder = LOCALES / language
    files = [folder / f"{name}.json" for name in ("errors", "nodeDefs")]
    errors, nodes = (json.loads(f.read_text(encoding="utf-8")) if f.exists() else {} for f in files)
    ordered = sorted(errors, key=lambda text: -len(text.replace("{}", "")))
    templates = [(_pattern(text.split("{}")), errors[text]) for text in ordered if "{}" in text]
    names = {
        node: {key: f"“{part['name']}”" for key, part in texts["inputs"].items()}
        for node, texts in nodes.items()
    }
    everywhere = {key: name for found in names.values() for key, name in found.items()}
    return (
        templates,
        {text: words for text, words in errors.items() if "{}" not in text},
        {"": everywhere, **names},
    )


def speaking(node):
    """The node class, its messages in the user's language: those of exceptions, of refused inputs, and lines
    of text.
    """
    name = node.define_schema().node_id
    for method in ("execute", "validate_inputs"):
        if method in vars(node):
            setattr(node, method, classmethod(in_words(vars(node)[method].__func__, name)))
    return node


def in_words(function, node=""):
    """The function with what it says in the user's language.

    An exception stays the same object, of its type and with its traceback: only the text of a message of ours
    is replaced.
    """

    @functools.wraps(function)
    def worded(*args, **kwargs):
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            if (
                len(error.args) == 1 and isinstance(error.args[0], str) and " " in error.args[0]
            ):  # no mere key
                error.args = (told(error.args[0], node),)
            raise
        if isinstance(result, str):
            return told(result, node)
        shown = getattr(result, "ui", None)
        if isinstance(shown, dict) and "text" in shown:
            shown["text"] = tuple(told(line, node) for line in shown["text"])
        return result

    worded.__signature__ = inspect.signature(function)  # the host asks which inputs it takes
    return worded
