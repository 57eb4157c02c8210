"""The other faces of quality on the panel: distance of distributions and diversity, with their intervals."""

import pytest

pytestmark = pytest.mark.browser
DISTANCE = [[0, 0.31, 0.2, 0.42], [60, 0.06, 0.031, 0.089], [120, 0.041, 0.022, 0.06]]
DIVERSITY = [[0, 0.72, 0.6, 0.84], [60, 0.88, 0.8, 0.96], [120, 0.93, 0.86, 1.0]]
DRAWN = """() => {
  const canvas = document.querySelector(".fewstep-canvas");
  return canvas.width ? canvas.toDataURL() : "";
}"""
TIP = ".fewstep-tip"


@pytest.mark.parametrize("locale, words", [("en", "distribution 0.041 (0.022–0.060)"), ("zh", "分布 0.041")])
def test_distance_and_diversity_are_told_and_drawn_with_intervals(front, old_runs, locale, words):
    old_runs(1, distance=DISTANCE, diversity=DIVERSITY, judged_by="distance", kept=120, best=0.4, before=0.3)
    front.open(height=1000, **{"Comfy.Locale": locale})
    front.open_tab()
    page = front.page
    fact = page.locator(".fewstep-fact-distance dd")
    fact.wait_for()
    assert fact.text_content() == "0.041 (0.022–0.060)"
    assert page.locator(".fewstep-fact-diversity dd").text_content() == "93 % (86 %–100 %)"
    verdict = page.locator(".fewstep-verdict").text_content()  # by the distance, though RMSE rose
    assert "0.041" in verdict and "0.31" in verdict and "%" not in verdict
    seen = set()
    for face in ("distance", "diversity"):
        page.locator(".fewstep-faces").select_option(face)
        page.wait_for_function(f"(before) => !before.includes(({DRAWN})())", arg=list(seen))
        page.wait_for_timeout(500)
        seen.add(page.evaluate(DRAWN))
        front.shot(f"faces_{face}_{locale}")
    assert len(seen) == 2
    page.locator(".fewstep-faces").select_option("distance")
    page.locator(".fewstep-canvas").focus()
    page.keyboard.press("End")
    page.wait_for_function("(place) => document.querySelector(place)?.textContent", arg=TIP)
    assert words in page.locator(TIP).text_content()
