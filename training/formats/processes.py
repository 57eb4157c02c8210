"""Forward processes by name, as configs, recipes and nodes describe them: [{"kind": "blur", "width": 3.0},
{"kind": "noise"}].
"""

from ...diffusion.destruction.degradations import Blur, DrawnMask, Pixelate
from ...diffusion.destruction.forward import Chain, gaussian
from ...diffusion.faults import BadValue

# kind: (constructor, {option: (default, least, most)}); "noise" adds noise of that strength, "gaussian" ends
# in noise alone
KINDS = {
    "pixelate": (Pixelate, {"largest": (8, 2, 256)}),
    "blur": (Blur, {"width": (3.0, 0.1, 200.0)}),
    "mask": (DrawnMask, {"fill": (0.0, -100.0, 100.0)}),
    "noise": (lambda strength: gaussian("EDM", sigma_max=strength), {"strength": (0.1, 1e-3, 10.0)}),
    "gaussian": (lambda: gaussian("flow"), {}),
}


def process_of(parts):
    """The `forward.ForwardProcess` of a list of {"kind": ..., option: value}, one after another.

    Raises ValueError naming what is wrong with the list.
    """
    made = []
    for part in checked(parts):
        build, options = KINDS[part["kind"]]
        made.append(build(**{name: part[name] for name in options}))
    return made[0] if len(made) == 1 else Chain(*made)


def checked(parts):
    """The list with every option filled in, a tuple of dicts; raises ValueError naming the part that can't
    be.
    """
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, dict) for part in parts):
        raise BadValue(
            'process must be a list of parts such as {{"kind": "pixelate", "largest": 8}}, got {got!r}.',
            got=parts,
        )
    out = []
    for part in parts:
        kind = part.get("kind")
        if kind not in KINDS:
            raise BadValue(
                "kind of a process must be one of {kinds}, got {got!r}.",
                kinds=list(KINDS),
                got=kind,
            )
        options = KINDS[kind][1]
        odd = sorted(set(part) - {"kind", *options})
        if odd:
            raise ValueError(
                f"process {kind} has the options {', '.join(options) or 'none'}, got {', '.join(odd)}."
            )
        whole = {"kind": kind, **{name: part.get(name, default) for name, (default, _, _) in options.items()}}
        for name, (default, low, high) in options.items():
            value, sort = whole[name], type(default)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not low <= value <= high
                or sort(value) != value
            ):
                raise ValueError(
                    f"{name} of process {kind} must be a {'whole ' * (sort is int)}number from {low} to {high}, got "
                    f"{value!r}."
                )
            whole[name] = sort(value)
        out.append(whole)
    if len(out) > 1 and out[-1]["kind"] == "mask":
        raise BadValue(
            "process mask must be alone, got it after another: what is left of a pixel would be lost.",
        )
    return tuple(out)
