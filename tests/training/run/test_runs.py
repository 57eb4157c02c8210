"""The list of runs: what is read from disk, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from fewstep.training.reports.pictures import column, png
from fewstep.training.run import job as jobs
from fewstep.training.run import runs
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import STATE, Job, folder_name
from fewstep.training.run.run import Run
from fewstep.training.run.status import PREVIEWS, STATUS
from fewstep.training.trajectories import folders
from tiny import Tiny


def made(root, seed, updates=3, started=None):
    """A finished run in a folder of its own; returns the folder."""
    run = Run(
        Tiny(), DistilConfig(updates=updates, batch=2, images=8, image_steps=8, steps=2, rank=2, seed=seed)
    )
    folder = root / folder_name(run.config, {"base": "tiny"})
    with Job(folder, run, {"base": "tiny"}) as job:
        job.notes.update(name=f"run {seed}", started_at=started or seed)
        for _ in job.progress():
            pass
    run.close()
    return folder


def test_runs_are_listed_newest_first_with_what_they_reached(tmp_path):
    assert runs.listing(tmp_path) == runs.listing(tmp_path / "none") == []
    folders = [made(tmp_path, seed) for seed in (1, 2)]
    (tmp_path / "strange").mkdir()
    (tmp_path / ("0" * 24)).mkdir()
    found = runs.listing(tmp_path)
    assert [run["name"] for run in found] == ["run 2", "run 1"] and [run["id"] for run in found] == [
        f.name for f in folders[::-1]
    ]
    one = found[0]
    assert one["state"] == "finished" and (one["done"], one["updates"], one["steps"]) == (3, 3, 2)
    assert one["loss"] > 0 and one["fidelity"] > 0 and one["previews"] == [] and one["resumable"] is False
    json.dumps(found, allow_nan=False)


def test_a_run_that_was_cut_off_is_paused_and_a_damaged_status_is_left_out(tmp_path):
    folder = made(tmp_path, 1)
    status = json.loads((folder / STATUS).read_text())
    (folder / STATUS).write_text(json.dumps({**status, "state": "running"}))
    assert runs.listing(tmp_path)[0]["state"] == "paused"
    for text in ("", "[]", "{}", '{"notes": 3, "state": 1}', "\x00"):
        (folder / STATUS).write_text(text)
        assert runs.listing(tmp_path) == []


def test_a_run_of_another_process_runs_elsewhere_as_far_as_it_says(tmp_path):
    folder = made(tmp_path, 1)
    status = json.loads((folder / STATUS).read_text())
    under_way = {"state": "running", "stage": "sampling the teacher", "step": 2, "seconds_left": 5.0}
    (folder / STATUS).write_text(json.dumps({**status, **under_way}))
    with folders.lock(folder, alone=True):
        (found,) = runs.listing(tmp_path)
        assert {**found, **under_way, "state": "elsewhere"} == found
        with pytest.raises(RuntimeError, match="under way in another process"):
            runs.rename(folder, "other")
    assert runs.listing(tmp_path)[0]["state"] == "paused"


def test_a_run_that_is_deleted_is_nobody_elses_until_it_is_gone(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    folder, held = made(tmp_path, 1), []

    def watched(remove):
        def removing(path, *args, **options):
            if Path(path) in (folder, folder / ".lock"):
                held.append(folders.in_use(folder))
            return remove(path, *args, **options)

        return removing

    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    assert jobs.delete(folder) and not folder.exists() and held == [True]


def test_a_run_is_deleted_where_the_system_has_no_such_locks(tmp_path, monkeypatch):
    folder = made(tmp_path, 1)
    monkeypatch.setattr(folders, "fcntl", None)  # as on Windows
    assert jobs.delete(folder) and not folder.exists() and not jobs.delete(folder)


def test_a_failed_run_says_why_and_forgets_it_when_it_goes_on(tmp_path):
    def job():
        run = Run(Tiny(), DistilConfig(updates=4, batch=2, images=8, image_steps=8, steps=2, rank=2))
        return Job(tmp_path / folder_name(run.config, {}), run, {})

    with pytest.raises(RuntimeError, match="the card fell out"), job() as failed:
        for _ in failed.progress():
            if failed.run.done == 2:
                raise RuntimeError("the card fell out")
    found = runs.listing(tmp_path)[0]
    assert found["state"] == "failed" and found["error"] == "the card fell out" and found["done"] == 2
    with job() as again:
        assert again.resumed == 2
        list(again.progress())
    found = runs.listing(tmp_path)[0]
    assert found["state"] == "finished" and found["error"] is None


@pytest.mark.parametrize(
    "name", ["", "..", "../..", "0" * 24, "0" * 23, "/etc/passwd", "a/b", "0" * 10_000, "\x00", "*"]
)
def test_only_ids_of_runs_that_are_there_are_found(tmp_path, name):
    made(tmp_path, 1)
    (tmp_path / ("0" * 24)).mkdir()  # there, but no run
    with pytest.raises(LookupError, match="There is no run"):
        runs.find(tmp_path, name)


def test_previews_are_found_by_number_alone(tmp_path):
    folder = made(tmp_path, 1)
    assert runs.find(tmp_path, folder.name) == folder
    (folder / PREVIEWS).mkdir()
    for name in ("teacher", "10", "2", "x", "3.5"):
        (folder / PREVIEWS / f"{name}.png").write_bytes(png(column(torch.zeros(2, 3, 8, 8))))
    assert runs.previews(folder) == [2, 10]
    assert runs.preview(folder, "teacher").name == "teacher.png" and runs.preview(folder, "2").name == "2.png"
    for name in ("before", "3", "x", "3.5", "../status", "..", "", "²", "9" * 400):
        with pytest.raises(LookupError, match="no pictures"):
            runs.preview(folder, name)


def test_curves_come_from_the_state_and_are_few_and_finite(tmp_path):
    folder = made(tmp_path, 1, updates=5)
    found = runs.curves(folder)
    assert [x for x, _ in found["loss"]] == [1, 2, 3, 4, 5] and found["updates"] == 5
    assert [x for x, _ in found["fidelity"]][-1] == 5
    (folder / STATE).write_bytes(b"broken")
    assert runs.curves(folder) == {"loss": [], "fidelity": [], "updates": 0}
    points = [(n, math.sin(n) + (1000 if n == 7777 else 0)) for n in range(100_000)]
    points[5] = 5, math.nan
    shown = runs.shown(points, [])
    assert len(shown["loss"]) <= runs.MOST_POINTS and shown["updates"] == 99_999
    assert max(y for _, y in shown["loss"]) > 999 and [x for x, _ in shown["loss"]] == sorted(
        x for x, _ in shown["loss"]
    )
    json.dumps(shown, allow_nan=False)
