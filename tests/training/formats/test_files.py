"""Names of files: what a user typed, cut to what every file system takes."""

import collections
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fewstep.training.formats.files import (
    STEM,
    check_folder,
    file_stem,
    free_name,
    read_tensors,
    told_by_name,
    write,
    write_near,
    write_tensors,
)
from fewstep.training.trajectories import folders
from safetensors import SafetensorError, safe_open

Usage = collections.namedtuple("Usage", "total used free")
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in "0123456789¹²³")}
TYPED = [
    "四" * 76,
    "é" * 300,
    "ab" + "四" * 300,
    "𝟘" * 100,
    "x" * 199 + " y",
    *RESERVED,
    "nul.",
    "a. ",
    " .b",
    "c.",
]


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".pairs.safetensors"])
def test_what_is_typed_becomes_a_file(tmp_path, name, suffix):
    stem = file_stem(name)
    path = free_name(tmp_path, stem, suffix)
    check_folder(tmp_path, name=path.name)
    write(path, b"1")
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and len(path.name.encode()) < 255
    assert path.name.split(".")[0].upper() not in RESERVED and path.name[-1] not in ". "
    assert stem == stem.strip() and 0 < len(stem.encode()) <= STEM


def test_a_name_is_cut_between_characters_and_no_earlier_than_it_must_be():
    assert file_stem("四" * 76) == "四" * (STEM // 3)
    assert file_stem("a" + "é" * 300) == "a" + "é" * ((STEM - 1) // 2)
    assert file_stem("x" * STEM) == "x" * STEM and file_stem("four steps, v2") == "four steps_ v2"


@pytest.mark.parametrize("name", ["", "  ", "...", "\ud800", "_-_"])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="name must hold a letter or a digit"):
        file_stem(name)


def test_a_name_that_the_folder_does_not_take_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="name must be shorter, as .* takes no file name as long as xxx"):
        check_folder(tmp_path, name="x" * 256)
    assert not list(tmp_path.iterdir())


def test_room_for_a_large_file_is_asked_for_and_not_written(tmp_path, monkeypatch):
    """A run of SDXL wants 10 GB for its states: writing as many zeros would wear the disk for a question."""
    wanted, written = 1 << 50, []
    real = tempfile.NamedTemporaryFile

    def watched(**options):
        file = real(**options)
        write = file.write
        file.write = lambda data: written.append(len(data)) or write(data)
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", watched)
    for total, free, fits in ((wanted, wanted, True), (0, 0, True), (wanted, wanted - 1, False)):
        written.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _, t=total, f=free: Usage(t, t - f, f))
        if fits:
            assert check_folder(tmp_path / "new", wanted) == tmp_path / "new" and written == [1 << 20]
        else:
            with pytest.raises(OSError, match="with 1073741824.0 MiB free: .*No space left on device"):
                check_folder(tmp_path / "new", wanted)
            assert not written
    assert not list((tmp_path / "new").iterdir())


def test_what_is_read_is_not_mapped_and_can_be_written_over(tmp_path, windows):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(100_000)}, {})
    tensors, _ = read_tensors(path)
    write_tensors(path, {"a": torch.zeros(2)}, {})
    assert tensors["a"].sum() == 100_000 and windows.refused == []
    with safe_open(path, "pt") as file:
        kept = file.get_tensor("a")  # as the host's loaders do
    with pytest.raises(PermissionError):
        write_tensors(path, {"a": torch.ones(2)}, {})
    assert kept.sum() == 0 and [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "name, other", [("lora_00003.safetensors", "lora_00001"), ("lora.safetensors", "lora_00001")]
)
def test_beside_a_file_that_others_hold_another_is_written(tmp_path, windows, caplog, name, other):
    write(tmp_path / name, b"theirs")
    windows.hold(tmp_path / name)
    written = write_near(tmp_path / name, lambda path: write(path, b"ours"))
    assert written == tmp_path / f"{other}.safetensors" and written.read_bytes() == b"ours"
    assert (tmp_path / name).read_bytes() == b"theirs" and f"{name} is held" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_the_disk_refuses_is_an_error_of_the_systems_and_told_by_name(tmp_path, monkeypatch, number):
    """safetensors raises errors of its own, whose text alone has the number."""

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
        )

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    file = tmp_path / "x.safetensors"
    with pytest.raises(OSError) as caught:
        write_tensors(file, {"a": torch.ones(2)}, {})
    assert caught.value.errno == number and list(tmp_path.iterdir()) == []
    told = f'x.safetensors must be written, which gave "{os.strerror(number)}". Free some space'
    with pytest.raises(OSError, match=told), told_by_name(file):
        write_tensors(file, {"a": torch.ones(2)}, {})


def test_a_half_file_that_a_scanner_holds_does_not_hide_why_the_writing_failed(
    tmp_path, windows, monkeypatch
):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        windows.hold(path)
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
    (left,) = tmp_path.iterdir()
    assert windows.refused == [left.name] and folders.LEFT.fullmatch(left.name)


def test_what_is_no_failure_of_the_disk_is_raised_as_it_is(tmp_path, monkeypatch):
    def odd(tensors, path, metadata):
        raise SafetensorError("dtype not understood")

    monkeypatch.setattr(safetensors.torch, "save_file", odd)
    with pytest.raises(SafetensorError, match="not understood"), told_by_name("x.safetensors"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})


def test_another_failure_is_no_reason_for_another_name(tmp_path):
    def full(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_near(tmp_path / "x.json", full)
    assert list(tmp_path.iterdir()) == []
