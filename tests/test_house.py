"""The measure of the house finds each kind of breach where it is planted, and nothing in a clean tree."""

import subprocess
import sys
import textwrap

import pytest
from scripts import ROOT, script

house = script("house")
CLEAN = {
    "__init__.py": "",
    "diffusion/__init__.py": "",
    "diffusion/step.py": "def step(x: float, *rest: float, **more: float) -> float:\n    return x\n",
    "diffusion/schedules/grids.py": "from ..step import step\n",
    "training/__init__.py": "def __getattr__(name):\n    from .run import loop\n",
    "training/__main__.py": "from .cli.main import main\n",
    "training/formats/files.py": "from ...diffusion.step import step\n",
    "training/run/loop.py": "from ..formats import files\nfrom ..formats.files import step\n",
    "training/cli/main.py": "from ..run.loop import step\n\n\ndef main() -> None:\n    pass\n",
    "nodes/__init__.py": "from . import sample\nfrom .comfy.host import name\n",
    "nodes/comfy/host.py": "def name() -> str:\n    def inner(x):\n        return x\n\n    return ''\n",
    "nodes/sample.py": """
        from ..training.run import loop
        from .comfy import host


        class Sample:
            def __init__(self, x: int):
                self.x = x

            def __call__(self) -> int:
                return self.x

            def __eq__(self, other):
                return self._same(other)

            def _same(self, other):
                return True

            @classmethod
            def made(cls) -> "Sample":
                return cls(1)

            @staticmethod
            def twice(x: int) -> int:
                return 2 * x


        class _Hidden:
            def open(self, x):
                return x
        """,
}


