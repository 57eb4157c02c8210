"""The trajectory cache: what it holds is right, and it survives kills, damage and other runs."""

import dataclasses
import json
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from caches import Teacher, build, files, no_teacher, spec
from fewstep.diffusion import samplers
from fewstep.diffusion.paths import path
from fewstep.diffusion.schedules.grids import grid
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import for_sampler
from fewstep.training.trajectories.cache import CacheSpec, TrajectoryCache
from fewstep.training.trajectories.folders import is_ours
from fewstep.training.trajectories.noises import noises

# ---- what it holds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flow", "variance exploding"])
def test_trajectories_are_those_of_the_solver_in_one_go(tmp_path, name):
    wanted = spec(name, noise_scale=1.5, seed=7)
    calls, cache = build(tmp_path, wanted, 5)
    assert calls == 3 * 6  # shards of 2
    states, predictions = cache.read(5)
    assert states.shape == (5, 3, 4) and predictions.shape == (5, 2, 4)
    noise = noises(7, range(5), (4,))
    level = wanted.sigmas[0] if name == "flow" else (1 + wanted.sigmas[0] ** 2) ** 0.5  # where a host starts
    assert torch.equal(cache.noise(5), noise) and torch.equal(states[:, 0], noise * (level * 1.5))
    teacher, condition = Teacher(name), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(cache.conditions(5), condition)
    run = list(
        samplers.sample(
            for_sampler(teacher, condition, dtype=torch.float64),
            states[:, 0],
            wanted.sigmas,
            path(name),
            order=2,
            corrector=True,
        )
    )
    for place, index in enumerate(wanted.kept[1:], 1):
        assert (states[:, place] - run[index - 1].x).abs().max() < 1e-5
    for place, index in enumerate(wanted.kept[:-1]):
        assert (predictions[:, place] - run[index].x0).abs().max() < 1e-5


def test_noise_is_unit_and_each_ones_own():
    noise = torch.cat([noises(seed, range(50), (64,)) for seed in range(4)])
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert len({tuple(row.tolist()) for row in noise}) == 200


def test_half_precision_and_no_predictions_take_the_size_they_say(tmp_path):
    for changes, each in (
        ({}, 2 * 2 * 4 * 4),
        ({"dtype": "float16"}, 2 * 2 * 4 * 2),
        ({"predictions": False}, 2 * 4 * 4),
    ):
        wanted = spec(**changes)
        _, cache = build(tmp_path, wanted, 3)
        assert cache.bytes(3) == 4 * each
        states, predictions = cache.read(3)
        assert states.dtype == torch.float32 and (predictions is None) == (not wanted.predictions)
    exact = build(tmp_path, spec(), 3)[1].read(3)[0]
    assert (build(tmp_path, spec(dtype="float16"), 3)[1].read(3)[0] - exact).abs().max() < 2e-3


def test_more_are_added_and_fewer_read_without_work(tmp_path):
    assert build(tmp_path, spec(), 3)[0] == 2 * 6
    before = files(tmp_path)
    calls, cache = build(tmp_path, spec(), 7)
    assert calls == 2 * 6 and before.items() <= files(tmp_path).items()
    assert build(tmp_path, spec(), 4)[0] == build(tmp_path, spec(), 8)[0] == 0
    assert torch.equal(cache.read(3)[0], cache.read(7)[0][:3])
    for count in (0, -1):
        with pytest.raises(ValueError, match="trajectories must be 1 or more"):
            cache.read(count)


def test_every_field_makes_another_cache():
    other = dict(
        model="m",
        patches="lora",
        conditioning="d",
        conditions=2,
        guidance="CFG 2",
        shape=(5,),
        kept=(0, 3, 6),
        sigmas=spec(steps=6).sigmas[:1] + (0.9, 0.7, 0.5, 0.3, 0.1, 0.0),
        path="variance preserving",
        order=1,
        corrector=False,
        noise_scale=2.0,
        seed=1,
        dtype="float16",
        shard=3,
        predictions=False,
    )
    assert set(other) == {f.name for f in dataclasses.fields(CacheSpec)}
    keys = {spec().key, *(spec(**{name: value}).key for name, value in other.items())}
    assert len(keys) == len(other) + 1
    assert spec(noise_scale=1).key == spec(noise_scale=1.0).key and spec(shape=[4]).key == spec().key


