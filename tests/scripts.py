"""The scripts of `.ci/`, which is no package, as modules for the tests of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

CI = Path(__file__).parent.parent / ".ci"


def script(name: str) -> ModuleType:
    """The module of `.ci/<name>.py`."""
    known = f"fewstep_ci_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, CI / f"{name}.py")
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]
