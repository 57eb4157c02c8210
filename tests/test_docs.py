"""What the documents for people say of files, folders, modules and commands is so."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import fewstep
import pytest
from fewstep.diffusion.schedules import grids
from fewstep.training.formats import prompts
from PIL import Image
from scripts import script

house = script("house")
tables = script("tables", "benchmarks")
ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "training/models/demo/MODEL_CARD.md",
    "docs/results.md",
    "docs/theory.md",
)
TOP = "diffusion|training|nodes|js|tests|benchmarks|locales|example_workflows|subgraphs|docs|\\.ci"
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


def test_the_oldest_comfyui_is_the_same_everywhere():
    oldest = ".".join(map(str, fewstep.OLDEST))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert settings["tool"]["comfy"]["requires-comfyui"] == f">={oldest}.0"
    assert f"comfyui: [v{oldest}.0, " in tested
    assert f"\nComfyUI {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_package_of_the_command_line_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {"fewstep"} | {
        ".".join(["fewstep", *path.parent.relative_to(ROOT).parts])
        for room in ("diffusion", "training")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert packages == set(settings["tool"]["setuptools"]["packages"])


def test_the_readmes_table_has_every_node_and_its_counts_are_so():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## The nodes")[2].partition("\n\n")[0]
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    named = re.findall(r"\*\*(.+?)\*\*", table)
    assert sorted(named) == sorted(node["display_name"] for node in nodes.values())
    kinds, bundled = (int(re.search(words, table)[1]) for words in (r"(\d+) kinds", r"bundled (\d+)"))
    assert (kinds, bundled) == (len(grids.NAMES), len(prompts.bundled()))


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_table_is_what_the_figures_say(page):
    text = page.read_text(encoding="utf-8")
    assert tables.written(text) == text, "run python benchmarks/tables.py"


def test_every_table_stands_in_a_page():
    found = [
        name for page in tables.PAGES for _, name, _ in tables.PLACE.findall(page.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == sorted(tables.TABLES)


def test_a_stale_table_is_seen():
    stale = "<!-- table: overhead -->\n| 1 |\n<!-- end -->"
    assert tables.written(stale) != stale


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_archive_holds_every_picture_that_the_pages_show():
    shown = {
        (page.parent / picture).resolve().relative_to(ROOT)
        for page in tables.PAGES
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    command = [
        "git",
        "-c",
        "core.excludesFile=.comfyignore",
        "check-ignore",
        "--no-index",
        *map(str, sorted(shown)),
    ]
    assert len(shown) > 5
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == ""


def test_icon_and_banner_are_what_the_registry_takes():
    """A square of at most 400 pixels, and 21:9."""
    brand = script("brand")
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.size == brand.ICON and icon.width == icon.height <= 400
        assert banner.size == brand.BANNER and banner.width * 9 == banner.height * 21