@pytest.mark.parametrize(
    "bad, why",
    [
        ({"kept": (1, 6)}, "kept must rise from 0"),
        ({"kept": (0, 5)}, "kept"),
        ({"kept": (0, 3, 3, 6)}, "kept"),
        ({"kept": (0,)}, "kept"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"shard": 0}, "shard must be 1 or more"),
        ({"conditions": 0}, "conditions must be 1"),
        ({"shape": (4, 0)}, "shape must be 1 or more"),
        ({"noise_scale": float("nan")}, "noise_scale"),
        ({"order": 4}, "order must be a number from 1 to 3"),
        ({"path": "vp"}, "path must be one of"),
    ],
)
def test_a_bad_spec_is_refused_by_name(bad, why):
    with pytest.raises(ValueError, match=why):
        spec(**bad)


@pytest.mark.parametrize(
    "changes, value, hint",
    [({}, float("nan"), ""), ({"dtype": "float16"}, 1e6, ", or store them in float32")],
)
def test_what_is_not_finite_is_refused_at_once_and_not_stored(tmp_path, changes, value, hint):
    cache, calls = TrajectoryCache(tmp_path, spec(**changes)), []
    with pytest.raises(
        ValueError, match=f"trajectories must be finite, and at sigma 1 one is not. Check .* sampler{hint}."
    ):
        list(cache.build(lambda x, s, c: calls.append(0) or torch.full_like(x, value), 2))
    assert len(calls) == 1 and not list(cache.folder.glob("*.safetensors"))


# ---- kills, damage, strangers ----------------------------------------------------------------------

PARENT = textwrap.dedent("""
    import os, runpy, sys
    from pathlib import Path
    runpy.run_path(str(Path(sys.argv[1]).parents[2] / "conftest.py"))        # makes `fewstep` importable
    sys.path.insert(0, str(Path(sys.argv[1]).parents[1]))
    import caches
    print("ready", flush=True)
    for _ in sys.stdin:
        if not (child := os.fork()):
            teacher = caches.Teacher(pause=0.004)
            for share in caches.TrajectoryCache(sys.argv[2], caches.spec()).build(teacher, 80):
                print("step", flush=True)
            print(teacher.calls, flush=True)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
""")


