"""Room for trajectory caches: what gives way to what, and what is never touched; disks that are full."""

import os
import threading
import time
from pathlib import Path

import pytest
from caches import build, files, no_teacher, spec
from fewstep.training.trajectories import cache as module
from fewstep.training.trajectories import folders, shards
from fewstep.training.trajectories.cache import TrajectoryCache
from fewstep.training.trajectories.folders import is_ours


def aged(cache, seconds):
    """Let go of a cache, unused for so long."""
    folder, before = cache.folder, time.time() - seconds
    os.utime(folder / "manifest.json", (before, before))
    cache._held.close()
    return folder


def test_what_can_never_fit_is_refused_before_the_model_is_asked(tmp_path):
    cache = TrajectoryCache(tmp_path, spec(), limit=1000)
    assert cache.bytes(16) > 1000
    with pytest.raises(
        ValueError, match="trajectories must fit into 0.00 GiB, 16 .* Ask for fewer, or fewer kept levels"
    ):
        list(cache.build(no_teacher, 16))
    assert not list(tmp_path.iterdir())


def test_the_longest_unused_cache_gives_way_and_no_other_folder(tmp_path):
    old, older, mid = (
        aged(build(tmp_path, spec(seed=s), 8)[1], age) for s, age in ((1, 200), (2, 300), (3, 100))
    )
    each = sum(len(v) for v in files(old).values())
    for name in ("notes", "looks-like-one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text((old / "manifest.json").read_text())
        (tmp_path / name / "00000.safetensors").write_bytes(bytes(20 * each))
    (tmp_path / "file").write_bytes(bytes(20 * each))
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    older.rename(elsewhere / older.name)
    (tmp_path / older.name).symlink_to(elsewhere / older.name)
    kept = {n: v for n, v in files(tmp_path).items() if not n.startswith((old.name, mid.name))}
    build(tmp_path, spec(), 8, limit=int(2.1 * each))
    assert not old.exists() and mid.exists()  # `older` is a link, and stays
    assert kept.items() <= files(tmp_path).items() and len(files(elsewhere)) == 6


def test_removal_leaves_strange_files_and_what_is_cut_short_is_still_a_cache(tmp_path, monkeypatch):
    old = aged(build(tmp_path, spec(seed=1), 8)[1], 100)
    (old / "mine.txt").write_text("x")
    unlink = Path.unlink

    def fails(self, *args, **options):
        if self.name == "00002.safetensors":
            raise PermissionError("in use")
        unlink(self, *args, **options)

    monkeypatch.setattr(Path, "unlink", fails)
    build(tmp_path, spec(), 8, limit=2500)
    assert is_ours(old)
    monkeypatch.undo()
    build(tmp_path, spec(), 8, limit=2500)
    assert [f.name for f in old.iterdir()] == ["mine.txt"]


def test_a_cache_in_use_stays(tmp_path, caplog):
    pytest.importorskip("fcntl")
    _, used = build(tmp_path, spec(seed=1), 8)
    os.utime(used.folder / "manifest.json", (1, 1))
    build(tmp_path, spec(seed=2), 8, limit=2500)
    assert used.read(8) and "take more than their limit" in caplog.text
    aged(used, 100)
    build(tmp_path, spec(seed=2), 8, limit=2500)
    assert not used.folder.exists()


def test_who_waits_for_a_cache_that_is_being_removed_makes_it_anew(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    folder = aged(build(tmp_path, spec(), 4)[1], 100)
    asked, unlink, found = [], Path.unlink, []
    waits = threading.Thread(target=lambda: found.extend(build(tmp_path, spec(), 4)))

    def slow(self, *args, **options):
        if self.name == "manifest.json":
            waits.start()
        if self.name in ("manifest.json", ".lock"):
            asked.append(self.name)
            time.sleep(0.5)  # time to wait for the lock, or to get it where it is let go too early
        unlink(self, *args, **options)

    monkeypatch.setattr(Path, "unlink", slow)
    assert folders.remove(folder)
    monkeypatch.undo()
    waits.join()
    assert asked == ["manifest.json", ".lock"]
    assert is_ours(folder) and folders.in_use(folder) and not folders.remove(folder)
    assert found[1].read(4)


def test_a_smaller_count_does_not_hide_what_lies_there(tmp_path):
    """Asked for 1 of a cache of 8, its whole size still counts."""
    other = aged(build(tmp_path, spec(seed=1), 8)[1], 100)
    aged(build(tmp_path, spec(), 8)[1], 50)
    build(tmp_path, spec(), 1, limit=sum(len(v) for v in files(other).values()) + 500)
    assert not other.exists()


def test_a_full_disk_is_said_beforehand_or_keeps_what_is_whole(tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1 << 21, "total": 1 << 40})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        OSError, match="must have .* GiB free for 1000000 trajectories, got 0.00. Free some space"
    ):
        build(tmp_path, spec(), 1_000_000, no_teacher)
    monkeypatch.undo()
    write, written = shards.write_tensors, []

    def full(file, *contents, **how):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(file)
        return write(file, *contents, **how)

    monkeypatch.setattr(shards, "write_tensors", full)
    with pytest.raises(
        OSError, match='00002.safetensors must be written, which gave "No space left on device". Free some'
    ):
        build(tmp_path, spec(), 8)
    monkeypatch.undo()
    assert build(tmp_path, spec(), 8)[0] == 2 * 6


def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="must be writable .*file"):
        build(tmp_path / "file", spec(), 2, no_teacher)