@pytest.fixture
def tree(tmp_path):
    """Writes files {name: text} into a clean house; its root."""

    def write(**files):
        for name, text in {**CLEAN, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        return tmp_path

    return write


def breaches(root):
    """[(where, what)] of all figures."""
    return [tuple(breach) for figure in house.measured(root) for breach in figure.breaches]


def test_a_clean_house_passes(tree):
    root = tree()
    assert breaches(root) == []
    assert all(figure.holds for figure in house.measured(root))


def test_the_clean_house_has_every_import_that_the_files_name(tree):
    root = tree()
    found = {
        (arrow.source, arrow.target)
        for path, _, parsed in house.room_files(root)
        for arrow in house.arrows_of(root, path, parsed)
    }
    assert found == {
        ("diffusion.schedules.grids", "diffusion.step"),
        ("training", "training.run.loop"),
        ("training.__main__", "training.cli.main"),
        ("training.formats.files", "diffusion.step"),
        ("training.run.loop", "training.formats.files"),
        ("training.cli.main", "training.run.loop"),
        ("nodes", "nodes.sample"),
        ("nodes", "nodes.comfy.host"),
        ("nodes.sample", "training.run.loop"),
        ("nodes.sample", "nodes.comfy.host"),
    }


@pytest.mark.parametrize(
    "file, line, says",
    [
        ("diffusion/step.py", "from ..training.formats import files", "diffusion lies below training"),
        ("training/formats/files.py", "from ... import nodes", "training lies below nodes"),
        ("training/formats/files.py", "from ..run import loop", "training/formats lies below training/run"),
        ("training/run/loop.py", "from ..cli.main import main", "training/run lies below training/cli"),
        ("training/run/loop.py", "from .. import __main__", "training/run lies below the files of training/"),
        ("diffusion/step.py", "from .schedules import grids", "the files of diffusion/ lies below"),
        ("nodes/comfy/host.py", "from ..sample import Sample", "nodes/comfy lies below the files of nodes/"),
        ("nodes/comfy/host.py", "from .... import other", "leaves the rooms"),
        ("nodes/comfy/host.py", "from ... import other", "leaves the rooms"),
        ("training/formats/files.py", "import fewstep.nodes.sample", "training lies below nodes"),
        ("training/formats/files.py", "from fewstep.nodes import sample", "training lies below nodes"),
        ("training/formats/files.py", "import importlib", "leaves the rooms"),
        ("training/formats/files.py", "from importlib import import_module", "leaves the rooms"),
        ("training/formats/files.py", "__import__('fewstep.nodes.sample')", "leaves the rooms"),
        (
            "training/run/build/loop.py",
            "from ...cli.main import main",
            "training/run lies below training/cli",
        ),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_arrow_that_runs_upward(tree, file, line, says, late):
    text = f"def late() -> None:\n    {line}\n" if late else f"{line}\n"
    found = breaches(tree(**{file: text}))
    where = f"{file}:{2 if late else 1}"
    assert [what for place, what in found if place == where and says in what]


def test_modules_that_import_one_another_even_late(tree):
    found = breaches(
        tree(
            **{
                "training/run/a.py": "from .b import b\n",
                "training/run/b.py": "from . import c\n",
                "training/run/c.py": "def late() -> None:\n    from .a import a\n",
            }
        )
    )
    assert found == [
        ("training/run/a.py:1", "modules import one another: training.run.a, training.run.b, training.run.c")
    ]


def test_folders_of_one_floor_know_nothing_of_one_another(tree):
    found = breaches(tree(**{"diffusion/solvers/a.py": "from ..schedules import grids\n"}))
    assert [where for where, _ in found] == ["diffusion/solvers/a.py:1"]
    assert found[0][1].endswith("runs sideways: diffusion/solvers lies beside diffusion/schedules")


def test_a_folder_without_a_floor(tree):
    assert breaches(tree(**{"training/misc/x.py": ""})) == [("training/misc", "has no floor in .ci/house.py")]


def test_too_many_entries(tree):
    root = tree(**{f"training/extra{i}.py": "" for i in range(8)})
    assert house.entries(root).value == 13 and not house.entries(root).holds
    (root / "training" / "extra0.py").unlink()
    (root / "training" / "__pycache__").mkdir()
    assert house.entries(root).value == 12 and house.entries(root).holds


def test_a_class_that_is_too_long(tree):
    body = "".join(f"    x{i} = {i}\n" for i in range(160))
    root = tree(**{"training/run/big.py": f"\nclass Big:\n{body}"})
    assert breaches(root) == [("training/run/big.py:2", "class Big has 161 lines")]
    assert house.classes(root)[0].value == 161


def test_a_class_with_too_many_methods(tree):
    body = "".join(f"    def _m{i}(self):\n        pass\n" for i in range(15))
    root = tree(**{"nodes/big.py": f"class Big:\n{body}"})
    assert breaches(root) == [("nodes/big.py:1", "class Big has 15 methods")]
    assert house.classes(root)[1].value == 15


@pytest.mark.parametrize(
    "text, missing",
    [
        ("def f(x) -> int: ...", "f has no type hint for x"),
        ("def f(x: int): ...", "f has no type hint for result"),
        ("async def f(*x, y=1, **z) -> int: ...", "f has no type hint for y, x, z"),
        ("def f(x, /, y: int): ...", "f has no type hint for x, result"),
        ("if True:\n    def f(): ...", "f has no type hint for result"),
        ("class A:\n    def f(self): ...", "f has no type hint for result"),
        ("class A:\n    def __init__(self, x): ...", "__init__ has no type hint for x"),
        ("class A:\n    def __call__(self) : ...", "__call__ has no type hint for result"),
        ("class A:\n    @staticmethod\n    def f(x) -> int: ...", "f has no type hint for x"),
        ("class A:\n    class B:\n        def f(self, x) -> int: ...", "f has no type hint for x"),
    ],
)
def test_a_missing_type_hint(tree, text, missing):
    assert [what for _, what in breaches(tree(**{"diffusion/hints.py": text + "\n"}))] == [missing]


def test_a_long_line_anywhere(tree):
    root = tree(
        **{
            "tests/test_x.py": "\n" + "x" * 111 + " = 1\n",
            "tests/test_y.py": "y" * 106 + " = 1\n",
            ".ci/z.py": f"# {'步' * 55}\n",
            ".venv/site.py": "z" * 200 + "\n",
        }
    )
    assert breaches(root) == [(".ci/z.py:1", "112 columns"), ("tests/test_x.py:2", "115 columns")]


def test_this_house_passes():
    run = subprocess.run([sys.executable, "-S", ROOT / ".ci" / "house.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("of at most") == 6


def test_breaches_are_printed_and_end_the_script_with_1(tree, monkeypatch, capsys):
    monkeypatch.setattr(house, "ROOT", tree(**{"diffusion/x.py": "def f(x) -> int: ...\n"}))
    assert house.main() == 1
    out = capsys.readouterr().out
    assert "diffusion/x.py:1: f has no type hint for x" in out
    assert "public functions without complete type hints" in out and "1 of at most 0" in out
    monkeypatch.setattr(house, "ROOT", tree(**{"diffusion/x.py": "\n"}))
    assert house.main() == 0
