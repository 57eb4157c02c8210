"""In the real ComfyUI: what all nodes have in common."""

import asyncio
import sys

import pytest
from comfy_server import ROOT

pytestmark = pytest.mark.comfy


def test_every_node_has_a_name_a_description_tooltips_and_a_help_page(host):
    nodes = {k: v for k, v in host.NODE_CLASS_MAPPINGS.items() if k.startswith("Fewstep")}
    assert len(nodes) == 22
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.display_name and schema.description and schema.category.startswith("Fewstep/"), node_id
        assert all(i.tooltip for part in schema.inputs for i in part.get_all()), node_id
        assert (ROOT / "js" / "docs" / f"{node_id}.md").stat().st_size > 200, node_id
        widgets = [i for i in schema.inputs if hasattr(i, "default") and not getattr(i, "advanced", False)]
        assert len(widgets) <= 8, node_id


@pytest.mark.parametrize("version, warned", [("0.25.9", True), ("0.26.0", False), ("1.0.0", False)])
def test_a_comfyui_that_is_too_old_is_named_at_the_start(host, monkeypatch, caplog, version, warned):
    import comfyui_version

    monkeypatch.setattr(comfyui_version, "__version__", version)
    root = host.NODE_CLASS_MAPPINGS["FewstepFit"].__module__.removesuffix(".nodes.fit")
    asyncio.run(sys.modules[root].comfy_entrypoint())
    assert [f"ComfyUI 0.26 or newer, this is {version}" in text for text in caplog.messages] == [
        True
    ] * warned
