"""A run that can't be lost: exact resumption, kills at any moment, and faults with the outcome that is
promised.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pkgutil
import random
import signal
import time

import children
import pytest
import safetensors.torch
import torch
from fewstep.training import methods
from fewstep.training.run import job as jobs
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import STATE, Job, load_state, save_state
from fewstep.training.run.run import Run
from fewstep.training.run.status import STATUS
from parts import ABOUT, SMALL, result, run, same
from tiny import Tiny


@pytest.mark.parametrize(
    "options",
    [{"method": m} for m in methods.names(task=None)]
    + [
        {"method": "reflow", "rounds": 3},
        {"times": "adaptive", "method": "windowed-reflow"},
        {"target": "ema", "between": 1},
        {"curriculum": True, "method": "consistency", "solver": "2m", "substeps": 2},
        {"micro": 3},
        {"checkpointing": True},
    ],
)
def test_a_run_in_parts_equals_a_run_at_once(tmp_path, options):
    whole = run(tmp_path / "whole", **options)
    for last in (1, 5, 9, 14):
        assert run(tmp_path / "parts", last, **options).done == last
        assert json.loads((tmp_path / "parts" / STATUS).read_text())["state"] == "paused"
    assert same(whole, run(tmp_path / "parts", **options))
    status = json.loads((tmp_path / "parts" / STATUS).read_text())
    assert (status["state"], status["done"], status["updates"]) == ("finished", 20, 20)
    assert status["step"] == status["total"] == 20 + whole.learners.first
    assert status["best"] == whole.probe.best.fidelity


def test_a_finished_run_is_taken_from_its_folder(tmp_path, monkeypatch):
    whole = run(tmp_path)
    monkeypatch.setattr(Run, "update", lambda self, *who: pytest.fail("trained again"))
    again = run(tmp_path)
    assert result(again)[1:] == result(whole)[1:]
    assert all(
        torch.equal(a, b) for a, b in zip(again.lora_tensors().values(), whole.lora_tensors().values())
    )


@pytest.mark.parametrize("method", ["matching", "phased-matching"])
def test_a_finished_run_that_is_opened_again_is_as_far_as_it_was(tmp_path, method):
    """Its state has the numbers of the other adapters, and none of their weights."""
    shown = ("step", "total", "skipped", "gap", "cosine")
    statuses = []
    for _ in range(3):
        again = run(tmp_path, method=method)
        status = json.loads((tmp_path / STATUS).read_text())
        trained = again.recipe().trained
        assert (trained["gap"], trained["cosine"]) == (status["gap"], status["cosine"])
        statuses.append([status[name] for name in shown])
    assert statuses[0][0] == statuses[0][1] == 20 + again.learners.first
    assert statuses[0] == statuses[1] == statuses[2]
    assert not any(name.startswith(("fake.", "real.")) for name in load_state(tmp_path / STATE)[0])


def test_cancelled_in_the_middle_of_an_update_or_measurement_it_goes_on_exactly(tmp_path):
    """The model itself raises, at each of many calls, as it does when a user cancels in ComfyUI."""
    whole = run(tmp_path / "whole")

    class Cancelled(Tiny):
        left = 0

        def __call__(self, *args):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__call__(*args)

    dice, teacher = random.Random(0), Cancelled()
    for _ in range(40):
        parts, teacher.left = Run(teacher, DistilConfig(**SMALL)), dice.randint(26, 40)
        try:
            with Job(tmp_path / "parts", parts, ABOUT, 0) as job:
                for _ in job.progress():
                    pass
            break
        except KeyboardInterrupt:
            pass
        finally:
            parts.close()
    assert same(whole, parts)


@pytest.fixture
def ctrl_c():
    """Python's own handler, also where the tests run in the background, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "where", ["torch.optim.AdamW.step", "torch.Tensor.lerp_", "fewstep.training.methods.times.Times.learn"]
)
def test_ctrl_c_while_an_update_takes_effect_waits_for_its_end(tmp_path, monkeypatch, ctrl_c, where):
    whole, left = run(tmp_path / "whole"), [5]
    name, attribute = where.rsplit(".", 1)
    owner = pkgutil.resolve_name(name)
    usual = getattr(owner, attribute)

    def interrupted(*args, **options):
        answer = usual(*args, **options)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return answer

    monkeypatch.setattr(owner, attribute, interrupted)
    assert 0 < run(tmp_path / "parts").done < whole.done
    assert left[0] <= 0 and signal.getsignal(signal.SIGINT) is ctrl_c
    assert same(whole, run(tmp_path / "parts"))


