"""Messages as values: a key and its fields, put into words only where a person reads them.

    raise BadValue("steps must be a whole number of 1 or more, got {got!r}.", got=steps)

The key is the English text with named fields in Python's format syntax (as in gettext). `str(fault)` is
English; another language is a table from keys to texts with the same fields, and whoever shows a message asks
for it in that language (`Message.worded`). No text is ever taken apart again to find out what was meant.

A field may be a number, a text or a shape (a tuple); a list, whose parts are told with commas between, each
in the field's format; another message or exception, which is put into words first. `Fault` is the one
exception type of this project. Its sub-kinds are Python's own kinds as well, so that callers who know nothing
of it can still tell a bad value from a full disk.
"""

import functools
import string
from collections.abc import Mapping
from typing import Any

PARSER = string.Formatter()


class Message:
    """A message key and its fields. Two messages are equal when both are."""

    def __init__(self, key: str, /, **fields: Any):
        self.key, self.fields = key, fields

    def __str__(self) -> str:
        return self.worded(ENGLISH)

    def __repr__(self) -> str:
        return f"Message({self.key!r}, {self.fields!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and (self.key, self.fields) == (other.key, other.fields)

    def __hash__(self) -> int:
        return hash(self.key)

    def worded(self, language: "Language") -> str:
        """The message in that language."""
        pieces = []
        for text, name, spec, conversion in PARSER.parse(language.text(self.key)):
            pieces.append(text)
            if name is not None:
                pieces.append(_value(self.fields[name], spec or "", conversion, language))
        return language.joined(pieces)

    def to_dict(self) -> dict:
        """As JSON can hold it: a value that JSON has no word for is kept as the text it has here."""
        formats = {name: (spec, conversion) for _, name, spec, conversion in PARSER.parse(self.key) if name}
        fields = {name: _plain(value, *formats.get(name, ("", None))) for name, value in self.fields.items()}
        return {"key": self.key, "fields": fields}

    @classmethod
    def from_dict(cls, value: Any) -> "Message":
        """The inverse of `to_dict`. Anything else is told as the text that it is."""
        try:
            message = cls(value["key"], **{name: _restored(part) for name, part in value["fields"].items()})
            str(message)
        except (LookupError, TypeError, ValueError, AttributeError):
            return literal(str(value))
        return message


class Language:
    """How messages are put into words. This one is English: keys are their own texts."""

    comma = ", "

    def text(self, key: str) -> str:
        """The text of a message key, with the same fields."""
        return key

    def name(self, value: str) -> str:
        """What a text in a field is called: the name of an input, a word with a translation of its own."""
        return value

    def joined(self, pieces: list[str]) -> str:
        """Texts and values, one after another; a sentence in brackets loses its full stop."""
        return functools.reduce(_in_brackets, pieces, "")


def _in_brackets(before, after):
    return before[:-1] + after if before.endswith(".") and after.startswith(").") else before + after


ENGLISH = Language()


def literal(text: str) -> Message:
    """A text that has no fields and no translation, such as another program's error, as a message."""
    return Message("{text}", text=text)


def lines(*messages: Message) -> Message:
    """Messages one below the other."""
    return functools.reduce(
        lambda above, below: Message("{above}\n{below}", above=above, below=below), messages
    )


def message_of(error: BaseException) -> Message:
    """What an exception says, ours or not."""
    return error.message if isinstance(error, Fault) else literal(str(error) or type(error).__name__)


class _Written:
    """A value in words already: no format changes it."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __format__(self, spec: str) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _value(value: Any, spec: str, conversion: str | None, language: Language) -> str:
    if isinstance(value, Message):
        return value.worded(language)
    if isinstance(value, BaseException):
        return message_of(value).worded(language)
    if _is_shape(value) and not conversion:
        return " × ".join(map(str, value)) or "()"
    if isinstance(value, (list, tuple)) and not conversion:
        return language.comma.join(_value(part, spec, None, language) for part in value)
    if isinstance(value, str) and not spec and not conversion:
        return language.name(value)
    return format(PARSER.convert_field(value, conversion), spec)


def _plain(value: Any, spec: str = "", conversion: str | None = None) -> Any:
    if isinstance(value, BaseException):
        value = message_of(value)
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(part, spec, conversion) for part in value]
    if value is None or isinstance(value, (str, int, bool)) or _is_finite(value):
        return value
    return {"written": _value(value, spec, conversion, ENGLISH)}


def _is_shape(value: Any) -> bool:
    """Whether it is a tensor's shape: whole numbers in a tuple (lists are read out one by one)."""
    return isinstance(value, tuple) and all(
        isinstance(part, int) and not isinstance(part, bool) for part in value
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and abs(value) < float("inf")


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(part) for part in value]
    if isinstance(value, Mapping):
        return _Written(value["written"]) if value.keys() == {"written"} else Message.from_dict(value)
    return value


class Fault(Exception):
    """What went wrong, with what was wanted, what was found and the remedy in its message."""

    def __init__(self, key: str | Message, /, **fields: Any):
        self.message = key if isinstance(key, Message) else Message(key, **fields)
        super().__init__(str(self.message))

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple:
        """Copied and pickled by the message, of which `args` holds only the text."""
        return type(self), (self.message,)

    @property
    def key(self) -> str:
        """The message's key."""
        return self.message.key

    @property
    def fields(self) -> dict:
        """The message's fields."""
        return self.message.fields


class BadValue(Fault, ValueError):
    """An input, setting or file content that can't be used."""


class BadFile(Fault, OSError):
    """A file or folder that can't be read or written."""


class NoMemory(Fault, MemoryError):
    """What would have to fit into memory, and does not."""


class NotFinite(Fault, ArithmeticError):
    """Numbers that overflowed."""


class NotFound(Fault, LookupError):
    """What was asked for by name, and is not there."""


class NotInstalled(Fault, ImportError):
    """A package that is needed for what was asked."""


class Failed(Fault, RuntimeError):
    """What can't go on now, through no fault of an input."""
