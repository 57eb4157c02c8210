"""Plots on nodes, in both renderers of the frontend."""

import pytest

pytestmark = pytest.mark.browser
SCHEDULE, SAMPLER, INSPECT = 2, 3, 4  # nodes of the templates


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_curve_follows_its_widgets_before_anything_runs(front, vue):
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": vue})
    page = front.page
    before = front.plot(SCHEDULE), front.plot(SAMPLER)
    front.press_more(SCHEDULE, "steps")
    page.wait_for_function(
        "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'steps').value === 5", arg=SCHEDULE
    )
    page.wait_for_timeout(1000)
    after = front.plot(SCHEDULE), front.plot(SAMPLER)
    # the sampler's plot is of the steps that it is given
    assert before[0] != after[0] and before[1] != after[1]
    drawn = page.locator(".fewstep-nodeplot canvas").first
    assert drawn.is_visible() and drawn.bounding_box()["height"] > 60
    front.shot(f"curve_{'vue' if vue else 'canvas'}")


def test_inspect_shows_what_it_found(front):
    """Bars of weights: first how churn moves them, after a run the wired sampler's own."""
    front.open("how_many_steps", height=800, **{"Comfy.VueNodes.Enabled": False})
    page, before = front.page, front.plot(INSPECT)
    slider = page.locator(".fewstep-nodeplot input[type=range]").first
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(1000)
    moved = front.plot(INSPECT)
    front.shot("inspect_before")
    assert moved != before
    entry = front.queue()
    assert entry["status"]["status_str"] == "success", entry["status"]
    page.wait_for_timeout(2000)
    assert front.plot(INSPECT) not in (before, moved)
    page.keyboard.press("PageDown")
    # wide enough for the canvas to write words in
    page.set_viewport_size({"width": 2000, "height": 1120})
    page.evaluate("app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    front.picture("graph")
