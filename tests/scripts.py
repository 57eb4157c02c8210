"""Scripts of folders that are no package (`.ci`, `benchmarks`), as modules for the tests of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def script(name: str, folder: str = ".ci") -> ModuleType:
    """The module of `<folder>/<name>.py`, which finds those beside it as when it is run."""
    beside = str(ROOT / folder)
    if beside not in sys.path:
        sys.path.append(beside)
    known = f"fewstep_{folder.strip('.')}_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, ROOT / folder / f"{name}.py")
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]
