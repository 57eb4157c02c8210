"""Distilling from the command line: a packaged teacher and a diffusers folder, to the end, in parts, and exported."""

import json

import pytest
import torch
from fewstep.training.__main__ import main
from fewstep.training.config import DistilConfig
from fewstep.training.distil import Distillation
from fewstep.training.files import load_lora
from fewstep.training.headless import LORA, Spec, read_config
from fewstep.training.job import STATE

TINY = {"updates": 4, "images": 2, "batch": 2, "image_steps": 2, "steps": 2, "rank": 2, "chunk": 10}
SETTINGS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


def test_distil_resume_and_the_file(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    assert main(["distil", "--out", out, *SETTINGS, "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "4 updates; distance to the teacher" in said and f"Written to {out}" in said
    tensors, recipe = load_lora(tmp_path / "run" / LORA)
    assert recipe.method == "phased" and recipe.trained["seed"] == 3 and len(recipe.sigmas) == 3
    monkeypatch.setattr(Distillation, "update", lambda self: pytest.fail("trained again"))
    assert main(["resume", out]) == 0
    again, _ = load_lora(tmp_path / "run" / LORA)
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)


def test_stopped_by_ctrl_c_it_goes_on_to_the_same_file(tmp_path, monkeypatch, capsys):
    assert main(["reflow", "--out", str(tmp_path / "whole"), *SETTINGS]) == 0
    update = Distillation.update

    def stop(self):
        if self.done == 2:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Distillation, "update", stop)
    assert main(["reflow", "--out", str(tmp_path / "parts"), *SETTINGS]) == 130
    assert (tmp_path / "parts" / STATE).exists() and load_lora(tmp_path / "parts" / LORA)[1].trained["updates"] == 2
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "parts")]) == 0
    (a, recipe), (b, _) = load_lora(tmp_path / "whole" / LORA), load_lora(tmp_path / "parts" / LORA)
    assert recipe.method == "rectified-diffusion" and all(torch.equal(a[k], b[k]) for k in a)


def test_a_config_file_in_toml_and_json_says_the_same(tmp_path):
    config = DistilConfig(method="reflow", rounds=2, include=("*attn*",), alpha=8.0)
    (tmp_path / "a.json").write_text(json.dumps(config.to_dict()))
    lines = [f"{k} = {json.dumps(v)}" for k, v in config.to_dict().items() if v is not None]
    (tmp_path / "a.toml").write_text("\n".join(lines))
    assert all(DistilConfig.from_dict(read_config(tmp_path / f"a.{kind}")) == config for kind in ("json", "toml"))


def test_a_diffusers_folder_is_distilled_resumed_and_exported(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_diffusers import pipeline

    pipeline("sd3").save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    run = ["distil", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--size", "16,16", *SETTINGS]
    assert main(run) == 2 and "prompts must hold at least one prompt" in capsys.readouterr().err
    assert main([*run, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    assert main(["resume", str(tmp_path / "run")]) == 0
    native, recipe = load_lora(tmp_path / "run" / LORA)
    assert recipe.path == "flow" and recipe.base == ""
    assert any(k.startswith("diffusion_model.joint_blocks.0.") for k in native)
    assert main(["export", str(tmp_path / "run" / LORA), str(tmp_path / "out.safetensors")]) == 0
    exported, _ = load_lora(tmp_path / "out.safetensors")
    assert all(k.startswith("transformer.") and k.endswith(("lora_A.weight", "lora_B.weight")) for k in exported)
    model = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer")
    pytest.importorskip("peft")
    model.load_lora_adapter(exported)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(exported) // 2


@pytest.mark.parametrize("arguments, why", [
    (["distil", "--set", "steps"], "--set must be NAME=VALUE, got 'steps'"),
    (["distil", "--set", "stepps=4"], "known settings, got stepps"),
    (["distil", "--set", "lr=2"], "lr must be a finite number from 0 to 1, got 2"),
    (["distil", "--model", "nowhere"], "model must be flow, epsilon or a diffusers folder, got 'nowhere'"),
    (["distil", "--config", "nowhere.toml"], "nowhere.toml must be a config in JSON or TOML"),
    (["distil", "--memory", "0.001"], "Training one sample must fit into"),
    (["resume", "nowhere"], "nowhere must be the folder of a run"),
    (["export", "nowhere", "x"], "nowhere")])
def test_faults_are_one_line_and_status_2(arguments, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert why in said and "Traceback" not in said


def test_a_spec_is_checked():
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16, got 'int8'"):
        Spec(model="flow", dtype="int8")
