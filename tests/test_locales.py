"""Every text in every language: the panel's keys as the scripts use them, the nodes' names, help pages, and
what Python says.
"""

import ast
import builtins
import importlib.util
import json
import re
from pathlib import Path

import pytest
from fewstep.diffusion.paths import PATHS
from fewstep.training import methods

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("fewstep_locales", ROOT / ".ci" / "locales.py")
locales = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locales)

LANGUAGES = locales.languages()
FILES = ("main", "nodeDefs", "commands")
HOLE = re.compile(r"\{(\w*)[^{}]*\}")
CJK = re.compile("[\u4e00-\u9fff]")
KEY = re.compile(r"""["'`]((?:panel|graph|plots|nodes)\.[^"'`]*?)(?:_?\$\{[^}]*\}([^"'`]*))?["'`]""")
ROUTES = ROOT / "nodes" / "server" / "routes.py"
FILE_NAME = re.compile(r"\.(js|css)$")
# words that scripts look up by what the server says; the first three are the server's
DYNAMIC = {
    "panel.methods.": methods.names(task=None),
    "panel.errors.": sorted(
        {*re.findall(r'code="([\w-]+)"', ROUTES.read_text(encoding="utf-8")), "unknown-run"}
    ),
    "panel.states.": ("sampling", "running", "elsewhere", "paused", "stopped", "finished", "failed"),
    "panel.stages.": ("sampling the teacher", "training"),
    "nodes.zero.": ("auto", "off", "all"),
    "plots.model.": ("flow", "demo", "edm", "sd", "file", "run", "assumed"),
}
FREE = (
    "choices.",
    "plots.signal_",
    "plots.noise_",
    "panel.buttons.",
    "panel.done.",
    "panel.facts.",
    "panel.hints.",
    "panel.columns.",
)
# what a Chinese message may quote that is neither on a node nor in the panel: nodes of ComfyUI by its own
# names for them
OF_THE_HOST = {
    "条件合并",
    "LoRA加载器（仅模型）",
    "设置Latent噪波遮罩",
    "加载CLIP",
    "Checkpoint加载器（简易）",
}
SAME = {
    "Fewstep",
    "Reflow",
    "Latent",
    "VAE",
    "CFG",
    "CLIP",
    "LoRA",
    "Rank",
    "Sigmas",
    "rho",
    "alpha",
    "beta",
    "gamma",
    "churn",
    # choices that are names
    *("GB", "AYS", "SD", "SDXL", "SVD", "TCD", "heun", "karras", "fp", "bf", "adamw", "bit"),
}


def texts(language, name):
    return locales.leaves(locales.read(language, name))


def foreign(text):
    """The words of a text without Chinese that are not the same everywhere."""
    return set() if CJK.search(text) else set(re.findall("[A-Za-z]{2,}", HOLE.sub("", text))) - SAME


def panel(language):
    return {
        key.removeprefix("fewstep."): text
        for key, text in texts(language, "main").items()
        if key.startswith("fewstep.")
    }


def scripts():
    return {str(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / "js").rglob("*.js"))}


def used():
    """(keys that scripts name, beginnings of keys whose ends they work out)."""
    whole, beginnings = set(), set(DYNAMIC)
    for text in scripts().values():
        for match in KEY.finditer(text):
            key, computed = match[1], "${" in match[0]
            if (
                computed
                and key.count(".") >= 1
                and key.strip(".") not in ("panel", "graph", "plots", "nodes")
            ):
                beginnings.add(key)
            elif not computed and not FILE_NAME.search(key):
                whole.add(key)
    return whole, beginnings | set(FREE)


