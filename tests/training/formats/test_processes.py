"""Processes by name: every option has bounds, and what is wrong is refused by name."""

import pytest
from fewstep.diffusion.faults import BadValue
from fewstep.training.formats.processes import KINDS, checked, process_of

OPTIONS = [(kind, name) for kind, (_, options) in KINDS.items() for name in options]


@pytest.mark.parametrize("kind, name", OPTIONS)
def test_options_have_bounds_and_keep_their_sort(kind, name):
    option = KINDS[kind].options[name]
    for value in (option.least, option.most, option.default):
        (part,) = checked([{"kind": kind, name: value}])
        assert part == {"kind": kind, name: value} and type(part[name]) is type(option.default)
    number = "whole number" if option.whole else "number"
    told = f"{name} of process {kind} must be a {number} from {option.least} to {option.most}, got"
    below, above = option.least - 1, option.most + 1
    for value in (below, above, True, None, "3", float("nan"), float("inf"), 10**400):
        with pytest.raises(BadValue) as caught:
            checked([{"kind": kind, name: value}])
        assert str(caught.value) == f"{told} {value!r}."


def test_a_whole_number_may_be_written_as_a_float():
    assert checked([{"kind": "pixelate", "largest": 8.0}]) == ({"kind": "pixelate", "largest": 8},)
    assert type(checked([{"kind": "blur", "width": 3}])[0]["width"]) is float


@pytest.mark.parametrize(
    "parts, text",
    [
        ([{"kind": "gaussian", "b": 1, "a": 2}], "process gaussian has the options none, got a, b."),
        ([{}], "kind of a process must be one of pixelate, blur, mask, noise, gaussian, got None."),
        (
            [{"kind": []}],
            'process must be a list of parts such as {"kind": "pixelate", "largest": 8}, '
            "got [{'kind': []}].",
        ),
    ],
)
def test_what_is_refused_says_what_there_is(parts, text):
    with pytest.raises(BadValue) as caught:
        process_of(parts)
    assert str(caught.value) == text
