"""What there is to translate.

    python .ci/locales.py             lists what languages lack, and what they have that nothing says
    python .ci/locales.py --renamed   first moves texts to keys in which nothing but the names and formats
                                      of fields has changed
    python .ci/locales.py --dropped   takes out what nothing says any more

With COMFYUI_PATH=/path/to/ComfyUI it first writes locales/en/nodeDefs.json, and the choices of lists in
locales/en/main.json, from the nodes' own schemas.
"""

import ast
import asyncio
import functools
import json
import os
import re
import string
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCALES = ROOT / "locales"
FAULTS = ROOT / "diffusion" / "faults.py"
FILE = re.compile(r"\.[a-z]\w+$")


# ---- nodes, from the host ----------------------------------------------------------------------


def texts(node):
    """What the frontend looks up for a node class; an input that a dynamic combo shows has the key
    "combo_input".
    """
    schema = node.GET_SCHEMA()
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {key: _named(i, i.id) for key, i in inputs(schema.inputs)},
        "outputs": {str(n): _named(output, output.io_type) for n, output in enumerate(schema.outputs)},
    }


def inputs(found, before=""):
    """(key, input) of all inputs, those of a dynamic combo's choices too."""
    for i in found:
        yield before + i.id, i
        for option in getattr(i, "options", None) or ():
            yield from inputs(getattr(option, "inputs", ()), f"{before}{i.id}_")


def choices_of(nodes) -> dict[str, str]:
    """{choice: choice} of the lists on those nodes, what stands in their empty fields and what becomes of
    seeds; names of files are left as they are.
    """
    every = [i for node in nodes for _, i in inputs(node.GET_SCHEMA().inputs)]
    found = {str(getattr(o, "key", o)) for i in every for o in getattr(i, "options", None) or ()}
    found |= {i.placeholder for i in every if getattr(i, "placeholder", None)}
    controls = [getattr(i, "control_after_generate", None) for i in every]
    found |= {kind.value for control in controls if isinstance(control, Enum) for kind in type(control)}
    return {choice: choice for choice in sorted(found) if not FILE.search(choice)}


def _named(part, otherwise):
    return {"name": part.display_name or otherwise, **({"tooltip": part.tooltip} if part.tooltip else {})}


def nodes_of(host):
    """{id: class} of this pack's nodes that ComfyUI's `nodes` module knows."""
    return {
        name: node for name, node in sorted(host.NODE_CLASS_MAPPINGS.items()) if name.startswith("Fewstep")
    }


def load():
    """ComfyUI's `nodes` module with this checkout loaded by its own loader."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(ROOT)))
    return nodes


# ---- messages, from the source -----------------------------------------------------------------


def sources() -> list[Path]:
    """The files that the nodes import, directly or through others, and those of several processes, whose
    messages the panel shows of runs of the command line.
    """
    rooms = ROOT / "nodes", ROOT / "training" / "ranks"
    seen, left = set(), sorted(file for room in rooms for file in room.rglob("*.py"))
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            left += [
                file
                for node in ast.walk(tree(path))
                if isinstance(node, ast.ImportFrom) and node.level
                for file in _imported(path, node)
            ]
    return sorted(seen)


def _imported(path, node):
    folder = path.parents[node.level - 1]
    if node.module:
        folder = folder.joinpath(*node.module.split("."))
    found = [
        folder.with_suffix(".py"),
        folder / "__init__.py",
        *(folder / f"{alias.name}.py" for alias in node.names),
        *(folder / alias.name / "__init__.py" for alias in node.names),
    ]
    return [f for f in found if f.is_file() and ROOT in f.parents]


@functools.cache
def tree(path: Path) -> ast.Module:
    """A file as Python reads it."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def kinds() -> frozenset[str]:
    """The names of what takes a message key: `Message`, `Fault` and its kinds, wherever they are."""
    found = {"Message", "Fault"}
    for path in [FAULTS, *sources()]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and found & {ast.unparse(base) for base in node.bases}:
                found.add(node.name)
    return frozenset(found)


def messages(files: list[Path]) -> Iterator[tuple[ast.Call, str]]:
    """(call, where) of all that makes a message in these files."""
    for path in files:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and node.args and called(node) in kinds():
                yield node, f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"


def called(call: ast.Call) -> str:
    """The name of what is called, without that of its module."""
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def choices(node: ast.expr) -> list[ast.expr]:
    """What an expression can be: the two sides of a condition, else itself."""
    return [*choices(node.body), *choices(node.orelse)] if isinstance(node, ast.IfExp) else [node]


