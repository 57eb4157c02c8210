"""A run that another process is at: the panel says so and offers nothing that only that process can do."""

import json
import shutil

import pytest
from fewstep.training.run.status import STATUS
from fewstep.training.trajectories.folders import lock

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "locale, words, use", [("en", "running elsewhere", "Use it"), ("zh", "在别处运行", "使用")]
)
def test_a_run_of_another_process_is_shown_as_running_there(front, comfy, old_runs, locale, words, use):
    runs = comfy.base / "user" / "fewstep" / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of other tests on this server
    old_runs(1)
    (folder,) = runs.iterdir()
    status = json.loads((folder / STATUS).read_text())
    (folder / STATUS).write_text(json.dumps({**status, "state": "running", "stage": "training"}))
    with lock(folder):
        front.open(height=1000, **{"Comfy.Locale": locale})
        front.open_tab()
        chip = front.page.locator(".fewstep-chip").first
        chip.wait_for(timeout=15_000)
        front.shot(f"elsewhere_{locale}")
        assert chip.text_content() == words
        offered = front.page.locator(".fewstep-actions button:visible").all_text_contents()
        assert [text for text in offered if use not in text] == []
