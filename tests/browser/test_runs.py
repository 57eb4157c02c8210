"""A run as its user sees it: from one click to a picture in four steps."""

import pytest

pytestmark = pytest.mark.browser
CLICK = "Make this model few-step"
CURVES = """() => {
  const canvas = document.querySelector(".fewstep-canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.reduce((count, value, i) => count + (i % 4 === 3 && value > 0), 0);
}"""
SHOWN = ".fewstep-previews > .fewstep-grid .fewstep-picture"
PICTURES = f"""() => [...document.querySelectorAll("{SHOWN}")].map((image) =>
  image.complete && image.naturalWidth > 0 && image.checkVisibility() ? image.src : null)"""


def test_one_click_trains_and_a_reload_loses_nothing(front):
    front.open("sample_in_4_steps", height=1080, **{"Comfy.VueNodes.Enabled": False})
    front.make_small(quality="quick", updates=60, batch=4, name="emoji")
    front.open_tab()
    front.button(CLICK).click()
    front.wait_for_run("emoji", "sampling", "running")
    assert "FewstepDistil" in front.types() and front.page.evaluate("app.graph.groups.length") == 1
    front.shot("one_click")
    front.wait_for_run("emoji", "running", updates=1)
    front.reload()
    front.open_tab()
    front.wait_for_run("emoji", "running", "finished", updates=2)
    front.shot("after_reload")
    front.wait_for_run("emoji", "finished", updates=60)

    page = front.page
    page.wait_for_function(f"({CURVES})() > 500")
    page.wait_for_function(f"({PICTURES})().every(Boolean)")
    newest = page.evaluate(PICTURES)
    assert len(set(newest)) == 3
    slider = page.locator(".fewstep-slider")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function(f"(before) => ({PICTURES})()[2] && ({PICTURES})()[2] !== before", arg=newest[2])
    assert page.evaluate(PICTURES)[:2] == newest[:2]
    page.keyboard.press("End")
    front.wait_for_queue()


def test_pause_sample_resume_stop_and_use(front):
    front.open("sample_in_4_steps", **{"Comfy.VueNodes.Enabled": True})
    front.make_small(quality="quick", updates=5000, batch=2, name="steered")
    page = front.page
    page.locator('[data-testid="node-header-1"]').click(button="right")
    page.get_by_text(CLICK).click()
    front.open_tab()
    front.wait_for_run("steered", "running", updates=5)
    front.button("Pause").click()
    front.wait_for_run("steered", "paused")
    front.shot("paused")

    front.load("sample_in_4_steps")
    entry = front.queue()
    assert entry["status"]["status_str"] == "success" and len(front.images(entry)) == 4

    page.locator(".fewstep-row", has_text="steered").click()
    done = int(page.locator(".fewstep-fact-updates dd").inner_text().split()[0])
    front.button("Resume").click()
    front.wait_for_run("steered", "running", updates=done + 5)
    front.shot("resumed")
    front.button("Stop and keep").click()
    front.wait_for_run("steered", "stopped", updates=done + 5)

    front.button("Use it").click()
    page.get_by_text("are in the graph").wait_for()
    lora = page.locator(".fewstep-fact-lora dd").inner_text()
    loader = "app.graph.nodes.find((node) => node.type === 'FewstepLoadLora')"
    assert lora in page.evaluate(f"{loader}.widgets.map((widget) => widget.value)")
    entry = front.queue()
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(front.images(entry)) == 4 and all(path.stat().st_size > 500 for path in front.images(entry))
    front.shot("used")

    front.button("Delete").click()
    front.shot("delete_asks")
    page.locator(".fewstep-confirm").get_by_role("button", name="Delete").click()
    page.locator(".fewstep-row", has_text="steered").wait_for(state="hidden")
    assert (front.server.base / "models" / "loras" / lora).exists()
