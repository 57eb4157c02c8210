"""The short import path that the README shows, and that it costs nothing until a name is asked for."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fewstep import training
from fewstep.training.run import fitting

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
LOADED = """
import sys
sys.path.insert(0, "tests")
import conftest
import fewstep.training
print(*sorted(name for name in sys.modules if name.startswith("fewstep")))
from fewstep.training import fit_denoiser
print("fewstep.training.run.fitting" in sys.modules)
"""


@pytest.mark.parametrize("name", training.__all__)
def test_a_short_name_is_the_function_itself(name):
    assert getattr(training, name) is getattr(fitting, name)
    assert name in dir(training)


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="module 'fewstep.training' has no attribute 'fit_everything'"):
        _ = training.fit_everything
    with pytest.raises(ImportError, match="cannot import name 'fit_everything'"):
        from fewstep.training import fit_everything  # noqa: F401


def test_importing_the_room_imports_nothing_else():
    run = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["fewstep fewstep.training", "True"]


def test_the_readmes_example_runs(tmp_path):
    """For data with a standard deviation of 1/2, whose exact denoiser is known, and small pictures."""
    assert "from fewstep.training import fit_denoiser, sample_recipe" in EXAMPLE
    small = EXAMPLE.replace("4, 64, 64", "4, 8, 8")
    names = {"torch": torch, "denoise": lambda x, sigma: x * 0.25 / (0.25 + sigma**2)}
    torch.manual_seed(0)
    file = tmp_path / "example.py"
    file.write_text(small, encoding="utf-8")
    names |= runpy.run_path(file, names)
    assert names["image"].shape == (1, 4, 8, 8)
    assert 0.3 < names["image"].std() < 0.7
