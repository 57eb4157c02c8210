"""What each room may import: rooms below it, and packages, read from the files. The floors inside the rooms
are measured by `.ci/house.py`.
"""

import ast
import sys
from pathlib import Path

import pytest
from scripts import script

house = script("house")
ROOT = Path(__file__).parent.parent
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "server",
    "folder_paths",
    "latent_preview",
    "nodes",
    "aiohttp",
    "execution",
}
EXTRAS = {
    "training": {"diffusers", "transformers", "bitsandbytes", "torchao"}
}  # room: packages that its functions may import, and no file at its head
ALLOWED = {  # room: (own rooms it may import, packages it may import beside the standard library)
    "diffusion": ({"diffusion"}, {"torch"}),
    "training": ({"diffusion", "training"}, {"torch", "numpy", "safetensors", "PIL", "tqdm"}),
    "nodes": (
        {"diffusion", "training", "nodes"},
        {"torch", "numpy", "safetensors", "PIL", "tqdm"} | HOST - {"nodes"},
    ),
}


def imports(path, room):
    """(own rooms, outside packages) that a file imports, at any depth of its code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {arrow.target.split(".")[0] for arrow in house.arrows_of(ROOT, path, tree)}
    outside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
    return own, outside - set(sys.stdlib_module_names)


def breaches(path, room):
    """What a file imports that its room may not."""
    rooms, packages = ALLOWED[room]
    own, outside = imports(path, room)
    return (own - rooms) | (outside - packages - (EXTRAS.get(room, set()) - at_the_head(path)))


def at_the_head(path):
    """Packages that are imported as soon as the file is."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        name.split(".")[0]
        for node in body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_it_may(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    assert {str(f): b for f in files if (b := breaches(f, room))} == {}


@pytest.mark.parametrize(
    "room, line",
    [
        ("diffusion", "from ..training import lora"),
        ("training", "from ..nodes import host"),
        ("training", "import comfy.utils"),
        ("diffusion", "import numpy"),
        ("training", "from ... import nodes"),
        ("nodes", "import requests"),
    ],
)
def test_rule_finds_a_breach(room, line, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / room).mkdir()
    path = tmp_path / room / "x.py"
    path.write_text(f"def late():\n    {line}\n")
    assert breaches(path, room)


def test_extras_are_imported_late_only(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "training").mkdir()
    path = tmp_path / "training" / "x.py"
    path.write_text("def late():\n    import diffusers\n")
    assert not breaches(path, "training")
    path.write_text("from diffusers import UNet2DModel\n")
    assert breaches(path, "training") == {"diffusers"}


def test_root_imports_nothing_at_module_level_and_names_no_v1_mapping():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom, ast.Try, ast.If))]
    assert "NODE_CLASS_MAPPINGS" not in {
        t.id for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets
    }
