"""The plot modules do nothing when they are loaded, which ComfyUI does with every script, and import nothing of the host."""

from fewstep.tests.js.plots import JS, node


def test_modules_load_without_a_page(tmp_path):
    names = sorted(path.name for path in (JS / "plots").glob("*.js"))
    found = node(tmp_path, """
const told = {};
for (const name of data) told[name] = Object.keys(await import(`./js/plots/${name}`)).length;
answer(told);
""", names)
    assert len(names) > 10 and list(found) == names and all(found.values())
    assert not [name for name in names if "scripts/a" in (JS / "plots" / name).read_text(encoding="utf-8")]