def test_there_is_chinese():
    assert LANGUAGES == ["zh"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_files_have_the_same_keys_and_values(language, name):
    english, theirs = texts("en", name), texts(language, name)
    assert theirs.keys() ^ english.keys() == set()
    assert [
        k
        for k, text in theirs.items()
        if not isinstance(text, str) or not text.strip() or text != text.strip()
    ] == []
    assert [k for k, text in english.items() if not isinstance(text, str) or not text.strip()] == []
    if name == "main":
        assert [
            k for k in english if sorted(HOLE.findall(english[k])) != sorted(HOLE.findall(theirs[k]))
        ] == []


@pytest.mark.parametrize("name", FILES)
def test_chinese_is_chinese(name):
    assert {k: odd for k, text in texts("zh", name).items() if (odd := foreign(text))} == {}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_names_have_no_sign_that_the_frontend_reads_as_code(language):
    """Names and descriptions are compiled as vue-i18n messages; tooltips are taken as they are."""
    assert [
        k
        for k, text in texts(language, "nodeDefs").items()
        if not k.endswith("tooltip") and re.search(r"[{}|@]", text)
    ] == []


def test_methods_are_called_by_their_titles():
    called = {name: panel("en")[f"panel.methods.{name}"] for name in methods.names(task=None)}
    assert called == {name: methods.get(name).title for name in called}


def test_every_key_of_the_scripts_is_there():
    known = panel("en")
    whole, beginnings = used()
    assert whole and {key for key in whole if key not in known} == set()
    assert {begun for begun in beginnings if not any(key.startswith(begun) for key in known)} == set()
    assert {begun + name for begun, names in DYNAMIC.items() for name in names} - known.keys() == set()


def test_no_text_is_unused():
    whole, beginnings = used()
    assert {key for key in panel("en") if key not in whole and not key.startswith(tuple(beginnings))} == set()


def test_scripts_hold_no_other_texts():
    """Words of another alphabet in a script are texts that no language file has."""
    assert [
        name for name, text in scripts().items() if CJK.search(re.sub(r"\[[^]]*\]|//.*|\\u\w+", "", text))
    ] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(language):
    pages = {path.stem: path for path in (ROOT / "js" / "docs").glob("*.md")}
    assert set(pages) == set(locales.read("en", "nodeDefs"))
    for node, english in pages.items():
        page = (ROOT / "js" / "docs" / node / f"{language}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {locales.read(language, 'nodeDefs')[node]['display_name']}\n"), node
        assert CJK.search(page.split("\n", 1)[1]), node
        for part in ("\n\n", "\n- ", "\n  - ", "\n|"):  # paragraphs, items, rows
            assert page.count(part) == english.read_text(encoding="utf-8").count(part), (node, part)
    assert {path.parent.name for path in (ROOT / "js" / "docs").glob(f"*/{language}.md")} == set(pages)


# ---- what Python says --------------------------------------------------------------------------

FILES_OF_OURS = [
    path for room in ("diffusion", "training", "nodes") for path in sorted((ROOT / room).rglob("*.py"))
]
COMPOSED = (ast.JoinedStr, ast.BinOp)  # texts that are put together at run time
# nothing that a user could mend, no message at all, or what Python asks of `__getattr__`
NOT_OURS = {"NotImplementedError", "KeyboardInterrupt", "AssertionError", "AttributeError"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language):
    assert len(locales.said()) > 150
    assert locales.lacking(language) == {}
    assert locales.left_over(language) == []  # from a message that has changed


def test_words_that_fields_of_messages_hold_are_chinese_too():
    """Else lines are mixed: "classical，4 步，flow". Names that are the same everywhere stay."""
    words = {*methods.names(task=None), *PATHS, "classical", "fitted"}
    words |= {"sampling the teacher", "training"}
    table = locales.read("zh", "errors")
    assert {word for word in words if word not in table or foreign(table[word])} == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_field_of_a_message_is_told(language):
    """A text has the fields of its key and no others, in the same formats; each may be told twice."""
    for key, text in locales.read(language, "errors").items():
        assert set(locales.fields(text)) == set(locales.fields(key)), key
        assert text.strip() and not foreign(text), key


def test_every_key_is_a_text_and_has_the_fields_that_it_is_given():
    """A key that is put together at run time would have no text in any language."""
    composed, odd = [], {}
    for call, where in locales.messages(FILES_OF_OURS):
        if any(isinstance(choice, COMPOSED) for choice in locales.choices(call.args[0])):
            composed.append(where)
        given = {keyword.arg for keyword in call.keywords}
        given -= {"code", "status"} if locales.called(call) == "Refusal" else set()
        for key in locales.keys_of(call):
            if None not in given and {name for name, *_ in locales.fields(key)} != given:
                odd[where] = key
    assert composed == [] and odd == {}


def plain_raises():
    """Where Python's own exceptions are raised with a message: what no other language has words for."""
    found = []
    for path in FILES_OF_OURS:
        for node in ast.walk(locales.tree(path)):
            raised = node.exc if isinstance(node, ast.Raise) else None
            name = getattr(raised.func, "id", "") if isinstance(raised, ast.Call) and raised.args else ""
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, BaseException) and name not in NOT_OURS:
                found.append(f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {name}")
    return found


def test_all_that_is_raised_is_a_fault():
    assert plain_raises() == []


def plain_lines():
    """Where a node says a text that is put together, or none of a table: `show.say`, and its `ui` texts."""
    found = []
    for path in FILES_OF_OURS:
        for node in ast.walk(locales.tree(path)):
            lines = []
            if isinstance(node, ast.Call) and locales.called(node) == "say":
                lines = node.args[1:]
            elif isinstance(node, ast.Dict):
                keys = [getattr(key, "value", None) for key in node.keys]
                lines = [value for key, value in zip(keys, node.values) if key == "text"]
            for line in lines:
                parts = [
                    p for choice in locales.choices(line) for p in (choice, *getattr(choice, "elts", ()))
                ]
                if any(isinstance(part, (*COMPOSED, ast.Constant)) for part in parts):
                    found.append(f"{path.relative_to(ROOT).as_posix()}:{line.lineno}")
    return found


def test_all_that_a_node_says_is_a_message():
    assert plain_lines() == []


@pytest.mark.parametrize("file", ["errors", "main", "nodeDefs"])
def test_what_a_chinese_text_quotes_is_on_the_screen(file):
    nodes = locales.read("zh", "nodeDefs")
    shown = {
        part["name"]
        for node in nodes.values()
        for group in ("inputs", "outputs")
        for part in node[group].values()
    }
    shown |= {node["display_name"] for node in nodes.values()} | set(panel("zh").values()) | OF_THE_HOST
    quoted = {q for text in texts("zh", file).values() for q in re.findall("“([^”{]+)”", text)}
    allowed = {"名称: 数值"}
    assert quoted - shown - allowed == set()


@pytest.mark.parametrize(
    "code, wanted",
    [
        ('BadValue("a" "b")', ["ab"]),
        ('Message("{a} {b:g}", a=1, b=2.0)', ["{a} {b:g}"]),
        ('faults.Failed("a {x!r}" if x == y - 1 else "b" if y else "c", x=x)', ["a {x!r}", "b", "c"]),
        ('Refusal("a", code="b", status=404)', ["a"]),
        ("BadFile(message)", []),
    ],
)
def test_keys_are_read_from_code(code, wanted):
    call = ast.parse(code).body[0].value
    assert locales.called(call) in locales.kinds() and locales.keys_of(call) == wanted


def test_a_text_moves_to_a_key_whose_fields_have_other_names():
    changed = dict(zip(locales.fields("{a:g} of {b}"), locales.fields("{got} of {name!r}")))
    assert locales._with_fields("{b}的 {a:g}，{{{b}}}", changed) == "{name!r}的 {got}，{{{name!r}}}"
    assert locales._bare("{a:g} of {b}") == locales._bare("{got} of {name!r}") != locales._bare("{a} or {b}")


def test_json_files_are_written_alike():
    for path in (ROOT / "locales").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n", path.name
