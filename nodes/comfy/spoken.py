"""What a conditioning entry was made from: the text, known by the entry's tensor as long as that is there.

The entry itself stays what a text encoder makes of it. Nodes that join entries or add to them hand the tensor
on, so the text is found behind them too.
"""

from typing import Any, NamedTuple

from torch.utils.weak import WeakIdKeyDictionary

_origins = WeakIdKeyDictionary()


class _Origin(NamedTuple):
    text: str
    node: str | None
    inputs: dict[str, Any] | None


def remember(entry: list, text: str, node: str | None = None, inputs: dict[str, Any] | None = None) -> list:
    """The entry, whose text is known from now on; node: that which chose it, and the inputs by which it would
    choose the same again.
    """
    _origins[entry[0]] = _Origin(text, node, inputs)
    return entry


def texts_of(conditioning: list) -> list[str]:
    """The text of each entry; [] where one is not known."""
    found = [_origins.get(entry[0]) for entry in conditioning]
    return [] if None in found else [origin.text for origin in found]


def made_by(node: str, conditioning: list) -> dict[str, Any] | None:
    """The inputs by which that node would give again what it gave to some conditioning; None if not known."""
    found = (_origins.get(entry[0]) for entry in conditioning)
    return next((origin.inputs for origin in found if origin and origin.node == node), None)
