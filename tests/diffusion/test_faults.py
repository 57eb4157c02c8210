"""Messages as values: put into words in any language, kept as JSON, raised as Python's own kinds."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
from fewstep.diffusion import faults
from fewstep.diffusion.faults import ENGLISH, BadValue, Fault, Language, Message, literal, message_of


class Shouting(Language):
    """A language that can be told from English: other texts, another comma, names in brackets, capitals."""

    comma = " & "

    def text(self, key):
        return {"{a} of {b:.1f}": "{b:.1f}: {a}", "inner {x}": "INNER {x}"}.get(key, key)

    def name(self, value):
        return f"[{value}]"

    def joined(self, pieces):
        return "".join(pieces).replace("of", "OF")


CASES = {
    "no fields": (Message("steps must be 1 or more."), "steps must be 1 or more."),
    "formats": (Message("{a} of {b:.2f}, {c!r}", a=3, b=math.pi, c="x"), "3 of 3.14, 'x'"),
    "a shape": (Message("got {shape}", shape=(1, 4, 8)), "got 1 × 4 × 8"),
    "a shape in a format": (Message("got {shape!r}", shape=(1,)), "got (1,)"),
    "a list": (Message("one of {names}", names=["a", "b", 3]), "one of a, b, 3"),
    "an empty list": (Message("one of {names}.", names=[]), "one of ."),
    "a list in a format": (Message("{row:.3g}", row=[1.0, math.pi, math.inf]), "1, 3.14, inf"),
    "a list as Python has it": (Message("{row!r}", row=[1.5, "x", (2, None)]), "[1.5, 'x', (2, None)]"),
    "a list of messages": (Message("{all}", all=[Message("{n} a", n=1), Message("{n} b", n=2)]), "1 a, 2 b"),
    "a message": (Message("{file}: {what}", file="f", what=Message("got {x:g}", x=2.0)), "f: got 2"),
    "an exception of ours": (Message("can't: {error}", error=BadValue("got {x}", x=7)), "can't: got 7"),
    "another exception": (Message("can't: {error}", error=OSError(2, "gone")), "can't: [Errno 2] gone"),
    "an exception without words": (Message("{error}", error=ValueError()), "ValueError"),
    "braces": (Message('write {{"a": {x}}}', x=1), 'write {"a": 1}'),
    "braces in a value": (Message("got {x}", x="{y} {"), "got {y} {"),
    "braces in another's text": (literal("{x} }{"), "{x} }{"),
    "no number": (Message("its norm is {x:.2f}", x=math.nan), "its norm is nan"),
    "infinity": (Message("{x:g} and {y}", x=math.inf, y=-math.inf), "inf and -inf"),
    "a path": (Message("{path} is not", path=Path("a") / "b"), f"{Path('a') / 'b'} is not"),
    "nothing": (Message("got {x} and {y!r}", x=None, y=None), "got None and None"),
    "a flag": (Message("got {x}", x=True), "got True"),
    "a dict": (Message("got {x!r}", x={"a": 1}), "got {'a': 1}"),
    "the same field twice": (Message("{x}x{x}", x=4), "4x4"),
}


@pytest.mark.parametrize("message, text", CASES.values(), ids=CASES)
def test_a_message_is_told_in_english(message, text):
    assert str(message) == message.worded(ENGLISH) == text


@pytest.mark.parametrize("message, text", CASES.values(), ids=CASES)
def test_a_message_comes_back_from_json(message, text):
    """In any language it says the same; all that JSON can hold it is the same message."""
    written = json.dumps(message.to_dict(), allow_nan=False)
    found = Message.from_dict(json.loads(written))
    assert str(found) == text and found.to_dict() == message.to_dict()
    assert Message.from_dict(found.to_dict()) == found
    assert found.worded(Shouting()).count(" & ") == message.worded(Shouting()).count(" & ")


def test_what_json_can_hold_comes_back_as_it_was():
    fields = {"a": 1, "b": 1.5, "c": "x", "d": None, "e": True, "f": [1, "y"], "g": Message("{x}", x=2)}
    message = Message("{a} {b:g} {c} {d} {e} {f} {g}", **fields)
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


@pytest.mark.parametrize(
    "value, text",
    [
        ("an old run's text, {as} it is {", "an old run's text, {as} it is {"),
        ({"key": "{a} and {b}", "fields": {"a": 1}}, "{'key': '{a} and {b}', 'fields': {'a': 1}}"),
        ({"key": "{a:g}", "fields": {"a": "x"}}, "{'key': '{a:g}', 'fields': {'a': 'x'}}"),
        ({"key": "{", "fields": {}}, "{'key': '{', 'fields': {}}"),
        ({"key": 5, "fields": []}, "{'key': 5, 'fields': []}"),
        ({"key": "{a} {x}", "fields": {"a": 1, "x": {"y": 2}}}, "1 {'y': 2}"),
        (None, "None"),
        ([], "[]"),
    ],
)
def test_what_is_no_message_is_told_as_it_is(value, text):
    assert str(Message.from_dict(value)) == text


def test_another_language_has_its_own_texts_names_and_commas():
    said = Message("{a} of {b:.1f}", a="steps", b=2.0).worded(Shouting())
    assert said == "2.0: [steps]"
    nested = Message("one of {names}, {why}", names=["a", "b"], why=Message("inner {x}", x="y"))
    assert nested.worded(Shouting()) == "one OF [a] & [b], INNER [y]"
    # values in a format are no names
    assert Message("got {x!r}, {y}", x="steps", y=3).worded(Shouting()) == "got 'steps', 3"


def test_messages_are_equal_by_key_and_fields():
    assert Message("{a}", a=1) == Message("{a}", a=1) and len({Message("{a}", a=1), Message("{a}", a=1)}) == 1
    assert Message("{a}", a=1) != Message("{a}", a=2) and Message("a") != "a"
    assert repr(Message("{a}", a=1)) == "Message('{a}', {'a': 1})"


KINDS = {
    "BadValue": ValueError,
    "BadFile": OSError,
    "NoMemory": MemoryError,
    "NotFinite": ArithmeticError,
    "NotFound": LookupError,
    "NotInstalled": ImportError,
    "Failed": RuntimeError,
}


def test_every_kind_is_listed():
    assert {kind.__name__ for kind in Fault.__subclasses__() if kind.__module__ == faults.__name__} == set(
        KINDS
    )


@pytest.mark.parametrize("name, python", KINDS.items())
def test_a_fault_is_pythons_kind_too(name, python):
    kind = getattr(faults, name)
    with pytest.raises(python, match="^steps must be 1, got 'x'. {n}$") as caught:
        raise kind("steps must be 1, got {got!r}. {{n}}", got="x")
    error = caught.value
    assert isinstance(error, Fault) and type(error) is kind and error.args == (str(error),)
    assert error.key == "steps must be 1, got {got!r}. {{n}}" and error.fields == {"got": "x"}
    assert message_of(error) is error.message
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is kind and other.message == error.message and str(other) == str(error)


def test_a_fault_takes_a_message_that_was_made_before():
    message = Message("{folder} is full", folder="runs")
    error = faults.BadFile(message)
    assert error.message is message and str(error) == "runs is full"


def test_a_field_may_be_called_as_an_argument_of_pythons_exceptions():
    assert str(faults.NotInstalled("{name} in {path}, {key}", name="a", path="b", key="c")) == "a in b, c"


def test_a_text_put_in_later_leaves_the_message_as_it_is():
    error = BadValue("got {x}", x=1)
    error.args = ("当前为 1",)
    assert str(error) == "当前为 1" and str(error.message) == "got 1"
    assert str(BadValue("a: {error}", error=error)) == "a: got 1"
