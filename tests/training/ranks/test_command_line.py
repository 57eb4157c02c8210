"""The command line in several processes, and the job files that start it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fewstep.training.cli import launch
from fewstep.training.cli.arguments import parser
from fewstep.training.cli.main import main
from fewstep.training.formats.files import load_lora
from fewstep.training.run.runs import listing

ROOT = Path(__file__).parents[3]
JOBS = ROOT / "docs" / "several_cards"
TINY = {"updates": 4, "images": 2, "batch": 2, "image_steps": 2, "steps": 2, "rank": 2, "chunk": 10}
SETTINGS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


def _command_of(text):
    """The arguments of the command line in a job file's torchrun."""
    arguments = shlex.split(text.replace("\\\n", " "))
    return arguments[arguments.index("fewstep.training") + 1 :]


def test_the_slurm_file_is_a_script_whose_command_is_understood():
    file = JOBS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", file.read_text())
    args = parser().parse_args(_command_of(text.split("srun", 1)[1]))
    assert args.command == "distil" and args.shared and args.device == "cuda"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in re.findall("#SBATCH.*", text))


def test_the_kubernetes_file_names_a_command_that_is_understood():
    text = (JOBS / "kubernetes.yaml").read_text()
    part = text.split("command:")[1].split("resources:")[0]
    command = re.findall(r"^            - (\S+)$", part, re.MULTILINE)
    assert command[0] == "torchrun" and "--rdzv-endpoint=fewstep-0.fewstep:29400" in command
    args = parser().parse_args(command[command.index("fewstep.training") + 1 :])
    assert args.command == "distil" and args.set == ["batch=32"] and args.shared


@pytest.mark.parametrize(
    "given,left",
    [
        (["distil", "--processes", "3", "--out", "a"], ["distil", "--out", "a"]),
        (["distil", "--processes=3"], ["distil"]),
        (["fit", "--steps", "2"], ["fit", "--steps", "2"]),
    ],
)
def test_the_processes_get_the_command_without_their_number(given, left):
    assert launch.without(given) == left


@pytest.mark.parametrize("count,words", [("0", "1 or more, got 0"), ("-2", "1 or more, got -2")])
def test_no_processes_are_refused(capsys, count, words):
    assert main(["distil", "--processes", count]) == 2
    assert words in capsys.readouterr().err


def test_within_torchrun_no_more_are_started_and_commands_of_one_are_refused(capsys, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("os._exit", lambda status: None)
    for command, words in (
        (["distil", "--processes", "2"], "processes must be left out where torchrun has started several"),
        (["demo"], "demo must be run by one process"),
        (["export", "a", "b"], "export must be run by one process"),
        (["distil"], "MASTER_PORT must be set by torchrun"),
    ):
        monkeypatch.delenv("MASTER_PORT", raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert main(command) == 2
        assert words in capsys.readouterr().err


def test_pieces_for_one_process_and_other_settings_are_refused_before_the_model_is_loaded(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("fewstep.training.cli.spec.Spec.denoiser", lambda *_, **__: pytest.fail("loaded"))
    assert main(["distil", "--out", str(tmp_path / "a"), "--shard-base", *SETTINGS]) == 2
    assert "shard_base must be left out for one process" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    spec = {"config": {"batch": 16, "method": "phased"}, "about": {}}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({"version": 1, "spec": spec}))
    assert main(["distil", "--out", str(tmp_path / "b"), *SETTINGS]) == 2
    assert "holds another run: its batch is 16 and not 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_below_a_folder_of_runs_is_listed(tmp_path, capsys):
    assert main(["distil", "--runs", "--out", str(tmp_path), *SETTINGS]) == 0
    (found,) = listing(tmp_path)
    assert found["state"] == "finished" and found["done"] == 4 and found["model"] == "flow"
    assert f"Written to {tmp_path / found['id']}" in capsys.readouterr().out


@pytest.fixture
def fewstep(tmp_path):
    """The command line in a process of its own; the folder of a checkout may have any name."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "fewstep").symlink_to(ROOT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "path")}

    def run(*arguments):
        command = [sys.executable, "-m", "fewstep.training", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_two_processes_from_the_command_line_make_the_lora_of_one(tmp_path, fewstep):
    for name, more in (("one", []), ("two", ["--processes", "2"])):
        done = fewstep("distil", "--out", str(tmp_path / name), *SETTINGS, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("4 updates; distance to the teacher") == 1
    (a, _), (b, _) = (load_lora(tmp_path / name / "lora.safetensors") for name in ("one", "two"))
    assert max(float((a[k].float() - b[k].float()).abs().max()) for k in a) < 1e-3
    assert any(a[k].any() for k in a if "up" in k)
    status = json.loads((tmp_path / "two" / "status.json").read_text())
    assert [row["rank"] for row in status["processes"]] == [0, 1]
    refused = fewstep(
        "distil", "--out", str(tmp_path / "three"), *SETTINGS, "--set", "batch=1", "--processes", "2"
    )
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.count("batch must be 2 or more for 2 processes") == 1
