"""What the benchmarks take from the package is there, so that they still start when it has moved; and the
tiny forms of those that need a real ComfyUI or a card.
"""

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def taken(script):
    """[(module, name)] of all that a script imports from the package."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fewstep"
        for alias in node.names
    ]


def is_there(module, name):
    """Whether `from module import name` works."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_import_is_there(script):
    assert [pair for pair in taken(script) if not is_there(*pair)] == []


def test_most_scripts_take_something_and_what_is_gone_is_found():
    assert sum(bool(taken(script)) for script in SCRIPTS) > 8
    assert is_there("fewstep.training.run", "config") and is_there("fewstep.diffusion.step", "step")
    assert not is_there("fewstep.training.run.config", "gone") and not is_there("fewstep.gone", "step")


def run(name, file, comfyui_folder, *options):
    """What a script in its tiny form writes into its JSON file."""
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui_folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--tiny", "--json", str(file), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(file.read_text()), done.stdout


@pytest.mark.comfy
def test_the_memory_plan_has_a_row_for_each_preset(comfyui_folder, tmp_path):
    found, said = run("memory_plan.py", tmp_path / "plan.json", comfyui_folder)
    rows = found["rows"]
    assert [row["preset"] for row in rows] == [6, 8, 12, 16, 24, 48] and len(said.splitlines()) == 7
    for row in rows:
        assert {"family", "size", "residency", "checkpointing", "micro_batch", "rank", "peak"} <= row.keys()
        assert row["fits"] and 0 < row["weights"] < row["peak"] <= row["budget"] < row["preset"] << 30


def test_the_memory_plans_published_rows_honour_their_budgets():
    """To the byte; and the cards that training is meant for are enough."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory_plan.json").read_text())["rows"]
    assert all(row["peak"] <= row["budget"] for row in rows if row["fits"])
    found = {(row["family"], row["size"], row["preset"]): row for row in rows}
    for family, size, preset, residency in (
        ("SDXL", "1024", 8, "streamed"),
        ("Flux dev fp8", "1024", 12, "streamed"),
        ("SD1.5", "512", 6, "resident"),
    ):
        row = found[family, size, preset]
        assert row["fits"] and row["residency"] == residency, row


def card():
    """`benchmarks/card.py` as a module."""
    spec = importlib.util.spec_from_file_location("fewstep_card", ROOT / "benchmarks" / "card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "output, errors, code, wanted",
    [
        ('said\n{"peak": 3}\n', "a warning", 0, {"peak": 3}),
        (
            '{"peak": 3}\n',
            "Traceback\nRuntimeError: an illegal access\n",
            -6,
            "RuntimeError: an illegal access",
        ),
        ("", "", -9, "ended with -9"),
        ("no figures", "", 0, "ended with 0"),
    ],
)
def test_a_section_that_fails_is_a_line_of_the_table(output, errors, code, wanted):
    found = card().result(output, errors, code)
    assert found == (wanted if isinstance(wanted, dict) else {"error": wanted})
    if "error" in found:
        assert card().line_of({"model": "SDXL", "way": "resident", **found}).endswith(wanted)


def test_a_section_for_which_no_time_is_left_is_not_begun():
    assert card().section("SDXL", "resident", 0, True)["error"] == "no time was left"
    assert card().WHOLE < 8 * 60


@pytest.mark.comfy
def test_every_section_of_the_card_runs_on_tiny_models(comfyui_folder, tmp_path):
    found, said = run("card.py", tmp_path / "card.json", comfyui_folder)
    rows = found["rows"]
    assert len(rows) == len(card().SECTIONS) and [row for row in rows if "error" in row] == [], said
    ours = [row for row in rows if row["way"] != "LCM-LoRA"]
    assert len(ours) == 6 and all(abs(row["slope"] - 1) < 2e-3 and not row["skipped"] for row in ours)
    assert all(row["samples_per_second"] > 0 for row in rows)
    assert all(row["predicted_peak"] > 0 and row["teacher_samples_per_second"] > 0 for row in ours)
