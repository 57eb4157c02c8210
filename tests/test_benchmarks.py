"""What the benchmarks take from the package is there, so that they still start when it has moved."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


def taken(script):
    """[(module, name)] of all that a script imports from the package."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fewstep"
        for alias in node.names
    ]


def is_there(module, name):
    """Whether `from module import name` works."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_import_is_there(script):
    assert [pair for pair in taken(script) if not is_there(*pair)] == []


def test_most_scripts_take_something_and_what_is_gone_is_found():
    assert sum(bool(taken(script)) for script in SCRIPTS) > 8
    assert is_there("fewstep.training.run", "config") and is_there("fewstep.diffusion.step", "step")
    assert not is_there("fewstep.training.run.config", "gone") and not is_there("fewstep.gone", "step")
