"""What is looked at of a run that is over: verdict, what is kept, settings, pictures, one's own prompt."""

import shutil

import pytest

pytestmark = pytest.mark.browser
CLICK = "Make this model few-step"
LOADED = "(place) => [...document.querySelectorAll(place)].every((image) => image.naturalWidth > 0)"


@pytest.fixture
def finished(front):
    """A short run that is over, shown in the panel."""
    front.open("sample_in_4_steps", height=1400, **{"Comfy.VueNodes.Enabled": False})
    front.make_small(quality="quick", updates=12, batch=2, name="looked at")
    front.open_tab()
    front.button(CLICK).click()
    front.wait_for_run("looked at", "finished", updates=12)
    front.wait_for_queue()
    return front


def unfold(page, key):
    page.locator(f".fewstep-fold-{key} > summary").click()


def test_a_run_that_is_over_is_judged_and_opened(finished):
    page = finished.page
    run = next(run for run in finished.server.get("/fewstep/runs")["runs"] if run["name"] == "looked at")
    gain = run["best"] < run["before"]
    verdict = page.locator(".fewstep-verdict").text_content()
    assert ("nearer to the teacher" in verdict and "No gain" not in verdict) == gain
    assert page.locator(".fewstep-details .fewstep-chip").text_content() == (
        "finished" if gain else "no gain"
    )
    assert (
        f"Update {run['kept']}, the one that is kept" in page.locator(".fewstep-slider-label").text_content()
    )
    assert page.locator(".fewstep-column figcaption").all_text_contents()[2] == "LoRA"
    assert page.get_by_text("looked at: finished.").count()  # the host's notice

    unfold(page, "settings")
    settings = page.locator(".fewstep-fold-settings")
    settings.locator("dd").first.wait_for()
    shown = dict(zip(settings.locator("dt").all_text_contents(), settings.locator("dd").all_text_contents()))
    assert shown["Updates"] == "12" and shown["Batch"] == "2" and float(shown["Learning rate"]) > 0

    unfold(page, "sample")
    page.locator(".fewstep-fold-sample").get_by_role("button").click()
    page.locator(".fewstep-sampled img").first.wait_for(timeout=120_000)
    page.wait_for_function(LOADED, arg=".fewstep-sampled img")

    unfold(page, "files")
    files = page.locator(".fewstep-fold-files")
    files.get_by_role("button", name="Export a copy").click()
    files.locator(".fewstep-message").filter(has_text="Saved looked at_").wait_for()
    finished.shot("more")

    page.locator(".fewstep-picture-link").first.click()
    dialog = page.locator("dialog.fewstep-large")
    dialog.wait_for()
    page.wait_for_function(LOADED, arg="dialog.fewstep-large img")
    finished.shot("large")
    dialog.locator("select").first.select_option("teacher")
    page.wait_for_function("() => document.querySelector('.fewstep-over').src.endsWith('/teacher')")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_two_runs_are_compared(finished, old_runs):
    page, root = finished.page, finished.server.base / "user" / "fewstep" / "runs"
    pictures = next(root.glob("*/previews"))
    old_runs(2)
    for folder in root.iterdir():
        if not (folder / "previews").exists():
            shutil.copytree(pictures, folder / "previews")
    finished.reload()
    finished.open_tab()
    finished.wait_for_run("looked at", "finished", updates=12)
    unfold(page, "compare")
    select = page.locator(".fewstep-fold-compare select")
    assert select.locator("option").count() >= 2
    select.select_option(index=1)
    page.locator(".fewstep-other").wait_for()
    assert page.locator(".fewstep-other .fewstep-column").count() == 3
    finished.shot("compared")
