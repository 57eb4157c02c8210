"""The recipe: what a sampler must know to run a few-step model as it was made. A small JSON document.

It lies alone in a file or in a LoRA's safetensors metadata under METADATA_KEY.
"""

import dataclasses
import json
import math

from ..diffusion.paths import check_sigmas, path
from ..diffusion.step import check_churn

METADATA_KEY = "fewstep.recipe"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to sample: on `path`, along `sigmas`, with churn and guidance `cfg`.

    method   what made it: "consistency", ...
    sigmas   step grid, descending, last entry 0
    base     fingerprint of the base model
    trained  figures of the run that made it (steps, samples, teacher's cfg, ...), for people to read
    """

    method: str
    path: str
    sigmas: tuple
    churn: float = 0.0
    cfg: float = 1.0
    order: int = 1
    base: str = ""
    trained: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        grid = check_sigmas(self.sigmas, path(self.path), "recipe sigmas")
        if grid[-1] != 0:
            raise ValueError(f"recipe sigmas must end at 0, got {grid[-1]:g}.")
        object.__setattr__(self, "sigmas", tuple(grid.tolist()))
        check_churn(self.churn)
        if not math.isfinite(self.cfg):
            raise ValueError(f"recipe cfg must be finite, got {self.cfg}.")
        if self.order not in (1, 2):
            raise ValueError(f"recipe order must be 1 or 2, got {self.order}.")

    def to_json(self):
        """The document as text. Infinite churn is written as "inf", which JSON has no number for."""
        value = {"version": VERSION, **dataclasses.asdict(self)}
        value["churn"] = "inf" if math.isinf(self.churn) else self.churn
        return json.dumps(value, allow_nan=False)

    @classmethod
    def from_json(cls, text):
        """Read and check a document. Raises ValueError naming what is wrong."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The recipe must be JSON: {error}.") from error
        if not isinstance(value, dict) or "version" not in value:
            raise ValueError("The recipe must be a JSON object with a version.")
        version = value.pop("version")
        if version != VERSION:
            raise ValueError(f"The recipe must be of version {VERSION}, got {version}. Update Fewstep to read it.")
        names = {f.name for f in dataclasses.fields(cls)}
        if set(value) != names:
            odd = sorted(set(value) ^ names)
            raise ValueError(f"The recipe must have the fields {', '.join(sorted(names))}; "
                             f"missing or unknown: {', '.join(odd)}.")
        return cls(**{**value, "churn": float(value["churn"]), "sigmas": tuple(value["sigmas"])})
