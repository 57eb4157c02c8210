"""The numbers of a matching run on the panel: all are there, in both languages, and none is cut off."""

import shutil

import pytest

pytestmark = pytest.mark.browser

OURS = {
    "method": "phased-matching",
    "judged_by": "distance",
    "before": 0.448,
    "kept": 600,
    "distance": [[0, 0.448, 0.401, 0.502], [600, 0.225, 0.19, 0.262]],
    "diversity": [[0, 0.61, 0.55, 0.66], [600, 0.94, 0.89, 1.0]],
    "gap": 0.314,
    "cosine": 0.9551,
    "samples_per_second": 12.5,
    "memory": 7_730_941_132,
    "seen_in": "middle",
}
CUT = """() => [...document.querySelectorAll(".fewstep-fact dt, .fewstep-fact dd")]
  .filter((cell) => cell.offsetParent && cell.scrollWidth > cell.clientWidth + 1)
  .map((cell) => cell.textContent)"""


@pytest.mark.parametrize("vue", [True, False], ids=["vue", "canvas"])
@pytest.mark.parametrize(
    "locale, gap, cosine",
    [("en", "Score gap", "Score cosine"), ("zh", "评分差距", "评分余弦")],
    ids=["en", "zh"],
)
def test_the_facts_of_a_matching_run(front, comfy, old_runs, locale, gap, cosine, vue):
    shutil.rmtree(comfy.base / "user" / "fewstep" / "runs", ignore_errors=True)  # of other tests
    old_runs(1, **OURS)
    front.open(height=1200, **{"Comfy.Locale": locale, "Comfy.VueNodes.Enabled": vue})
    front.open_tab()
    facts = front.page.locator(".fewstep-facts")
    facts.get_by_text(gap).wait_for(timeout=15_000)
    front.shot(f"facts_{locale}_{'vue' if vue else 'canvas'}")
    shown = facts.locator(".fewstep-fact:visible").all_inner_texts()
    lines = [text.split("\n") for text in shown]
    assert [gap, "31 %"] in lines and [cosine, "0.96"] in lines, lines
    assert front.page.evaluate(CUT) == []