PROCESSES = multiprocessing.get_context("forkserver")  # each a fork of one that has PyTorch imported
PROCESSES.set_forkserver_preload(["torch"])


@contextlib.contextmanager
def program(folder, every=1, width=24, **changes):
    """The same run in a process of its own: (process, updates done as they are told)."""
    told, tell = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=children.told, args=(tell, folder, every, width, changes))
    process.start()
    tell.close()
    try:
        yield process, iter(told.recv, None)
    finally:
        process.kill()
        process.join()


def test_a_sigterm_saves_the_state_and_ends_the_process(tmp_path):
    with program(tmp_path, every=10**6, updates=4000) as (process, told):
        next(done for done in told if done >= 5)
        process.terminate()
        seen = []
        with contextlib.suppress(EOFError):
            seen.extend(told)
        process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    done = load_state(tmp_path / STATE)[1]["done"]
    assert done >= max(seen, default=5) and done < 4000
    assert json.loads((tmp_path / STATUS).read_text())["state"] == "paused"


def test_states_are_written_by_time_and_take_a_small_part_of_it(tmp_path, monkeypatch):
    """An update takes a second, a state 10: two minutes, then as long as makes that 3 %."""
    seconds, written, save = [0.0], [], jobs.save_state

    def slow(*args):
        written.append(seconds[0])
        seconds[0] += 10
        return save(*args)

    def update(self, *who):
        seconds[0] += 1
        return usual(self, *who)

    usual = Run.update
    monkeypatch.setattr(jobs, "save_state", slow)
    monkeypatch.setattr(Run, "update", update)
    trained = Run(Tiny(), DistilConfig(**{**SMALL, "updates": 900, "method": "reflow"}))
    with Job(tmp_path, trained, ABOUT, clock=lambda: seconds[0]) as job:
        for _ in job.progress():
            pass
    trained.close()
    assert written[0] == 120 and written[1] - written[0] == pytest.approx(10 + 10 / jobs.SHARE, abs=1)
    assert len(written) <= 4 and jobs.EVERY == 120


class Ends(Tiny):
    """Raises at a call with a gradient."""

    def __init__(self, error):
        super().__init__()
        self.error, self.left = error, 7

    def __call__(self, *args):
        self.left -= torch.is_grad_enabled()
        if self.left < 0:
            raise self.error
        return super().__call__(*args)


