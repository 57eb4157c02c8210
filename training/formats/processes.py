"""Forward processes by name, as configs, recipes and nodes describe them.

For example [{"kind": "blur", "width": 3.0}, {"kind": "noise"}].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...diffusion.destruction.degradations import Blur, DrawnMask, Pixelate
from ...diffusion.destruction.forward import Chain, ForwardProcess, gaussian
from ...diffusion.faults import BadValue
from .checks import is_number


class Option(NamedTuple):
    """A number that a kind of process takes: a whole one where its default is whole."""

    default: float
    least: float
    most: float

    @property
    def whole(self) -> bool:
        return isinstance(self.default, int)


class Kind(NamedTuple):
    """How a process is made, and its options by name."""

    build: Callable[..., ForwardProcess]
    options: Mapping[str, Option]


def _noise(strength):
    """Noise of that strength on top."""
    return gaussian("EDM", sigma_max=strength)


def _gaussian():
    """All the way to noise alone."""
    return gaussian("flow")


KINDS = {
    "pixelate": Kind(Pixelate, {"largest": Option(8, 2, 256)}),
    "blur": Kind(Blur, {"width": Option(3.0, 0.1, 200.0)}),
    "mask": Kind(DrawnMask, {"fill": Option(0.0, -100.0, 100.0)}),
    "noise": Kind(_noise, {"strength": Option(0.1, 1e-3, 10.0)}),
    "gaussian": Kind(_gaussian, {}),
}


def process_of(parts: Sequence[Mapping[str, Any]]) -> ForwardProcess:
    """The process of a list of {"kind": ..., option: value}, one after another.

    Raises ValueError naming what is wrong with the list.
    """
    made = []
    for part in checked(parts):
        options = {name: value for name, value in part.items() if name != "kind"}
        made.append(KINDS[part["kind"]].build(**options))
    return made[0] if len(made) == 1 else Chain(*made)


def checked(parts: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The list with every option filled in; raises ValueError naming the part that can't be."""
    if not isinstance(parts, (list, tuple)) or not parts or not all(map(_is_part, parts)):
        raise BadValue(
            'process must be a list of parts such as {{"kind": "pixelate", "largest": 8}}, got {got!r}.',
            got=parts,
        )
    out = tuple(_filled(part) for part in parts)
    if len(out) > 1 and out[-1]["kind"] == "mask":
        raise BadValue(
            "process mask must be alone, got it after another: what is left of a pixel would be lost."
        )
    return out


def _is_part(part):
    return isinstance(part, dict) and not isinstance(part.get("kind"), (list, dict))


def _filled(part):
    """A part with all options of its kind."""
    kind = part.get("kind")
    if kind not in KINDS:
        raise BadValue("kind of a process must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)
    options = KINDS[kind].options
    odd = sorted(set(part) - {"kind", *options})
    if odd:
        raise BadValue(
            "process {kind} has the options {options}, got {odd}.",
            kind=kind,
            options=list(options) or ["none"],
            odd=odd,
        )
    values = {name: _option(kind, name, part.get(name, option.default)) for name, option in options.items()}
    return {"kind": kind, **values}


def _option(kind, name, value):
    """The value of an option, as an int where it must be whole."""
    option = KINDS[kind].options[name]
    told = {"name": name, "kind": kind, "least": option.least, "most": option.most, "got": value}
    within = is_number(value) and option.least <= value <= option.most
    if option.whole:
        if not within or int(value) != value:
            raise BadValue(
                "{name} of process {kind} must be a whole number from {least} to {most}, got {got!r}.", **told
            )
        return int(value)
    if not within:
        raise BadValue(
            "{name} of process {kind} must be a number from {least} to {most}, got {got!r}.", **told
        )
    return float(value)
