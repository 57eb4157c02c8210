"""What is refused at once, through the command line, by one message that names process and remedy."""

import json
import socket

import pytest
import torch
from fewstep.training.cli.main import main
from fewstep.training.formats.files import save_lora

SETTINGS = [part for text in ("updates=4", "images=2", "batch=2") for part in ("--set", text)]


@pytest.mark.parametrize(
    "more,words",
    [
        (
            {"0": ["--set", "batch=1"], "1": ["--set", "batch=1"]},
            "batch must be 2 or more for 2 processes, got 1",
        ),
        ({"1": ["--set", "seed=7"]}, "the same settings, and process 1 on"),
        ({"1": ["--set", "batch=half"]}, "batch must be a whole number"),
        ({"1": ["--shard-base"]}, "the same --shard-base, and process 1 on"),
    ],
)
def test_what_does_not_fit_together_is_refused(started, said, tmp_path, more, words):
    line = ["distil", "--out", str(tmp_path / "run"), *SETTINGS]
    assert started(line, 2, tmp_path, more=more) == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and lines[0].count("\n") == 0 and words in lines[0]


def test_another_batch_is_another_run(started, said, tmp_path):
    (tmp_path / "run").mkdir()
    spec = {"config": {"batch": 16, "method": "phased"}, "about": {}}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"version": 1, "spec": spec}))
    assert started(["distil", "--out", str(tmp_path / "run"), *SETTINGS], 2, tmp_path) == [2, 2]
    lines = [text for text in said(tmp_path) if text]
    assert len(lines) == 1 and "holds another run: its batch is 16 and not 2" in lines[0]


def test_a_port_that_another_program_has_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os._exit", lambda status: None)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        place_of = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.getsockname()[1])}
        numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in {**place_of, **numbers}.items():
            monkeypatch.setenv(name, value)
        assert main(["distil", "--out", str(tmp_path), *SETTINGS]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"port {place_of['MASTER_PORT']}" in said and "MASTER_PORT" in said


def test_one_process_is_no_group(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.training.cli.launch.launch", lambda *_: pytest.fail("started others"))
    assert main(["distil", "--processes", "1", "--out", str(tmp_path), "--set", "batch=0"]) == 2
    assert "batch must be" in capsys.readouterr().err


def test_all_begin_with_the_same_lora(started, said, tmp_path):
    line = ["distil", "--out", str(tmp_path / "run"), *SETTINGS, "--start-from"]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, file in enumerate(files):
        save_lora(file, {"diffusion_model.x.lora_up.weight": torch.full((2, 1), float(number))})
    more = {str(rank): [str(file)] for rank, file in enumerate(files)}
    assert started(line, 2, tmp_path, more=more) == [2, 2]
    (words,) = [text for text in said(tmp_path) if text]
    assert "the same LoRA to start from, and process 1 on" in words and "\n" not in words