@pytest.mark.parametrize(
    "error, state",
    [
        (KeyboardInterrupt(), "paused"),
        (SystemExit(1), "paused"),
        (GeneratorExit(), "paused"),
        (RuntimeError("a layer fell over"), "failed"),
        (torch.OutOfMemoryError("Allocation on device "), "failed"),
        (MemoryError(), "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_every_way_out_writes_the_state(tmp_path, error, state):
    ended = Run(Ends(error), DistilConfig(**SMALL))
    with pytest.raises((type(error), MemoryError)), Job(tmp_path, ended, ABOUT) as job:
        for _ in job.progress():
            pass
    ended.close()
    assert ended.done and load_state(tmp_path / STATE)[1]["done"] == ended.done
    assert json.loads((tmp_path / STATUS).read_text())["state"] == state


@pytest.mark.slow
def test_100_steps_at_once_equal_40_a_kill_and_the_rest(tmp_path):
    whole = run(tmp_path / "whole", updates=100)
    with program(tmp_path / "parts", every=10, updates=100) as (_, told):
        next(done for done in told if done >= 40)
    assert json.loads((tmp_path / "parts" / STATUS).read_text())["done"] in (30, 40)
    assert same(whole, run(tmp_path / "parts", updates=100))


TWO_ADAPTERS = {"method": "anchored", "real": "guided", "fake_updates": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, TWO_ADAPTERS], ids=["phased", "anchored"])
def test_20_kills_at_random_moments_leave_a_state_that_loads(tmp_path, method):
    """A state of several MB is written after every update, so that kills fall into the writing too."""
    dice, seen, killed = random.Random(1), 0, 0
    options = {"updates": 4000, "rank": 256, "width": 768, **method}
    while killed < 20:
        with program(tmp_path, **options) as (process, told):
            next(done for done in told if done > seen)
            time.sleep(dice.uniform(0, 0.4))  # under way: kill it at a moment that nothing chooses
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        tensors, numbers = load_state(tmp_path / STATE)
        assert numbers["done"] >= seen and all(
            bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point()
        )
        json.loads((tmp_path / STATUS).read_text()), json.loads((tmp_path / "manifest.json").read_text())
        seen = numbers["done"]
    assert seen >= 20


def test_another_runs_folder_is_refused_by_the_setting_that_differs(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(
        ValueError, match="holds another run: its lr is 0.002 and not 0.001. Choose another folder"
    ):
        run(tmp_path, lr=1e-3)
    other = Run(Tiny(), DistilConfig(**SMALL))
    with (
        pytest.raises(ValueError, match="its base is 'demo' and not 'other'"),
        Job(tmp_path, other, {**ABOUT, "base": "other"}),
    ):
        pass
    other.close()
    for options in ({"lr": 1e-3}, {"optimizer": "adamw8bit"}):
        ours = jobs.manifest(DistilConfig(**SMALL, **options), ABOUT)
        with pytest.raises(
            ValueError, match=f"its {next(iter(options))} is .* and not .*{next(iter(options.values()))}"
        ):
            jobs._claim(tmp_path, ours)
    with pytest.raises(ValueError, match="its note is None and not 'x'"):
        jobs._claim(tmp_path, jobs.manifest(DistilConfig(**SMALL), {**ABOUT, "note": "x"}))
    run(tmp_path, 4, micro=2)  # how it is cut to fit the memory is nobody's concern


def test_a_run_of_a_part_is_told_from_one_of_the_whole_way(tmp_path):
    part = DistilConfig(**SMALL, from_percent=0.2)
    jobs._claim(tmp_path, jobs.manifest(part, {**ABOUT, "note": "x"}))
    refused = r"its from_percent is 0\.2 and not 0\.0"
    with pytest.raises(ValueError, match=refused):
        jobs._claim(tmp_path, jobs.manifest(DistilConfig(**SMALL), ABOUT))
    with pytest.raises(ValueError, match=refused):
        jobs.check_asked(tmp_path, {"from_percent": 0.0})
    with pytest.raises(ValueError, match="its note is 'x' and not None"):
        jobs._claim(tmp_path, jobs.manifest(part, ABOUT))
    (other := tmp_path / "whole").mkdir()
    jobs._claim(other, jobs.manifest(DistilConfig(**SMALL), ABOUT))
    with pytest.raises(ValueError, match=r"its to_percent is 1\.0 and not 0\.5"):
        jobs.check_asked(other, {"to_percent": 0.5})


# as of the versions before there were methods with further adapters, and of those that wrote what such read
OLDER = {"points": "trajectory"}, {"points": "pictures", "fake_updates": 3, "real": "guided"}, {}


@pytest.mark.parametrize("read_by_none", OLDER)
@pytest.mark.parametrize("method", ["phased", "consistency"])
def test_an_older_run_of_a_part_goes_on_whatever_its_manifest_has_of_other_adapters(
    tmp_path, method, read_by_none
):
    config = DistilConfig(**SMALL, method=method, to_percent=0.5)
    wanted = jobs.manifest(config, ABOUT)
    assert not jobs.OF_ROLES & wanted["spec"]["config"].keys()
    found = {**wanted, "spec": {**wanted["spec"], "config": {**wanted["spec"]["config"], **read_by_none}}}
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    jobs._claim(tmp_path, wanted)
    for points in ("pictures", "trajectory"):
        asked = dataclasses.replace(config, points=points)
        jobs.check_asked(tmp_path, {"points": points, "to_percent": 0.5})
        jobs._claim(tmp_path, jobs.manifest(asked, ABOUT))
        assert jobs.folder_name(asked, ABOUT) == jobs.folder_name(config, ABOUT)
    with pytest.raises(ValueError, match=r"its to_percent is 0\.5 and not 0\.6"):
        jobs._claim(tmp_path, jobs.manifest(dataclasses.replace(config, to_percent=0.6), ABOUT))


@pytest.mark.parametrize("method", ["matching", "anchored", "phased-matching"])
def test_runs_of_several_adapters_are_told_apart_by_their_settings(tmp_path, method):
    config = DistilConfig(**SMALL, method=method)
    jobs._claim(tmp_path, jobs.manifest(config, ABOUT))
    for name, other in {"points": "trajectory", "real": "guided", "lead": 5, "fake_updates": 7}.items():
        with pytest.raises(ValueError, match=f"its {name} is "):
            jobs._claim(tmp_path, jobs.manifest(dataclasses.replace(config, **{name: other}), ABOUT))
        with pytest.raises(ValueError, match=f"its {name} is "):
            jobs.check_asked(tmp_path, {name: other})
    with pytest.raises(ValueError, match=f"its method is '{method}' and not 'phased'"):
        jobs._claim(tmp_path, jobs.manifest(DistilConfig(**SMALL), ABOUT))


@pytest.mark.parametrize("name", ["mine.safetensors", "status.json", "run.json", "curves.png"])
def test_a_folder_of_other_work_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".fewstep-notes").write_text("mine")
    with pytest.raises(
        ValueError, match=f"must be empty or hold a run, and holds {name}. Choose another folder"
    ):
        run(tmp_path)
    assert {f.name: f.read_text() for f in tmp_path.iterdir() if f.name != ".lock"} == {
        name: "mine",
        ".fewstep-notes": "mine",
    }


def test_two_at_once_are_refused(tmp_path):
    first, second = (Run(Tiny(), DistilConfig(**SMALL)) for _ in range(2))
    with Job(tmp_path, first, ABOUT):
        with (
            pytest.raises(RuntimeError, match="must be free to run in, and another process"),
            Job(tmp_path, second, ABOUT),
        ):
            pass
    first.close(), second.close()


def test_a_damaged_state_or_manifest_is_refused_by_name(tmp_path):
    run(tmp_path, 4)
    data = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="state.safetensors must be a run's state, and can't be read"):
        run(tmp_path)
    (tmp_path / STATE).write_bytes(data)
    tensors, numbers = load_state(tmp_path / STATE)
    save_state(tmp_path / STATE, {k: v for k, v in tensors.items() if k != "averaged.1"}, numbers)
    with pytest.raises(
        ValueError, match="state.safetensors must be the state of this run, is of another version or damaged"
    ):
        run(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="manifest.json must be the manifest of a run"):
        run(tmp_path)


def test_a_full_disk_keeps_the_state_before_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    """Writing fails between updates 7 and 12; the state of update 6 stays, later ones are written again."""
    write, seen = safetensors.torch.save_file, []

    def full(tensors, path, metadata):
        if 7 <= trained.done <= 12:
            seen.append(load_state(tmp_path / STATE)[1]["done"])
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        return write(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    trained = Run(Tiny(), DistilConfig(**SMALL))
    with Job(tmp_path, trained, ABOUT, 3, clock=lambda: trained.done) as job:
        for _ in job.progress():
            pass
    trained.close()
    assert seen and set(seen) == {6} and "No space left on device" in caplog.text and job.unsaved is None
    monkeypatch.undo()
    assert same(trained, run(tmp_path / "other"))


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    run(tmp_path, last=7)
    left = [f".{STATE}-0a1b2c3d", ".fewstep-0a1b2c3d", ".tmpA1b2C3"]  # the last of safetensors itself
    for name in (*left, ".tmp", ".tmpother", "tmpA1b2C3"):
        (tmp_path / name).write_bytes(b"half")
    run(tmp_path)
    there = {file.name for file in tmp_path.iterdir()}
    assert not there & set(left) and {".tmp", ".tmpother", "tmpA1b2C3"} <= there


def test_on_windows_a_resumed_run_writes_over_its_own_state(tmp_path, windows):
    """Its probe and its best come from the file that it saves to."""
    run(tmp_path, last=7)
    resumed = run(tmp_path)
    assert windows.refused == [] and resumed.done == SMALL["updates"]
    assert load_state(tmp_path / STATE)[1]["done"] == SMALL["updates"]


def test_a_state_that_another_program_holds_is_left_whole_and_the_run_ends_well(tmp_path, windows, caplog):
    run(tmp_path, last=7)
    for name in (STATE, STATUS):
        windows.hold(tmp_path / name)
    resumed = run(tmp_path)  # raises nothing
    assert resumed.done == SMALL["updates"] and load_state(tmp_path / STATE)[1]["done"] == 7
    assert "can't be replaced, as another program has it open" in caplog.text
    windows.held.clear()
    assert same(run(tmp_path), resumed)  # from the state before


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a user whom folders can be closed to"
)
def test_a_folder_that_is_read_only_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="must be writable"):
        run(tmp_path / "run")


