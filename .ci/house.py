"""The order of the house, measured: python .ci/house.py prints each figure beside its limit, names what is
beyond it by file and line, and then exits with 1.

It reads files only (`ast`), imports nothing of the package and needs nothing but the standard library. Rooms
that the package has and this file does not know are named as well, so that a new one gets a place.
"""

import ast
import sys
import tokenize
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# The rooms of the package from the ground up: each may import those before it.
ROOMS = (
    ("diffusion", "mathematics: torch and the standard library"),
    ("training", "the backend, which knows of a model only what its denoiser answers"),
    ("nodes", "what ComfyUI loads, and the only room that knows it"),
)
# Inside a room: its floors from the ground up, each with the folders on it and what lives there. A floor may
# import those before it; folders on one floor know nothing of one another. HERE stands for the files that lie
# in the room itself.
HERE = "."
FLOORS = {
    "diffusion": (
        (
            HERE,
            "the ground floor: one step, paths, conversions between predictions, samplers, probe, messages",
        ),
        ("schedules solvers destruction", "step grids; fitted solvers; forward processes of any kind"),
    ),
    "training": (
        ("formats ranks", "what lies on a disk; several processes that make one run"),
        ("reports", "pictures and metrics: numbers in, pixels or numbers out"),
        ("models", "who answers: the denoiser protocol, diffusers folders, families, demo teachers"),
        ("adapter", "LoRA on a model, exact gradients, recomputation"),
        ("trajectories", "noises, the teacher's paths and their cache"),
        ("methods", "what is learnt: one file for each training method, with its loss"),
        ("run", "a run: configuration, loop, state on disk, memory, fitting"),
        ("cli", "the command line"),
        (HERE, "the doors: `python -m fewstep.training` and what `fewstep.training` hands on"),
    ),
    "nodes": (
        ("comfy", "how the host loads, patches, samples and names things"),
        ("server", "routes, the live run, messages in words"),
        (HERE, "the nodes, and the list of them that ComfyUI asks for"),
    ),
}

ENTRIES = 12  # files and folders directly in training/
CLASS_LINES = 160
CLASS_METHODS = 14
COLUMNS = 110
SKIPPED = {"__pycache__", "node_modules"}
PACKAGE = "fewstep"
CHECKED_DUNDERS = {"__call__", "__init__"}


class Breach(NamedTuple):
    """Something beyond a limit, and where."""

    where: str
    what: str


class Figure(NamedTuple):
    """What was measured, the most it may be, and all that is beyond it."""

    name: str
    value: int
    limit: int
    breaches: list[Breach]

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit."""
        return self.value <= self.limit and not self.breaches


class Arrow(NamedTuple):
    """One import inside the package: modules by their dotted names below its root ("" is the root itself)."""

    file: str
    line: int
    source: str
    target: str


# ---- reading -----------------------------------------------------------------------------------


def python_files(folder: Path) -> list[Path]:
    """Every .py file below a folder, in order, without hidden folders (but `.ci`) and what builds leave."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        above = path.relative_to(folder).parts[:-1]
        hidden = any(part.startswith(".") and part != ".ci" for part in above)
        built = above[:1] == ("build",) and folder.joinpath("pyproject.toml").is_file()
        if not hidden and not built and not SKIPPED & set(above):
            found.append(path)
    return found


