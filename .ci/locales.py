"""What there is to translate. COMFYUI_PATH=/path/to/ComfyUI python .ci/locales.py writes
locales/en/nodeDefs.json from the nodes' own schemas and lists what other languages lack.
"""

import ast
import asyncio
import functools
import itertools
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCALES = ROOT / "locales"
RAISED = {
    "ValueError",
    "TypeError",
    "OSError",
    "MemoryError",
    "RuntimeError",
    "ArithmeticError",
    "LookupError",
}
# raise for the panel, which has words for their codes
ROUTES = {"nodes/server/routes.py", "nodes/comfy/model_info.py", "training/run/runs.py"}


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


def sources():
    """The files that the nodes import, directly or through others."""
    seen, left = set(), sorted((ROOT / "nodes").rglob("*.py"))
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            left += [
                f
                for node in ast.walk(_tree(path))
                if isinstance(node, ast.ImportFrom) and node.level
                for f in _imported(path, node)
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
    ]
    return [f for f in found if f.is_file() and ROOT in f.parents]


@functools.cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def templates(node):
    """The texts that an expression can be, each value as {}; none for an expression that says nothing itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)]
    if isinstance(node, ast.IfExp):
        return templates(node.body) + templates(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [t for value in node.values for t in templates(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = templates(node.left), templates(node.right)
        return [a + b for a, b in itertools.product(left or ["{}"], right or ["{}"])] if left or right else []
    return []


def said():
    """{template: where} of all that the nodes raise or say on themselves."""
    found = {}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(_tree(path)) if name not in ROUTES else ():
            call = node.exc if isinstance(node, ast.Raise) else node
            spoken = (
                isinstance(node, ast.Raise)
                and getattr(getattr(call, "func", None), "id", None) in RAISED
                and call.args[:1]
            )
            spoken = (
                spoken
                or isinstance(node, ast.Call)
                and ast.unparse(node.func) == "show.say"
                and node.args[1:2]
            )
            for text in templates(spoken[0]) if spoken else ():
                if any(c.isalpha() for c in text.replace("{}", "")):
                    found.setdefault(text, f"{name}:{node.lineno}")
    return found


def phrases():
    """Every text in those files: what a message's values may be."""
    return {text for path in sources() for node in ast.walk(_tree(path)) for text in templates(node)}


def read(language, name):
    """A language's file; empty where there is none."""
    path = LOCALES / language / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def leaves(tree, before=""):
    """{dotted key: text} of a tree of texts."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def languages():
    return sorted(path.name for path in LOCALES.iterdir() if path.is_dir() and path.name != "en")


def main():
    made = {name: texts(node) for name, node in nodes_of(load()).items()}
    (LOCALES / "en" / "nodeDefs.json").write_text(
        json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    for language in languages():
        for name in ("nodeDefs", "main"):
            for key in leaves(read("en", name)).keys() - leaves(read(language, name)).keys():
                print(f"{language}/{name}.json lacks {key}")
        for text, where in said().items():
            if text not in read(language, "errors"):
                print(f"{language}/errors.json lacks {text!r} of {where}")


if __name__ == "__main__":
    main()