def test_a_file_in_the_folders_place_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("x")
    monkeypatch.setattr(Run, "progress", lambda self: pytest.fail("work began"))
    with pytest.raises(OSError, match="must be writable"):
        run(tmp_path / "run")


def test_stop_ends_after_the_update_and_keeps_what_was_learnt(tmp_path):
    stopped = Run(Tiny(), DistilConfig(**SMALL))
    with Job(tmp_path, stopped, ABOUT) as job:
        for _ in job.progress():
            if stopped.done == 5:
                stopped.stop()
    stopped.close()
    assert stopped.done == 5 and json.loads((tmp_path / STATUS).read_text())["state"] == "stopped"
    assert len(stopped.lora_tensors()) == 6


def test_only_folders_of_runs_are_deleted(tmp_path):
    config = DistilConfig(**SMALL)
    folder = tmp_path / jobs.folder_name(config, ABOUT)
    run(folder, 2)
    (tmp_path / "mine").mkdir()
    assert not jobs.delete(tmp_path / "mine") and (tmp_path / "mine").is_dir()
    assert jobs.delete(folder) and not folder.exists()


class Failing(Tiny):
    """Gives NaN at those calls that ask for a gradient."""

    def __init__(self, *calls):
        super().__init__()
        self.calls, self.number = calls, 0

    def __call__(self, x, sigma, condition):
        out = super().__call__(x, sigma, condition)
        if torch.is_grad_enabled():
            self.number += 1
            if self.number in self.calls:
                return out * float("nan")
        return out


def test_nan_is_left_out_counted_and_told(tmp_path):
    run = Run(Failing(3, 4, 9), DistilConfig(**SMALL))
    with Job(tmp_path, run, ABOUT) as job:
        for _ in job.progress():
            pass
    run.close()
    assert run.done == 20 and run.descent.skipped == 3 and run.recipe().trained["skipped"] == 3
    assert all(
        bool(v.isfinite().all()) for v in load_state(tmp_path / STATE)[0].values() if v.is_floating_point()
    )
    assert json.loads((tmp_path / STATUS).read_text())["skipped"] == 3


def test_nan_without_end_stops_the_run_with_the_last_good_state(tmp_path):
    run = Run(Failing(*range(6, 100)), DistilConfig(**SMALL))
    with pytest.raises(
        ArithmeticError, match="10 updates in a row were not, because the model's output overflowed"
    ):
        with Job(tmp_path, run, ABOUT, 1, clock=lambda: run.done) as job:
            for _ in job.progress():
                pass
    run.close()
    tensors, numbers = load_state(tmp_path / STATE)
    assert numbers["skipped"] == 10 and all(
        bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point()
    )
    assert json.loads((tmp_path / STATUS).read_text())["state"] == "failed"
