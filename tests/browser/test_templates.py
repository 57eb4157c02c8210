"""The shipped templates as a user meets them: opened by the frontend and run from its Run button."""

import pytest
from frontend import FOLDER, TEMPLATES

pytestmark = pytest.mark.browser
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.json"))
SENT = "async () => (await app.graphToPrompt()).output"
LOADED = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
  .filter((widget) => widget.value === undefined || Number.isNaN(widget.value))
  .map((widget) => `${node.type}.${widget.name}`))"""


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.parametrize("template", NAMES)
def test_a_template_loads_whole(front, template, vue):
    """Every widget has a value, and the server finds nothing to refuse in what would be queued."""
    front.open(template, **{"Comfy.VueNodes.Enabled": vue})
    assert front.page.evaluate(LOADED) == []
    sent = front.page.evaluate(SENT)
    choices = front.server.get("/object_info")
    for node in sent.values():
        groups = choices[node["class_type"]]["input"]
        known = {**groups.get("required", {}), **groups.get("optional", {})}
        missing = [name for name in groups.get("required", {}) if name not in node["inputs"]]
        assert missing == [], (node["class_type"], missing)
        for name, value in node["inputs"].items():
            limits = known.get(name, ["", {}])[-1]
            if isinstance(value, int | float) and isinstance(limits, dict) and "max" in limits:
                assert limits["min"] <= value <= limits["max"], (node["class_type"], name, value)


@pytest.mark.parametrize("template", NAMES)
def test_a_template_runs_from_its_button(front, template):
    """It ends with pictures and no message; training is cut short, nothing else is."""
    front.open(template, **{"Comfy.VueNodes.Enabled": False})
    front.make_small(quality="quick", updates=4, batch=2)
    entry = front.queue()
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    assert front.images(entry)


def test_the_host_loads_our_javascript_once(front):
    front.open()
    served = front.server.get("/extensions")
    ours = [path for path in served if path.endswith("/fewstep.js")]
    assert len(ours) == 1
    assert ours[0].startswith(f"/extensions/{FOLDER}/")
