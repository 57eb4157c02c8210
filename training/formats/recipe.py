"""The recipe: what a sampler must know to run a few-step model as it was made. A small JSON document.

It lies alone in a file or in a LoRA's safetensors metadata under METADATA_KEY.
"""

import dataclasses
import json
import math
from typing import Any

from ...diffusion.faults import BadValue, Message
from ...diffusion.frozen import normalise
from ...diffusion.paths import check_sigmas, path
from ...diffusion.solvers.linear import LinearSolver
from ...diffusion.step import check_churn
from .checks import is_number, is_whole
from .version import VERSION as MADE_BY

METADATA_KEY = "fewstep.recipe"
READABLE = (1, 2, 3, 4)  # version 1 had no coefficients, shift and errors
# {version: what it brought, which is not written where it is this, so that older ones can read the rest}
PARTS = {"from_percent": 0.0, "to_percent": 1.0}
BROUGHT = {3: PARTS, 4: {"asks": (), "fresh": ()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to sample: on `path`, along `sigmas`, with churn and guidance `cfg`.

    method        what made it: "consistency", "fitted", "classical", ...
    sigmas        step grid, descending; its last entry is 0, or above where to_percent is below 1
    coefficients  rows of a solver of its own (`solvers.linear`), () for the kernel's solver of `order`
    asks, fresh   of that solver: which predictions each step asks for, and how much fresh noise it adds
    shift         of the model's times that the grid was made with; sigmas have it in them already
    base          fingerprint of the base model
    from_percent, to_percent   the part of the way that it is for, of the model's own time from noise (0) to
                  picture (1), in the host's convention (percent_to_sigma); others sample the rest
    errors        RMSE to the converged picture on held-out noise in units of the pictures' deviation, by name
    trained       figures of the run that made it (steps, samples, teacher's cfg, ...), for people to read
    made_by       the version of Fewstep that made it; "" in files from before it was written down
    Raises ValueError naming the field that is wrong.
    """

    method: str
    path: str
    sigmas: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...] = ()
    asks: tuple[str, ...] = ()
    fresh: tuple[float, ...] = ()
    churn: float = 0.0
    cfg: float = 1.0
    shift: float = 1.0
    order: int = 1
    from_percent: float = 0.0
    to_percent: float = 1.0
    base: str = ""
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    trained: dict[str, Any] = dataclasses.field(default_factory=dict)
    made_by: str = dataclasses.field(default=MADE_BY, compare=False)  # the same recipe, whoever wrote it

    def __post_init__(self):
        for name in ("method", "path", "base", "made_by"):
            _check_text(name, getattr(self, name))
        for name in ("errors", "trained"):
            _check_object(name, getattr(self, name))
        _check_finite("trained", self.trained)
        for name in PARTS:
            _check_number(name, getattr(self, name))
        if not 0 <= self.from_percent < self.to_percent <= 1:
            raise BadValue(
                "recipe from_percent must be below to_percent, both from 0 to 1, got {start:g} and {end:g}.",
                start=self.from_percent,
                end=self.to_percent,
            )
        normalise(self, sigmas=self._checked_sigmas())
        if not is_number(self.churn) and self.churn != math.inf:
            raise BadValue("recipe churn must be a number of 0 or more, or inf, got {got!r}.", got=self.churn)
        check_churn(self.churn)
        errors = {f"errors {name}": value for name, value in self.errors.items()}
        for name, value in {"cfg": self.cfg, "shift": self.shift, **errors}.items():
            _check_number(name, value)
        if self.shift <= 0:
            raise BadValue("recipe shift must be above 0, got {got!r}.", got=self.shift)
        if not is_whole(self.order) or self.order not in (1, 2, 3):
            raise BadValue("recipe order must be 1, 2 or 3, got {got!r}.", got=self.order)
        solver = _checked_solver(self)
        parts = (solver.rows, solver.asks, solver.fresh) if solver else ((), (), ())
        normalise(self, **dict(zip(("coefficients", "asks", "fresh"), parts)))

    def _checked_sigmas(self):
        if odd := _not_numbers(self.sigmas):
            raise BadValue("recipe sigmas must be a list of numbers, got {got!r}.", got=odd[0])
        grid = check_sigmas(self.sigmas, path(self.path), "recipe sigmas").tolist()
        if self.to_percent == 1 and grid[-1] != 0:
            raise BadValue("recipe sigmas must end at 0, got {got:g}.", got=grid[-1])
        if self.to_percent < 1 and grid[-1] == 0:
            raise BadValue(
                "recipe sigmas must end above 0 where to_percent is {end:g}, got 0.", end=self.to_percent
            )
        return tuple(grid)

    @property
    def solver(self) -> LinearSolver | None:
        """The recipe's own solver, None where it has no coefficients."""
        if not self.coefficients:
            return None
        return LinearSolver(self.sigmas, self.coefficients, self.asks, self.fresh)

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """How many predictions of the model a picture takes; a step with guidance takes two."""
        return self.solver.calls(self.cfg) if self.coefficients else self.steps * (1 if self.cfg == 1 else 2)

    def to_json(self) -> str:
        """The document as text. Infinite churn is written as "inf", as JSON has no number for it."""
        value, version = dataclasses.asdict(self), max(READABLE)
        while version in BROUGHT and all(value[name] == plain for name, plain in BROUGHT[version].items()):
            value = {name: v for name, v in value.items() if name not in BROUGHT[version]}
            version -= 1
        value = {"version": version, **value}
        value["churn"] = "inf" if math.isinf(self.churn) else self.churn
        return json.dumps(value, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read and check a document. Raises ValueError naming what is wrong."""
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadValue("The recipe must be JSON: {error}.", error=error) from error
        if not isinstance(value, dict) or "version" not in value:
            raise BadValue("The recipe must be a JSON object with a version.")
        version = value.pop("version")
        value.setdefault("made_by", "")
        if not is_whole(version) or version not in READABLE:
            raise BadValue(
                "The recipe must be of version {readable}, got {got!r}{made}. Update Fewstep to read it.",
                readable=" or version ".join(map(str, reversed(READABLE))),
                got=version,
                made=_maker(value["made_by"]),
            )
        for later, brought in {2: {"coefficients": (), "shift": 1.0, "errors": {}}, **BROUGHT}.items():
            if version < later and (odd := sorted(brought.keys() & value.keys())):
                raise BadValue(
                    "The recipe is of version {version}, which must have no {odd}: version {later} brought "
                    "them{made}.",
                    version=version,
                    odd=odd,
                    later=later,
                    made=_maker(value["made_by"]),
                )
            if version < later:
                value = {**brought, **value}
        names = {field.name for field in dataclasses.fields(cls)}
        if set(value) != names:
            raise BadValue(
                "The recipe must have the fields {names}; missing or unknown: {odd}{made}.",
                names=sorted(names),
                odd=sorted(set(value) ^ names),
                made=_maker(value["made_by"]),
            )
        churn = math.inf if value["churn"] == "inf" else value["churn"]
        return cls(**{**value, "churn": churn})


def _maker(made_by):
    """Who made a recipe that can't be read, where it says so."""
    if made_by in ("", MADE_BY):
        return ""
    return Message(" (made by Fewstep {theirs}, this is {ours})", theirs=str(made_by)[:40], ours=MADE_BY)


def _checked_solver(recipe):
    """The solver of its own that a recipe's fields make, None where there is none."""
    rows = recipe.coefficients
    are_rows = isinstance(rows, (list, tuple))
    if odd := [value for row in rows for value in _not_numbers(row)] if are_rows else [rows]:
        raise BadValue("recipe coefficients must be rows of numbers, one a step, got {got!r}.", got=odd[0])
    if odd := _not_numbers(recipe.fresh):
        raise BadValue("recipe fresh must be a list of numbers, got {got!r}.", got=odd[0])
    if not isinstance(recipe.asks, (list, tuple)):
        raise BadValue("recipe asks must be a list of texts, got {got!r}.", got=recipe.asks)
    if rows:
        if recipe.churn:
            raise BadValue(
                "recipe churn must be 0 where there are coefficients, got {got:g}.", got=recipe.churn
            )
        try:
            return LinearSolver(recipe.sigmas, rows, recipe.asks, recipe.fresh)
        except ValueError as error:
            raise BadValue(
                "recipe coefficients must be rows of numbers, one a step: {error}", error=error
            ) from error
    for name in ("asks", "fresh"):
        if value := getattr(recipe, name):
            raise BadValue(
                "recipe {name} must be empty where there are no coefficients, got {got!r}.",
                name=name,
                got=value,
            )
    return None


def _check_text(name, value):
    if not isinstance(value, str):
        raise BadValue("recipe {name} must be text, got {got!r}.", name=name, got=value)


def _check_object(name, value):
    if not isinstance(value, dict):
        raise BadValue(
            "recipe {name} must be an object of figures by name, got {got!r}.", name=name, got=value
        )


def _check_number(name, value):
    if not is_number(value):
        raise BadValue("recipe {name} must be a finite number, got {got!r}.", name=name, got=value)


def _check_finite(name, value):
    """Refuse a number that JSON has no word for, however deep in the value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        _check_finite(name, part)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue("recipe {name} must hold finite numbers, got {got}.", name=name, got=value)


def _not_numbers(values):
    """What in a list is no number, NaN and infinity being numbers here; the value itself if it is no list."""
    if not isinstance(values, (list, tuple)):
        return [values]
    return [value for value in values if not is_number(value) and not isinstance(value, float)]


def _no_constant(name):
    raise BadValue("The recipe must hold finite numbers, got {got}. Save it again.", got=name)
