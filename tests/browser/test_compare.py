"""Compare Few-Step as its user sees it: the verdict on the node, in both renderers and languages."""

import pytest

pytestmark = pytest.mark.browser
COMPARE = 3  # a node of the template
ALLOW = """([id, value]) => {
  app.graph.getNodeById(id).widgets.find((widget) => widget.name === "tolerance").value = value;
}"""
VERDICT = ".fewstep-nodeplot-verdict"


@pytest.mark.parametrize("vue, language", [(False, "en"), (True, "zh")], ids=["canvas", "vue-zh"])
def test_the_verdict_is_on_the_node_and_stays_over_a_reload(front, vue, language):
    front.open("how_many_steps", **{"Comfy.VueNodes.Enabled": vue, "Comfy.Locale": language})
    page = front.page
    assert page.locator(VERDICT).is_hidden()
    # another answer than a run before had, since the host keeps what that one said
    page.evaluate(ALLOW, [COMPARE, 0.21 if vue else 0.2])
    before = front.plot(COMPARE)
    entry = front.queue()
    assert entry["status"]["status_str"] == "success", entry["status"]
    verdict = page.locator(f"{VERDICT} strong")
    verdict.wait_for()
    found = entry["outputs"][str(COMPARE)]["fewstep"][0]
    assert verdict.inner_text() == found["verdict"][0]
    assert found["verdict"][0].startswith("够用：" if vue else "Enough: ") and found["enough"]
    assert front.plot(COMPARE) != before
    front.shot(f"compare_{'vue' if vue else 'canvas'}_{language}")
    front.reload()
    verdict.wait_for()
    assert verdict.inner_text() == found["verdict"][0]
