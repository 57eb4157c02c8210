"""What ends one process ends all, by one message and with the state whole, which goes on with any number."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file


def _whole(started, folder, **asked):
    """What the run gives that nothing has cut off."""
    assert started("job", 1, folder, **asked) == [0]
    return list(load_file(folder / "result.0").values())


@pytest.fixture(scope="module")
def alone(started, tmp_path_factory):
    return _whole(started, tmp_path_factory.mktemp("alone"))


def _near(tensors, others):
    return max(float((a - b).abs().max()) for a, b in zip(tensors, others, strict=True)) < 1e-4


def test_a_state_of_two_goes_on_with_three_and_then_alone(started, tmp_path, alone):
    for world, last in ((2, 7), (3, 13), (1, None)):
        codes = started("job", world, tmp_path, last=last)
        assert codes == [130 if last else 0] * world
        status = json.loads((tmp_path / "status.json").read_text())
        assert status["state"] == ("paused" if last else "finished") and status["done"] == (last or 20)
    assert _near(load_file(tmp_path / "result.0").values(), alone)


@pytest.mark.parametrize(
    "victim,when",
    [(1, "sampling"), (1, "training"), (0, "training"), pytest.param(0, "sampling", marks=pytest.mark.slow)],
)
def test_a_killed_process_ends_the_others_by_name(started, said, tmp_path, alone, victim, when):
    begun = time.monotonic()
    codes = started("job", 3, tmp_path, kill=[victim, when])
    assert time.monotonic() - begun < 60
    assert codes[victim] == -9 and all(code == 2 for rank, code in enumerate(codes) if rank != victim)
    told = [text for text in said(tmp_path) if "gone without a word" in text]
    assert len(told) == 1 and f"Process {victim} of 3" in told[0] and told[0].count("fewstep") == 1
    if victim == 1:
        assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert started("job", 2, tmp_path) == [0, 0]  # the state is whole, and goes on
    assert _near(load_file(tmp_path / "result.1").values(), alone)


@pytest.mark.parametrize("victim,what", [(1, "a share"), (0, "the state")])
def test_a_process_killed_while_it_writes_leaves_the_rest_whole(started, said, tmp_path, victim, what):
    asked = {"settings": {"images": 20}}  # of which each samples a part
    codes = started("job", 2, tmp_path, kill=[victim, f"writing {what}"], told=True, **asked)
    assert codes[victim] == -9 and codes[1 - victim] == 2
    assert f"Process {victim} of 2" in said(tmp_path)[1 - victim]
    assert started("job", 2, tmp_path, **asked) == [0, 0]
    whole = _whole(started, tmp_path / "whole", **asked)
    assert _near(load_file(tmp_path / "result.0").values(), whole)


@pytest.mark.parametrize("what,words", [("memory", "out of memory"), ("disk", "No space left")])
@pytest.mark.parametrize("victim", [0, 1])
def test_what_fails_in_one_is_said_once(started, said, tmp_path, victim, what, words):
    codes = started("job", 2, tmp_path, fail=[victim, what])
    assert codes == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and lines[0].count("\n") == 0
    assert f"Process {victim} of 2" in lines[0] and words in lines[0].lower().replace("no space", "No space")
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and status["done"] >= 3
    assert words in json.dumps(status["error"])


def test_a_process_that_is_told_to_end_pauses_all(started, said, tmp_path, alone):
    codes = started("job", 3, tmp_path, tell=1)
    assert codes == [130, 143, 130] and not any("Traceback" in text for text in said(tmp_path))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "paused"
    assert started("job", 1, tmp_path) == [0]
    assert _near(load_file(tmp_path / "result.0").values(), alone)


@pytest.mark.parametrize("pressed", [1, 3])
def test_ctrl_c_pauses_all_however_often_it_is_pressed(started, said, tmp_path, alone, pressed):
    assert started("job", 2, tmp_path, interrupt=pressed) == [130, 130]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and "stopped" in lines[0] and "Traceback" not in lines[0]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "paused" and status["done"] >= 4
    assert started("job", 1, tmp_path) == [0]
    assert _near(load_file(tmp_path / "result.0").values(), alone)


def test_a_disk_that_is_full_for_one_while_it_samples_ends_all_by_name(started, said, tmp_path):
    assert started("job", 2, tmp_path, full=1, settings={"images": 20}) == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and "Process 1 of 2" in lines[0] and "No space left" in lines[0]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_torchrun_starts_all_again_and_they_go_on_from_the_state(started, said, tmp_path, alone):
    codes = started("job", 2, tmp_path, kill=[1, "training"], again={"kill": [None, None]})
    assert codes == [[2, -9], [0, 0]]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "finished" and "Went on at update" in json.dumps(status["log"])
    assert _near(load_file(tmp_path / "result.0").values(), alone)


def test_an_adapter_that_drifts_is_found_and_named(started, said, tmp_path):
    codes = started("job", 2, tmp_path, drift=1, settings={"updates": 60})
    assert codes == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and "that of process 1" in lines[0] and "after 25 updates" in lines[0]


def test_processes_of_other_numbers_of_threads_stay_one_run(started, tmp_path):
    settings = {"updates": 60, "rank": 24}  # compared after 25 and 50
    assert started("job", 2, tmp_path, threads=True, settings=settings) == [0, 0]
    one, other = (load_file(tmp_path / f"result.{rank}") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_numbers_that_are_not_finite_in_one_alone_end_all_and_name_it(started, said, tmp_path):
    assert started("job", 3, tmp_path, nan=1) == [2, 2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and "10 updates in a row were not, of process 1 alone" in lines[0]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "of process {ranks} alone" in json.dumps(status["error"])


def test_memory_that_runs_out_in_one_process_halves_its_own_micro_batch(started, tmp_path, alone):
    assert started("job", 2, tmp_path, tight=1) == [0, 0]
    assert _near(load_file(tmp_path / "result.0").values(), alone)


# ---- trajectories ------------------------------------------------------------------------------


def _states(folder, world, rank):
    return load_file(folder / f"states.{world}.{rank}.safetensors")["states"]


def _calls(folder, world):
    return [json.loads((folder / f"calls.{world}.{r}.json").read_text())[0] for r in range(world)]


@pytest.mark.parametrize("apart", [False, True])
def test_trajectories_are_shared_out_and_are_the_same(started, tmp_path, apart):
    assert started("trajectories", 1, tmp_path, folders=[str(tmp_path / "one")]) == [0]
    folders = [str(tmp_path / (f"own{rank}" if apart else "all")) for rank in range(3)]
    assert started("trajectories", 3, tmp_path, folders=folders) == [0, 0, 0]
    alone, each = _states(tmp_path, 1, 0), _calls(tmp_path, 3)
    assert sum(each) == _calls(tmp_path, 1)[0] and max(each) < sum(each) / 2
    assert all(torch.equal(alone, _states(tmp_path, 3, rank)) for rank in range(3))
    names = [{f.name: f.read_bytes() for f in (tmp_path / p).rglob("0*.safetensors")} for p in folders]
    assert all(found == names[0] and len(found) == 7 for found in names)
    # more of them, by another number, and one shard damaged in one place: only what is missing is drawn
    damaged = next((tmp_path / folders[1]).rglob("00002.safetensors"))
    damaged.write_bytes(b"no shard")
    assert started("trajectories", 2, tmp_path, folders=folders[:2], count=30) == [0, 0]
    missing = 1 if apart else 2
    assert sum(_calls(tmp_path, 2)) == missing * _calls(tmp_path, 1)[0] // 7
    assert torch.equal(_states(tmp_path, 2, 1)[:26], alone)


def test_a_fit_of_three_processes_is_that_of_one(started, tmp_path):
    found = []
    for world in (1, 3):
        assert started("fit", world, tmp_path, trajectories=10) == [0] * world
        recipes = json.loads((tmp_path / f"recipe.{world}.json").read_text())
        found.append([json.loads(recipe) for recipe in recipes])
    for one, other in zip(*found):
        assert one["sigmas"] == pytest.approx(other["sigmas"], abs=1e-3)
        assert one["errors"] == pytest.approx(other["errors"], rel=1e-2)


def test_all_answer_for_a_teacher_that_one_asks(started, said, tmp_path):
    assert started("led", 2, tmp_path) == [0, 0], said(tmp_path)


# ---- what they have to agree on ----------------------------------------------------------------


@pytest.mark.parametrize(
    "asked,words",
    [
        ({"other": "settings"}, "the same settings, and process 1 on"),
        ({"other": "prompts"}, "the same prompts, and process 1 on"),
        ({"other": "version"}, "the same version of Fewstep, and process 1 on"),
        ({"other": "weights"}, "the same weights, and process 1 on"),
        ({"other": "encoder"}, "in process 1 it answers otherwise"),
        ({"apart": True, "shared": True}, "out must be a folder that all processes see"),
        ({"batch": 1}, "batch must be 2 or more for 2 processes, got 1"),
    ],
)
def test_what_differs_is_refused_by_name(started, said, tmp_path, asked, words):
    assert started("given", 2, tmp_path, **asked) == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and words in lines[0] and "Traceback" not in lines[0]


def test_what_does_not_differ_is_taken(started, tmp_path):
    assert started("given", 2, tmp_path, apart=True) == [0, 0]
    assert started("given", 2, tmp_path, shared=True) == [0, 0]
