"""Names of files: what a user typed, cut to what every file system takes."""

import pytest
from fewstep.training.formats.files import STEM, check_folder, file_stem, free_name, write

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