def room_files(root: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """(path, name below the root, tree) of every file of the rooms."""
    for room, _ in ROOMS:
        for path in python_files(root / room):
            yield path, path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def module_of(root: Path, path: Path) -> str:
    """The dotted name of a file below the root; a package is named by its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(root: Path, name: str) -> bool:
    """Whether a dotted name is a file or a folder of the package."""
    place = root.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or place.is_dir()


def arrows_of(root: Path, path: Path, tree: ast.Module) -> Iterator[Arrow]:
    """The imports of the package's own in a file, at any depth of its code: one arrow for each module that
    they reach.

    What climbs out of the package, and what is imported by a name made at run time, has the target "..".
    """
    file, source = path.relative_to(root).as_posix(), module_of(root, path)
    folder = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield Arrow(file, node.lineno, source, alias.name.removeprefix(PACKAGE).strip("."))
                elif alias.name.split(".")[0] == "importlib":
                    yield Arrow(file, node.lineno, source, "..")
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield Arrow(file, node.lineno, source, "..")
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        if not node.level:
            if module.split(".")[0] == "importlib":
                yield Arrow(file, node.lineno, source, "..")
            if module.split(".")[0] != PACKAGE:
                continue
            base = module.removeprefix(PACKAGE).strip(".")
            for target in sorted(_targets(root, base, node.names)):
                yield Arrow(file, node.lineno, source, target)
            continue
        climbed = node.level - 1
        if climbed > len(folder):
            yield Arrow(file, node.lineno, source, "..")
            continue
        base = [*folder[: len(folder) - climbed], *(node.module or "").split(".")]
        base = ".".join(part for part in base if part)
        for target in sorted(_targets(root, base, node.names)):
            yield Arrow(file, node.lineno, source, target)


def _targets(root, base, aliases):
    """The modules that `from base import ...` reaches: those that are named, else `base` itself."""
    named = {".".join(filter(None, (base, alias.name))) for alias in aliases}
    return {name if is_module(root, name) else base for name in named}


# ---- arrows ------------------------------------------------------------------------------------


def part_of(root: Path, module: str) -> tuple[str, str]:
    """(room, folder in it) of a module; HERE for a file that lies in the room itself."""
    room, *rest = module.split(".")
    inside = bool(rest) and root.joinpath(room, rest[0]).is_dir()
    return room, rest[0] if inside else HERE


def floor_of(room: str, folder: str) -> int | None:
    """How high a folder of a room lies; None where FLOORS has no place for it."""
    for height, (folders, _) in enumerate(FLOORS.get(room, ())):
        if folder in folders.split():
            return height
    return None


def upward(root: Path, arrows: Iterable[Arrow]) -> Iterator[Breach]:
    """Arrows out of the rooms, to a higher room, or to another folder of a floor that is not lower."""
    heights = {room: height for height, (room, _) in enumerate(ROOMS)}
    for arrow in arrows:
        room, folder = part_of(root, arrow.source)
        target_room, target_folder = part_of(root, arrow.target)
        where, what = f"{arrow.file}:{arrow.line}", f"{arrow.source} -> {arrow.target or 'the root'}"
        if target_room not in heights:
            yield Breach(where, f"{what} leaves the rooms")
        elif heights[target_room] > heights[room]:
            yield Breach(where, f"{what} runs upward: {room} lies below {target_room}")
        elif target_room == room:
            here, there = floor_of(room, folder), floor_of(room, target_folder)
            if here is None or there is None or folder == target_folder or there < here:
                continue
            own, other = _called(room, folder), _called(room, target_folder)
            how = "runs upward" if there > here else "runs sideways"
            yield Breach(where, f"{what} {how}: {own} lies {'below' if there > here else 'beside'} {other}")


def _called(room: str, folder: str) -> str:
    return f"the files of {room}/" if folder == HERE else f"{room}/{folder}"


def homeless(root: Path) -> Iterator[Breach]:
    """Folders with Python files for which FLOORS has no place."""
    for room, _ in ROOMS:
        for folder in sorted(f for f in root.joinpath(room).iterdir() if f.is_dir()):
            if python_files(folder) and floor_of(room, folder.name) is None:
                yield Breach(folder.relative_to(root).as_posix(), "has no floor in .ci/house.py")


def rounds(edges: dict[tuple[str, str], str]) -> Iterator[Breach]:
    """Groups of modules that reach one another along edges {(from, to): where}, each named once."""
    nexts: dict[str, set[str]] = {}
    for source, target in edges:
        if source != target:
            nexts.setdefault(source, set()).add(target)
    reach = {name: _reached(name, nexts) for name in nexts}
    seen: set[str] = set()
    for name in sorted(nexts):
        if name in seen or name not in reach[name]:
            continue
        group = sorted(other for other in reach[name] if name in reach.get(other, ()))
        seen |= set(group)
        where = min(place for (source, target), place in edges.items() if {source, target} <= set(group))
        yield Breach(where, f"modules import one another: {', '.join(group)}")


def _reached(name: str, nexts: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left = list(nexts[name])
    while left:
        other = left.pop()
        if other not in reached:
            reached.add(other)
            left += nexts.get(other, ())
    return reached


def arrows(root: Path) -> Figure:
    """Imports that run upward or round."""
    found = [arrow for path, _, tree in room_files(root) for arrow in arrows_of(root, path, tree)]
    modules = {(a.source, a.target): f"{a.file}:{a.line}" for a in found}
    breaches = [*homeless(root), *upward(root, found), *rounds(modules)]
    return Figure("import arrows that run upward or round", len(breaches), 0, breaches)


# ---- the other figures -------------------------------------------------------------------------


def entries(root: Path) -> Figure:
    """What lies directly in training/."""
    names = sorted(path.name for path in (root / "training").iterdir() if path.name != "__pycache__")
    breaches = [Breach("training", f"holds {', '.join(names)}")] if len(names) > ENTRIES else []
    return Figure("entries directly in training/", len(names), ENTRIES, breaches)


def classes(root: Path) -> tuple[Figure, Figure]:
    """The largest class of the rooms by its lines, and by its methods."""
    lines, methods, long, wide = 0, 0, [], []
    for _, name, tree in room_files(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            length = node.end_lineno - node.lineno + 1
            count = sum(isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) for part in node.body)
            lines, methods = max(lines, length), max(methods, count)
            if length > CLASS_LINES:
                long.append(Breach(f"{name}:{node.lineno}", f"class {node.name} has {length} lines"))
            if count > CLASS_METHODS:
                wide.append(Breach(f"{name}:{node.lineno}", f"class {node.name} has {count} methods"))
    return (
        Figure("lines of the largest class", lines, CLASS_LINES, long),
        Figure("methods of the largest class", methods, CLASS_METHODS, wide),
    )


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(function, whether it is a method) of all that others may call: not nested, no leading underscore."""
    left: list[tuple[ast.stmt, bool]] = [(node, False) for node in tree.body]
    while left:
        node, in_class = left.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not node.name.startswith("_") or (in_class and node.name in CHECKED_DUNDERS):
                yield node, in_class
        elif isinstance(node, ast.ClassDef):
            if not node.name.startswith("_"):
                left += [(part, True) for part in node.body]
        else:  # an `if` or `try` around definitions
            left += [(part, in_class) for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]


def missing_hints(function: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> list[str]:
    """Names of parameters without a type hint, and "result"."""
    given = function.args
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    parameters = [*given.posonlyargs, *given.args]
    if is_method and not static:
        parameters = parameters[1:]
    parameters += [*given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    missing = [parameter.arg for parameter in parameters if parameter.annotation is None]
    if function.returns is None and function.name != "__init__":
        missing.append("result")
    return missing


def hints(root: Path) -> Figure:
    """Public functions and methods of the rooms that lack a type hint."""
    breaches = []
    for _, name, tree in room_files(root):
        found = sorted(public_functions(tree), key=lambda pair: pair[0].lineno)
        for function, is_method in found:
            missing = missing_hints(function, is_method)
            if missing:
                what = f"{function.name} has no type hint for {', '.join(missing)}"
                breaches.append(Breach(f"{name}:{function.lineno}", what))
    return Figure("public functions without complete type hints", len(breaches), 0, breaches)


def width(line: str) -> int:
    """Columns of a line: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def columns(root: Path) -> Figure:
    """Lines of Python files that are too long."""
    breaches = []
    for path in python_files(root):
        with tokenize.open(path) as file:
            for number, line in enumerate(file, 1):
                wide = width(line.rstrip("\n"))
                if wide > COLUMNS:
                    where = f"{path.relative_to(root).as_posix()}:{number}"
                    breaches.append(Breach(where, f"{wide} columns"))
    return Figure(f"lines over {COLUMNS} columns", len(breaches), 0, breaches)


def measured(root: Path) -> list[Figure]:
    """All figures of the house that lies there."""
    return [entries(root), arrows(root), *classes(root), hints(root), columns(root)]


def main() -> int:
    """Print the figures; 1 if any is beyond its limit."""
    figures = measured(ROOT)
    for figure in figures:
        print(f"{figure.name:<46} {figure.value:>5} of at most {figure.limit}")
        for breach in figure.breaches:
            print(f"    {breach.where}: {breach.what}")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
