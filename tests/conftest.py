"""Makes the checkout importable as `fewstep` without installing it, and finds ComfyUI for tests of it."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

sys.path.insert(0, str(ROOT / "tests"))  # `oracles`, which several rooms compare with

if "fewstep" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "fewstep", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["fewstep"] = module
    spec.loader.exec_module(module)


def comfyui():
    """The ComfyUI folder: COMFYUI_PATH, or the one that this pack lies in; None without."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        return Path(named)
    above = ROOT.parent.parent
    return above if (above / "comfy").is_dir() and (above / "nodes.py").is_file() else None


@pytest.fixture(scope="session")
def comfyui_folder():
    """Where the real ComfyUI is; tests that ask for it carry the mark `comfy`."""
    return comfyui()


def pytest_collection_modifyitems(items):
    if comfyui() is None:
        skip = pytest.mark.skip(reason="needs a real ComfyUI: set COMFYUI_PATH to its folder")
        for item in items:
            if "comfy" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def windows(monkeypatch):
    """Files that are held or mapped can't be replaced, as on Windows."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps, which tells what is mapped")
    from windows import Windows

    return Windows(monkeypatch)


@pytest.fixture
def generator():
    """A generator of the test's own."""
    return torch.Generator().manual_seed(0)
