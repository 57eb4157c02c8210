"""The shipped templates and blueprints as a user meets them: opened by the frontend, run from its button."""

import json

import pytest
from comfy_server import ROOT
from frontend import FOLDER, TEMPLATES

pytestmark = pytest.mark.browser
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.json"))
SENT = "async () => (await app.graphToPrompt()).output"
LOADED = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
  .filter((widget) => widget.value === undefined || Number.isNaN(widget.value))
  .map((widget) => `${node.type}.${widget.name}`))"""


BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
# a blueprint between the demo teacher, an empty latent and a preview: what would be queued
WIRED = """async (blueprint) => {
  await app.loadGraphData(blueprint);
  const node = app.graph.nodes[0];
  const add = (type) => {
    const made = LiteGraph.createNode(type);
    app.graph.add(made);
    return made;
  };
  const [teacher, latent, preview] = ["FewstepLoadDemoTeacher", "EmptyLatentImage", "PreviewImage"].map(add);
  for (const [i, { name }] of node.inputs.entries()) {
    const slot = { model: 0, vae: 1, positive: 2, negative: 3 }[name];
    if (slot !== undefined) teacher.connect(slot, node, i);
    if (name.startsWith("latent")) latent.connect(0, node, i);
  }
  node.connect(0, preview, 0);
  return (await app.graphToPrompt()).output;
}"""


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_listed_and_can_be_queued(front, path):
    listed = [entry["name"] for entry in front.server.get("/global_subgraphs").values()]
    assert path.stem in listed
    front.open(**{"Comfy.VueNodes.Enabled": False})
    sent = front.page.evaluate(WIRED, json.loads(path.read_text()))
    reply = front.server.post("/prompt", {"prompt": sent})
    assert "prompt_id" in reply and not reply["node_errors"], reply
    front.server.post("/queue", {"clear": True})
    front.server.post("/interrupt", {})
    types = {node["class_type"] for node in sent.values()}
    assert types > {"FewstepLoadDemoTeacher", "EmptyLatentImage", "PreviewImage", "SamplerCustom"}


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
