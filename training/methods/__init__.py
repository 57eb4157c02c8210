"""The training methods, one file each. Config, command line, nodes, benchmarks and locales take their list
from here: `names()`, `get("phased")`.

A method's file ends in `METHOD = register(Method(...))`. It is listed by one line below, in the order in
which people see the methods.
"""

# ruff: noqa: F401, I001 (a method is registered when its file is imported, and the order is people's)

from . import phased
from . import consistency
from . import consistency_training
from . import reflow
from . import rectified_diffusion
from . import windowed_reflow
from . import matching
from . import anchored
from . import phased_matching
from . import restoration
from .registry import get, names, register, restores
