"""The scripts do nothing when they are loaded, as ComfyUI does with each, and import nothing of the host."""

import re

from .plots import JS, node

ENTRY = "fewstep.js"  # the one that registers the pack
HOST = {"../../scripts/app.js", "../../scripts/api.js"}
ALLOWED = {  # room: those that it may import
    "maths": set(),
    "charts": set(),
    "graph": {"maths"},
    "plots": {"charts", "graph", "maths"},
    "panel": {"charts", "graph"},
}
SHARED = {"dom.js", "names.js", "text.js"}


def modules():
    return sorted(path for path in JS.rglob("*.js"))


def imports(path):
    return re.findall(
        r'^(?:import|export)\b[^"]*?from "([^"]+)";', path.read_text(encoding="utf-8"), re.MULTILINE
    )


def test_modules_load_without_a_page(tmp_path):
    names = [path.relative_to(JS).as_posix() for path in modules() if path.name != ENTRY]
    found = node(
        tmp_path,
        """
const told = {};
for (const name of data) told[name] = Object.keys(await import(`./js/${name}`)).length;
answer(told);
""",
        names,
    )
    assert len(names) > 30 and list(found) == names and all(found.values())


def test_only_the_entry_imports_the_host():
    def leaves(path, name):
        return not (path.parent / name).resolve().is_relative_to(JS)

    outside = {path.name: [name for name in imports(path) if leaves(path, name)] for path in modules()}
    assert set(outside.pop(ENTRY)) == HOST
    assert not any(outside.values())


def test_rooms_import_only_what_they_may():
    breaches = []
    for path in modules():
        room = path.parent.name
        for name in imports(path):
            to = (path.parent / name).resolve().relative_to(JS) if room in ALLOWED else None
            if to and to.parts[0] not in {room, *ALLOWED[room], *SHARED}:
                breaches.append((path.name, name))
    assert breaches == []
