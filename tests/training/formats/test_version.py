"""Every file says which Fewstep wrote it, and a recipe of a newer one says that it is newer."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from fewstep.training.cli.main import main
from fewstep.training.formats.files import read_tensors, save_lora
from fewstep.training.formats.recipe import Recipe
from fewstep.training.formats.version import METADATA_KEY, VERSION

ROOT = Path(__file__).parents[3]
RECIPE = Recipe(method="phased", path="flow", sigmas=(1.0, 0.0))


def test_it_is_the_version_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["version"] == VERSION


def test_the_command_says_it(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"fewstep {VERSION}\n"


def test_a_lora_and_its_recipe_say_it(tmp_path):
    metadata = read_tensors(save_lora(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, RECIPE))[1]
    assert metadata[METADATA_KEY] == VERSION
    assert json.loads(metadata["fewstep.recipe"])["made_by"] == VERSION


def test_a_recipe_from_before_is_read():
    old = json.loads(RECIPE.to_json())
    del old["made_by"]
    assert Recipe.from_json(json.dumps(old)).made_by == ""


@pytest.mark.parametrize("change", [{"version": 3}, {"something_new": 1}], ids=["version", "field"])
def test_a_newer_one_says_so(change):
    newer = {**json.loads(RECIPE.to_json()), "made_by": "7.1.0", **change}
    with pytest.raises(ValueError, match=rf"\(made by Fewstep 7\.1\.0, this is {VERSION}\)"):
        Recipe.from_json(json.dumps(newer))
