"""The recipe: what a sampler must know to run a few-step model as it was made. A small JSON document.

It lies alone in a file or in a LoRA's safetensors metadata under METADATA_KEY.
"""

import dataclasses
import json
import math

from ..diffusion.linear import LinearSolver
from ..diffusion.paths import check_sigmas, path
from ..diffusion.step import check_churn

METADATA_KEY = "fewstep.recipe"
VERSION = 2
READABLE = (1, 2)       # version 1 had no coefficients, shift and errors


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
        grid = check_sigmas(self.sigmas, path(self.path), "recipe sigmas")
        if grid[-1] != 0:
            raise ValueError(f"recipe sigmas must end at 0, got {grid[-1]:g}.")
        object.__setattr__(self, "sigmas", tuple(grid.tolist()))
        check_churn(self.churn)
        for name, value in (("cfg", self.cfg), ("shift", self.shift), *self.errors.items()):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"recipe {name} must be a finite number, got {value!r}.")
        if self.order not in (1, 2, 3):
            raise ValueError(f"recipe order must be 1, 2 or 3, got {self.order!r}.")
        if self.coefficients:
            if self.churn:
                raise ValueError(f"recipe churn must be 0 where there are coefficients, got {self.churn:g}.")
            try:
                object.__setattr__(self, "coefficients", LinearSolver(self.sigmas, self.coefficients).rows)
            except (TypeError, ValueError) as error:
                raise ValueError(f"recipe coefficients must be rows of numbers, one a step: {error}") from error

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
        except json.JSONDecodeError as error:
            raise ValueError(f"The recipe must be JSON: {error}.") from error
        if not isinstance(value, dict) or "version" not in value:
            raise ValueError("The recipe must be a JSON object with a version.")
        version = value.pop("version")
        if version not in READABLE:
            raise ValueError(f"The recipe must be of version {VERSION}, got {version}. Update Fewstep to read it.")
        if version == 1:
            value = {"coefficients": [], "shift": 1.0, "errors": {}, **value}
        names = {f.name for f in dataclasses.fields(cls)}
        if set(value) != names:
            odd = sorted(set(value) ^ names)
            raise ValueError(f"The recipe must have the fields {', '.join(sorted(names))}; "
                             f"missing or unknown: {', '.join(odd)}.")
        try:
            return cls(**{**value, "churn": float(value["churn"]), "sigmas": tuple(value["sigmas"]),
                          "coefficients": tuple(map(tuple, value["coefficients"]))})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"The recipe's fields must be of their types: {error}.") from error


def _no_constant(name):
    raise ValueError(f"The recipe must hold finite numbers, got {name}. Save it again.")