def keys_of(call: ast.Call) -> list[str]:
    """The message keys that a call can have; none where it is given a message that was made elsewhere."""
    texts = [c.value for c in choices(call.args[0]) if isinstance(c, ast.Constant)]
    return [text for text in texts if isinstance(text, str)]


@functools.cache
def said() -> dict[str, str]:
    """{message key: where} of all that is raised or said in those files and has words of its own."""
    found = {}
    for call, where in messages(sources()):
        for key in keys_of(call):
            if any(text for text, *_ in string.Formatter().parse(key)):
                found.setdefault(key, where)
    return found


@functools.cache
def words() -> set[str]:
    """Every text in those files: what a message's fields may hold."""
    return {
        node.value
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def fields(text: str) -> list[tuple[str, str, str]]:
    """(name, conversion, format) of a text's fields, in their order."""
    parts = string.Formatter().parse(text)
    return [(name, conversion or "", spec) for _, name, spec, conversion in parts if name is not None]


# ---- what languages have -----------------------------------------------------------------------


def read(language: str, name: str) -> dict:
    """A language's file; empty where there is none."""
    path = LOCALES / language / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def leaves(tree: dict, before: str = "") -> dict[str, str]:
    """{dotted key: text} of a tree of texts."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def languages() -> list[str]:
    """Those that the texts are translated into."""
    return sorted(path.name for path in LOCALES.iterdir() if path.is_dir() and path.name != "en")


def lacking(language: str) -> dict[str, str]:
    """{message key: where} of messages that a language has no text for."""
    table = read(language, "errors")
    return {key: where for key, where in said().items() if key not in table}


def left_over(language: str) -> list[str]:
    """The keys of a language's messages that nothing says any more."""
    known = said().keys() | words()
    return [key for key in read(language, "errors") if key not in known or fields(key) and key not in said()]


def renamed(language: str) -> dict[str, str]:
    """{old key: new key} of messages in which nothing but the names and formats of fields has changed."""
    new = {_bare(key): key for key in lacking(language)}
    return {key: new[_bare(key)] for key in left_over(language) if _bare(key) in new}


def _bare(key):
    return tuple(part[0] for part in string.Formatter().parse(key))


def rename(language: str) -> None:
    """Move the texts of `renamed` messages to their new keys, in the same place, with the new fields."""
    moved, table = renamed(language), {}
    for key, text in read(language, "errors").items():
        new = moved.get(key, key)
        table[new] = _with_fields(text, dict(zip(fields(key), fields(new))))
    write(language, "errors", table)


def drop(language: str) -> None:
    """Take out what is `left_over`."""
    gone = left_over(language)
    write(language, "errors", {k: text for k, text in read(language, "errors").items() if k not in gone})


def _with_fields(text, changed):
    out = ""
    for part, name, spec, conversion in string.Formatter().parse(text):
        out += part.replace("{", "{{").replace("}", "}}")
        if name is not None:
            old = (name, conversion or "", spec)
            name, conversion, spec = changed.get(old, old)
            out += "{" + name + ("!" + conversion if conversion else "") + (":" + spec if spec else "") + "}"
    return out


def write(language: str, name: str, values: dict) -> None:
    """Write a language's file."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (LOCALES / language / f"{name}.json").write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> None:
    """See above."""
    if "COMFYUI_PATH" in os.environ:
        nodes, words = nodes_of(load()), read("en", "main")
        write("en", "nodeDefs", {name: texts(node) for name, node in nodes.items()})
        words["fewstep"]["choices"] = choices_of(nodes.values())
        write("en", "main", words)
    for language in languages():
        if "--renamed" in arguments:
            rename(language)
        if "--dropped" in arguments:
            drop(language)
        for name in ("nodeDefs", "main"):
            for key in leaves(read("en", name)).keys() - leaves(read(language, name)).keys():
                print(f"{language}/{name}.json lacks {key}")
        for key, where in lacking(language).items():
            print(f"{language}/errors.json lacks {key!r} of {where}")
        for key in left_over(language):
            print(f"{language}/errors.json has {key!r}, which nothing says")
        for key, text in read(language, "errors").items():
            if set(fields(key)) != set(fields(text)):
                print(f"{language}/errors.json has other fields than {key!r}: {text!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
