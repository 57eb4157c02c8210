"""Checks of single settings and fields. Each raises BadValue with the name, what it must be and what it was.

True and False are not numbers here.
"""

from collections.abc import Sequence
from typing import Any

from ...diffusion.faults import BadValue

LARGEST = 1e300  # a whole number beyond it has no float


def is_number(value: Any) -> bool:
    """Whether this is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def is_whole(value: Any) -> bool:
    """Whether this is an int."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_texts(value: Any) -> bool:
    """Whether this is a list or tuple of texts."""
    return isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """A whole number from `least` to `most`."""
    if not is_whole(value) or not least <= value <= most:
        raise BadValue(
            "{name} must be a whole number from {least} to {most}, got {got!r}.",
            name=name,
            least=least,
            most=most,
            got=value,
        )


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """A finite number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:
        raise BadValue(
            "{name} must be a finite number from {low} to {high}, got {got!r}.",
            name=name,
            low=low,
            high=high,
            got=value,
        )


def check_choice(name: str, value: Any, choices: Sequence) -> None:
    """One of `choices`."""
    if value not in choices:
        raise BadValue(
            "{name} must be one of {choices}, got {got!r}.", name=name, choices=list(choices), got=value
        )


def check_flag(name: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise BadValue("{name} must be true or false, got {got!r}.", name=name, got=value)


def check_texts(name: str, value: Any, example: str) -> tuple[str, ...]:
    """A list of patterns such as `example`; returns it as a tuple."""
    if not is_texts(value):
        raise BadValue(
            '{name} must be a list of patterns such as "{example}", got {got!r}.',
            name=name,
            example=example,
            got=value,
        )
    return tuple(value)
