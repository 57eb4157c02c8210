"""What the documents for people say of files, folders, modules and commands is so."""

import re
import tomllib
from pathlib import Path

import pytest
from scripts import script

house = script("house")
ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "training/models/demo/MODEL_CARD.md")
TOP = "diffusion|training|nodes|js|tests|benchmarks|locales|example_workflows|docs|\\.ci"
MADE = ("tests/browser/shots/", ".ci/node_modules/")  # what commands make lies there
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def paths(page):
    """The paths inside the project that a page names; patterns such as <name> are left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.-])(?:{TOP})/[\w./<>*-]*", text)
    return {path.rstrip(".") for path in named if not re.search("[<>*]", path) and not path.startswith(MADE)}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page):
    named = paths(page)
    assert len(named) > 1
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_module_that_is_run_is_there():
    run = {
        module
        for page in PAGES
        for module in re.findall(r"python -m fewstep\.([\w.]+\w)", (ROOT / page).read_text(encoding="utf-8"))
    }
    assert {"training.models.demo.data", "training"} <= run
    for module in run:
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


def picture():
    """[(room, [folders on each line])] from the picture's top to its bottom; "." are a room's own files."""
    drawn = re.search(r"```text\n(nodes/.*?)```", CONTRIBUTING, re.DOTALL)[1]
    rooms = []
    for line in drawn.splitlines():
        if found := re.match(r"(\w+)/ ", line):
            rooms.append((found[1], []))
        elif line.startswith("  ") and line.strip() != "|":
            here = [word for word in line.split() if word == "*.py" or re.fullmatch(r"\w+/", word)]
            rooms[-1][1].append({"." if word == "*.py" else word.rstrip("/") for word in here})
    return rooms


def test_the_picture_shows_the_floors_that_are_measured():
    measured = [
        (room, [set(folders.split()) for folders, _ in reversed(house.FLOORS[room])])
        for room, _ in reversed(house.ROOMS)
    ]
    assert picture() == measured


def test_the_picture_shows_every_folder_and_no_other():
    for room, lines in picture():
        drawn = set().union(*lines) - {"."}
        there = {f.name for f in (ROOT / room).iterdir() if f.is_dir() and list(f.rglob("*.py"))}
        assert drawn == there, room


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {"fewstep"} | {
        ".".join(["fewstep", *path.parent.relative_to(ROOT).parts])
        for room, _ in house.ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert packages == set(settings["tool"]["setuptools"]["packages"])
