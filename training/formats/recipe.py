"""The recipe: what a sampler must know to run a few-step model as it was made. A small JSON document.

It lies alone in a file or in a LoRA's safetensors metadata under METADATA_KEY.
"""

import dataclasses
import json
import math

from ...diffusion.faults import BadValue
from ...diffusion.paths import check_sigmas, path
from ...diffusion.solvers.linear import LinearSolver
from ...diffusion.step import check_churn

METADATA_KEY = "fewstep.recipe"
VERSION = 2
READABLE = (1, 2)  # version 1 had no coefficients, shift and errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to sample: on `path`, along `sigmas`, with churn and guidance `cfg`.

    method        what made it: "consistency", "fitted", "classical", ...
    sigmas        step grid, descending, last entry 0
    coefficients  rows of a solver of its own (`diffusion.linear`), () for the kernel's solver of `order`
    shift         of the model's times that the grid was made with; sigmas have it in them already
    base          fingerprint of the base model
    errors        RMSE to the converged picture on held-out noise in units of the pictures' deviation, by name
    trained       figures of the run that made it (steps, samples, teacher's cfg, ...), for people to read
    Raises ValueError naming the field that is wrong.
    """

    method: str
    path: str
    sigmas: tuple
    coefficients: tuple = ()
    churn: float = 0.0
    cfg: float = 1.0
    shift: float = 1.0
    order: int = 1
    base: str = ""
    errors: dict = dataclasses.field(default_factory=dict)
    trained: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("method", "path", "base"):
            if not isinstance(getattr(self, name), str):
                raise BadValue("recipe {name} must be text, got {got!r}.", name=name, got=getattr(self, name))
        for name in ("errors", "trained"):
            if not isinstance(getattr(self, name), dict):
                raise BadValue(
                    "recipe {name} must be an object of figures by name, got {got!r}.",
                    name=name,
                    got=getattr(self, name),
                )
        _check_finite("trained", self.trained)
        _check_rows("sigmas", (self.sigmas,), "a list of numbers")
        grid = check_sigmas(self.sigmas, path(self.path), "recipe sigmas")
        if grid[-1] != 0:
            raise BadValue("recipe sigmas must end at 0, got {got:g}.", got=grid[-1])
        object.__setattr__(self, "sigmas", tuple(grid.tolist()))
        if not _is_number(self.churn) and self.churn != math.inf:
            raise BadValue("recipe churn must be a number of 0 or more, or inf, got {got!r}.", got=self.churn)
        check_churn(self.churn)
        for name, value in (
            ("cfg", self.cfg),
            ("shift", self.shift),
            *((f"errors {k}", v) for k, v in self.errors.items()),
        ):
            if not _is_number(value):
                raise BadValue("recipe {name} must be a finite number, got {got!r}.", name=name, got=value)
        if self.shift <= 0:
            raise BadValue("recipe shift must be above 0, got {got!r}.", got=self.shift)
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order not in (1, 2, 3):
            raise BadValue("recipe order must be 1, 2 or 3, got {got!r}.", got=self.order)
        _check_rows("coefficients", self.coefficients, "rows of numbers, one a step")
        if self.coefficients:
            if self.churn:
                raise BadValue(
                    "recipe churn must be 0 where there are coefficients, got {got:g}.",
                    got=self.churn,
                )
            try:
                object.__setattr__(self, "coefficients", LinearSolver(self.sigmas, self.coefficients).rows)
            except ValueError as error:
                raise BadValue(
                    "recipe coefficients must be rows of numbers, one a step: {error}",
                    error=error,
                ) from error
        else:
            object.__setattr__(self, "coefficients", ())

    @property
    def solver(self):
        """The recipe's own solver, None where it has no coefficients."""
        return LinearSolver(self.sigmas, self.coefficients) if self.coefficients else None

    def to_json(self):
        """The document as text. Infinite churn is written as "inf", which JSON has no number for."""
        value = {"version": VERSION, **dataclasses.asdict(self)}
        value["churn"] = "inf" if math.isinf(self.churn) else self.churn
        return json.dumps(value, allow_nan=False)

    @classmethod
    def from_json(cls, text):
        """Read and check a document. Raises ValueError naming what is wrong."""
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadValue("The recipe must be JSON: {error}.", error=error) from error
        if not isinstance(value, dict) or "version" not in value:
            raise BadValue("The recipe must be a JSON object with a version.")
        version = value.pop("version")
        if isinstance(version, bool) or not isinstance(version, int) or version not in READABLE:
            raise BadValue(
                "The recipe must be of version {str}, got {got!r}. Update Fewstep to read it.",
                str=" or version ".join(map(str, reversed(READABLE))),
                got=version,
            )
        if version == 1:
            value = {"coefficients": [], "shift": 1.0, "errors": {}, **value}
        names = {f.name for f in dataclasses.fields(cls)}
        if set(value) != names:
            odd = sorted(set(value) ^ names)
            raise BadValue(
                "The recipe must have the fields {names}; missing or unknown: {odd}.",
                names=list(sorted(names)),
                odd=list(odd),
            )
        return cls(**{**value, "churn": math.inf if value["churn"] == "inf" else value["churn"]})


def _is_number(value):
    """Whether this is a finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _check_rows(name, rows, what):
    """Raise ValueError naming the field unless it is a list of lists of numbers; whether they are finite is
    asked later.
    """

    def refuse(odd):
        raise BadValue("recipe {name} must be {what}, got {got!r}.", name=name, what=what, got=odd)

    for row in rows if isinstance(rows, (list, tuple)) else refuse(rows):
        for value in row if isinstance(row, (list, tuple)) else refuse(row):
            if not (_is_number(value) or isinstance(value, float)):
                refuse(value)


def _check_finite(name, value):
    """Raise ValueError for a number in a nested value that JSON has no word for."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        _check_finite(name, part)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue("recipe {name} must hold finite numbers, got {got}.", name=name, got=value)


def _no_constant(name):
    raise BadValue("The recipe must hold finite numbers, got {got}. Save it again.", got=name)
