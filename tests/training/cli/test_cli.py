"""`fewstep fit` from the command line: what it writes, and what it says to bad input."""

import dataclasses

import pytest
import torch
from fewstep.diffusion.solvers.linear import apart
from fewstep.training.cli import demo as demos
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


def test_fit_starts_where_denoise_says(tmp_path, capsys):
    options = ["--denoise", "0.5", "--effort", "0.1"]
    assert run(["fit", "--out", str(tmp_path), *TINY, *options]) == 0
    recipe = load_recipe(tmp_path / "recipe_2.json")
    assert recipe.sigmas[0] == recipe.trained["denoise"] == 0.5 and (tmp_path / "samples.png").exists()
    assert "at sigma 0.5, where a stage before" in capsys.readouterr().out


def test_budgets_of_calls_are_fitted_and_drawn(tmp_path, capsys, monkeypatch):
    runs, real = [], command.SolverFit
    monkeypatch.setattr(
        command, "SolverFit", lambda *a, **options: runs.append(real(*a, **options)) or runs[0]
    )
    assert run(["fit", "--out", str(tmp_path), "--calls", "4", "--effort", "0.1", *TINY[2:]]) == 0
    assert load_recipe(tmp_path / "recipe_4_calls.json").calls == 4 and runs[0].config.calls == (4,)
    assert "recipe_4_calls.json, report.txt" in capsys.readouterr().out
    found, labels = runs[0].found[4], runs[0].teacher.teacher.denoiser.labels
    runs[0].found[4] = dataclasses.replace(found, solver=apart(found.solver, 2.0))  # asks for the parts
    parts = command._samples(runs[0], labels)
    assert runs[0].recipe(4).asks == ("cu", "cu") and parts.size == Image.open(tmp_path / "samples.png").size


@pytest.mark.parametrize("teacher", ["flow", "epsilon"])
def test_the_samples_of_a_fit_with_denoise_begin_with_a_noised_picture(tmp_path, monkeypatch, teacher):
    told, real = {}, command.pictures.grid

    def grid(pixels, *others, **options):
        told.update(pixels)
        return real(pixels, *others, **options)

    monkeypatch.setattr(command.pictures, "grid", grid)
    settings = {"trajectories": 8, "reference_steps": 24, "effort": 0.1}
    found = command.fit(tmp_path, kind=teacher, steps=3, denoise=0.6, **settings)
    assert found.data.sigmas[0] == found.teacher.sigma_of(torch.tensor([0.6], dtype=torch.float64))
    assert found.data.sigmas[0] < 0.7 * found.cache.spec.sigmas[0] and (tmp_path / "samples.png").exists()
    off = {name.split("\n")[0]: float(name.split("RMSE ")[1]) for name in told if "RMSE" in name}
    assert set(off) == {"Euler", found.recipe(3).method} and all(0 < error < 0.25 for error in off.values())


@pytest.mark.parametrize(
    "options, word",
    [
        (["--steps", "0"], "steps"),
        (["--steps", "2,x"], "steps"),
        (["--steps", ""], "steps"),
        (["--steps", "99"], "steps"),
        (["--calls", "0"], "calls"),
        (["--calls", "4", "--steps", "2"], "not allowed with argument --calls"),
        (["--trajectories", "2"], "trajectories"),
        (["--trajectories", "many"], "trajectories"),
        (["--effort", "0"], "effort"),
        (["--effort", "slow"], "must be quick, standard, thorough or a number, got 'slow'"),
        (["--proc", "2"], "--proc"),  # half a name, which torchrun's processes would be given on
        (["--reference-steps", "3"], "reference_steps"),
        (["--reference-steps", "24", "--calls", "24"], "reference_steps must be 46 or more"),
        (["--denoise", "0"], "denoise must be above 0 and at most 1, got 0"),
        (["--denoise", "nan"], "denoise must be above 0"),
        (["--denoise", "half"], "--denoise"),
        (["--denoise", "0.05"], "denoise must leave 16 or more of the 60 reference_steps"),
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


def test_the_demo_is_asked_for_a_quality_and_says_what_it_is(monkeypatch, capsys, tmp_path):
    found = []

    def keep(out, **asked):
        found.append((asked["quality"], asked["method"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(demos, "demo", keep)
    for more in ([], ["--quality", "standard"], ["--quality", "best", "--method", "matching"]):
        assert run(["demo", "--out", str(tmp_path), *more]) == 130
    assert found == [(None, None), ("standard", None), ("best", "matching")]
    capsys.readouterr()
    assert run(["demo", "--quality", "slow"]) == 2
    assert "invalid choice: 'slow' (choose from" in capsys.readouterr().err
    assert run(["demo", "--help"]) == 0
    said = capsys.readouterr().out
    for quality, method in demos.METHODS.items():
        (line,) = [text for text in said.splitlines() if text.startswith(f"  {quality} ")]
        assert "minute" in line and (method in line or "the same" in line)


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
