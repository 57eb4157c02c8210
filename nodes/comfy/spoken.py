"""What a conditioning entry was made from: the text, known by the entry's tensor as long as that is there.

The entry itself stays what a text encoder makes of it. Nodes that join entries or add to them hand the tensor
on, so the text is found behind them too.
"""

from torch.utils.weak import WeakIdKeyDictionary

_texts = WeakIdKeyDictionary()


def remember(entry: list, text: str) -> list:
    """The entry, whose text is known from now on."""
    _texts[entry[0]] = text
    return entry


def texts_of(conditioning: list) -> list[str]:
    """The text of each entry; [] where one is not known."""
    found = [_texts.get(entry[0]) for entry in conditioning]
    return [] if None in found else found
