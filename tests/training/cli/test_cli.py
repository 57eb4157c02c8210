"""`fewstep fit` from the command line: what it writes, and what it says to bad input."""

import pytest
from fewstep.training.cli import demo_fit as command
from fewstep.training.cli.main import main
from fewstep.training.formats.files import load_recipe
from PIL import Image

TINY = ["--steps", "2", "--trajectories", "8", "--reference-steps", "24"]


def run(argv):
    """The exit status, also where the parser ends the program."""
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("teacher", ["flow", "epsilon"])
def test_fit_writes_recipes_report_and_samples(tmp_path, capsys, teacher):
    assert run(["fit", "--teacher", teacher, "--out", str(tmp_path), *TINY]) == 0
    recipe = load_recipe(tmp_path / "recipe_2.json")
    assert recipe.solver.steps == 2 and recipe.cfg == 2 and recipe.base
    assert recipe.path == ("flow" if teacher == "flow" else "variance exploding")
    assert {p.name for p in tmp_path.iterdir()} == {
        "recipe_2.json",
        "report.txt",
        "report.png",
        "samples.png",
        "trajectories",
    }
    report = (tmp_path / "report.txt").read_text()
    assert report.strip() in capsys.readouterr().out and f"{recipe.errors['held_out']:.4f}" in report


@pytest.mark.parametrize(
    "options, word",
    [
        (["--steps", "0"], "steps"),
        (["--steps", "2,x"], "steps"),
        (["--steps", ""], "steps"),
        (["--steps", "99"], "steps"),
        (["--trajectories", "2"], "trajectories"),
        (["--trajectories", "many"], "trajectories"),
        (["--effort", "0"], "effort"),
        (["--effort", "slow"], "must be quick, standard, thorough or a number, got 'slow'"),
        (["--proc", "2"], "--proc"),  # half a name, which torchrun's processes would be given on
        (["--reference-steps", "3"], "reference_steps"),
        (["--cfg", "nan"], "cfg"),
        (["--cfg", "-1"], "cfg"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--reference-steps", "1000000000"], "reference_steps"),
        (["--seconds", "0"], "seconds"),
        (["--seconds", "nan"], "seconds"),
        (["--teacher", "cat"], "teacher"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_bad_options_are_one_line_and_status_2(tmp_path, capsys, options, word):
    assert run(["fit", "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fewstep") and word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_demo_has_no_restoration(capsys):
    assert run(["demo", "--method", "restoration"]) == 2
    assert "invalid choice: 'restoration'" in capsys.readouterr().err


def test_an_unusable_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["fit", "--out", str(tmp_path / "file"), *TINY]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and said.count("\n") == 1


def test_a_stopped_fit_keeps_its_trajectories_and_goes_on(tmp_path, capsys, monkeypatch):
    asked, real = [], command.Guided.__call__

    def until_interrupted(self, *args):
        asked.append(1)
        if len(asked) == 30:  # 24 calls for the first 8 trajectories, so within the next 8
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(command.Guided, "__call__", until_interrupted)
    monkeypatch.setattr(command, "_samples", lambda *_: Image.new("RGB", (1, 1)))
    argv = ["fit", "--out", str(tmp_path), *TINY, "--trajectories", "16", "--effort", "0.1"]
    assert run(argv) == 130
    said = capsys.readouterr().err
    assert f"8 of 16 trajectories are kept in {tmp_path}" in said and "Traceback" not in said
    (shard,) = (tmp_path / "trajectories").glob("*/*.safetensors")
    written = shard.stat().st_mtime_ns
    assert run(argv) == 0
    assert shard.stat().st_mtime_ns == written and len(list(shard.parent.glob("*.safetensors"))) == 2
