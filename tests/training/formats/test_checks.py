"""Checks of single values: what is out of bounds is refused by name, in the words of configs and recipes."""

import pytest
from fewstep.diffusion.faults import BadValue
from fewstep.training.formats import checks

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, 1, -2.5, 1e299, 10**299])
def test_finite_numbers_are_numbers(value):
    assert checks.is_number(value)


@pytest.mark.parametrize("value", [True, NAN, INF, -INF, 10**400, "1", None, [1]])
def test_what_is_no_finite_number(value):
    assert not checks.is_number(value)


@pytest.mark.parametrize(
    "check, good, bad, text",
    [
        (
            lambda v: checks.check_whole("steps", v, 1, 9),
            (1, 9),
            (0, 10, 2.0, True, "1", 10**400),
            "steps must be a whole number from 1 to 9, got {!r}.",
        ),
        (
            lambda v: checks.check_number("cfg", v, 1, 100),
            (1, 2.5, 100),
            (0.9, 101, NAN, INF, True, "2", 10**400),
            "cfg must be a finite number from 1 to 100, got {!r}.",
        ),
        (
            lambda v: checks.check_choice("metric", v, ("l1", "l2")),
            ("l1", "l2"),
            ("l3", None, [], {}),
            "metric must be one of l1, l2, got {!r}.",
        ),
        (
            lambda v: checks.check_flag("curriculum", v),
            (True, False),
            (1, 0, None, "true"),
            "curriculum must be true or false, got {!r}.",
        ),
        (
            lambda v: checks.check_texts("include", v, "*attn*"),
            (["a"], (), ("a", "b")),
            ("a", [1], None, {"a": 1}),
            'include must be a list of patterns such as "*attn*", got {!r}.',
        ),
    ],
    ids=["whole", "number", "choice", "flag", "texts"],
)
def test_each_check_takes_what_it_should_and_names_the_rest(check, good, bad, text):
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(BadValue) as caught:
            check(value)
        assert str(caught.value) == text.format(value)


def test_texts_come_back_as_a_tuple():
    assert checks.check_texts("include", ["a", "b"], "x") == ("a", "b")