@pytest.fixture
def parent(tmp_path):
    """A process that forks one for every line it is sent, and tells its number, its steps and its end; each
    builds 40 shards.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and kill -9")
    command = [sys.executable, "-c", PARENT, str(Path(__file__).resolve()), str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def test_killed_ten_times_it_goes_on_and_ends_bit_for_bit_as_if_never(parent, tmp_path):
    draw, folder, there = random.Random(0), tmp_path / spec().key, []
    for number in range(10):
        parent.stdin.write("build\n")
        child = int(parent.stdout.readline())
        if number % 2:  # the others are killed while they start, look at what is there, or work
            for _ in range(there[-1] + draw.randrange(4, 24)):
                assert parent.stdout.readline() == "step\n"
        time.sleep(draw.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        while (line := parent.stdout.readline()) == "step\n":
            pass
        assert int(line) == signal.SIGKILL
        there.append(len(list(folder.glob("0*.safetensors"))))
    assert there == sorted(there) and 0 < there[-1] < 40
    (folder / ".00039.safetensors-abc_1234").write_bytes(b"half")  # what a kill within a write leaves
    parent.stdin.write("build\n")
    parent.stdout.readline()
    while (calls := parent.stdout.readline()) == "step\n":
        pass
    status = parent.stdout.readline()
    assert int(status) == 0 and int(calls) == (40 - there[-1]) * 6  # what was solved is not solved again
    build(tmp_path / "whole", spec(), 80)
    assert files(folder) == files(tmp_path / "whole" / spec().key)
    assert set(files(folder)) == {".lock", "manifest.json", *(f"{n:05d}.safetensors" for n in range(40))}


def test_a_run_that_is_left_keeps_its_whole_shards(tmp_path):
    for share in TrajectoryCache(tmp_path, spec()).build(Teacher(), 6):
        if share > 0.5:
            break
    assert build(tmp_path, spec(), 6)[0] == 2 * 6


def truncate(file, other):
    file.write_bytes(file.read_bytes()[:-5])


def empty(file, other):
    file.write_bytes(b"")


def flip(file, other):
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    file.write_bytes(data)


def swap(file, other):
    file.write_bytes((other / "00001.safetensors").read_bytes())


def misplace(file, other):
    file.write_bytes((file.parent / "00000.safetensors").read_bytes())


def take_away(file, other):
    file.unlink()


@pytest.mark.parametrize("harm", [truncate, empty, flip, swap, misplace, take_away])
def test_a_damaged_shard_is_found_logged_and_rebuilt_alone(tmp_path, caplog, harm):
    _, cache = build(tmp_path, spec(), 6)
    _, other = build(tmp_path, spec(seed=1), 6)
    whole, file = files(tmp_path), cache.folder / "00001.safetensors"
    harm(file, other.folder)
    with pytest.raises(ValueError, match="00001.safetensors is missing or damaged. Run again"):
        cache.read(6)
    cache.read(2)  # the shard before it serves
    caplog.clear()
    assert build(tmp_path, spec(), 6)[0] == 6
    assert ("00001.safetensors is damaged" in caplog.text) == (harm is not take_away)
    assert files(tmp_path) == whole


def test_no_byte_can_change_unseen(tmp_path):
    """Every byte of the header and of a little data, one bit of each."""
    _, cache = build(tmp_path, spec(shard=1), 1)
    file, logger = cache.folder / "00000.safetensors", logging.getLogger()
    data = file.read_bytes()
    logger.disabled = True
    try:
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            assert cache._load(0) is None, place
    finally:
        logger.disabled = False
    file.write_bytes(data)
    assert cache._load(0) is not None


@pytest.mark.parametrize(
    "change, why",
    [
        (
            lambda m: {**m, "spec": {**m["spec"], "model": "another"}},
            "belong to this run, its model is 'another' and not 'mixture'",
        ),
        (lambda m: {**m, "spec": {**m["spec"], "seed": 3}}, "belong to this run, its seed is 3 and not 0"),
        (lambda m: {**m, "key": "x"}, "belong to this run, its key is 'x'"),
        (lambda m: {**m, "version": 9}, "be of version 1, got 9"),
        (lambda m: {}, "be the manifest of a trajectory cache"),
        (lambda m: [1], "be the manifest of a trajectory cache"),
        (lambda m: {"version": 1, "spec": "x"}, "be the manifest of a trajectory cache"),
    ],
)
def test_a_strange_manifest_is_refused_before_any_work(tmp_path, change, why):
    _, cache = build(tmp_path, spec(), 2)
    manifest = cache.folder / "manifest.json"
    strange = json.dumps(change(json.loads(manifest.read_text())))
    manifest.write_text(strange)
    with pytest.raises(ValueError, match=f"manifest.json must {why}.*Delete its folder"):
        build(tmp_path, spec(), 4, no_teacher)
    assert manifest.read_text() == strange and is_ours(cache.folder) == ("key" in why)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        build(tmp_path, spec(), 4, no_teacher)


def test_two_runs_at_once_share_a_cache(tmp_path):
    """Step by step in turn, and one that stops halfway: both end whole, no write harms the other's."""
    first, second = (TrajectoryCache(tmp_path, spec()).build(Teacher(), 6) for _ in range(2))
    next(first)
    left = tmp_path / spec().key / ".00000.safetensors-inuse123"
    left.write_bytes(b"another run is writing this")
    for _ in zip(first, second):
        pass
    assert left.exists()
    left.unlink()
    list(first), list(second)
    assert build(tmp_path, spec(), 6)[0] == 0
    build(tmp_path / "whole", spec(), 6)
    assert files(tmp_path / spec().key) == files(tmp_path / "whole" / spec().key)


def test_the_demo_teacher_resumes_bit_for_bit(tmp_path):
    """A real network at a guidance, left in the middle of its second shard."""
    demo = DemoTeacher("epsilon")
    sigmas = tuple(grid("uniform", 4, demo.sigma_of, demo.path).tolist())
    wanted = spec(
        "variance exploding",
        model=demo.base,
        conditions=demo.conditions,
        shape=demo.shape,
        sigmas=sigmas,
        kept=(0, 4),
    )

    for share in TrajectoryCache(tmp_path / "a", wanted).build(demo, 4):
        if share > 0.7:
            break
    for place in "ab":
        list(TrajectoryCache(tmp_path / place, wanted).build(demo, 4))
    assert files(tmp_path / "a") == files(tmp_path / "b")
