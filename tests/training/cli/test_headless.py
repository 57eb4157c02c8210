"""Distilling from the command line: a packaged teacher and a diffusers folder, to the end, in parts, and
exported.
"""

import dataclasses
import json
import math
import subprocess
import sys
import types

import pytest
import torch
from fewstep.training.adapter.lora import Lora
from fewstep.training.cli import headless
from fewstep.training.cli.export import export
from fewstep.training.cli.headless import LARGE, LORA, SPEC, resume, suited
from fewstep.training.cli.main import main
from fewstep.training.cli.spec import Spec, read_config
from fewstep.training.formats.files import load_lora, save_lora
from fewstep.training.formats.recipe import Recipe
from fewstep.training.models import families
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import STATE
from fewstep.training.run.run import Run

TINY = {"updates": 4, "images": 2, "batch": 2, "image_steps": 2, "steps": 2, "rank": 2, "chunk": 10}
SETTINGS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


def test_distil_resume_and_the_file(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    assert main(["distil", "--out", out, *SETTINGS, "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "4 updates; distance to the teacher" in said and f"Written to {out}" in said
    tensors, recipe = load_lora(tmp_path / "run" / LORA)
    assert recipe.method == "phased" and recipe.trained["seed"] == 3 and len(recipe.sigmas) == 3
    monkeypatch.setattr(Run, "update", lambda self, *who: pytest.fail("trained again"))
    assert main(["resume", out]) == 0
    again, _ = load_lora(tmp_path / "run" / LORA)
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)


def test_stopped_by_ctrl_c_it_goes_on_to_the_same_file(tmp_path, monkeypatch, capsys):
    assert main(["reflow", "--out", str(tmp_path / "whole"), *SETTINGS]) == 0
    update = Run.update

    def stop(self, *who):
        if self.done == 2:
            raise KeyboardInterrupt
        return update(self, *who)

    monkeypatch.setattr(Run, "update", stop)
    capsys.readouterr()
    assert main(["reflow", "--out", str(tmp_path / "parts"), *SETTINGS]) == 130
    assert f"stopped. To go on: fewstep resume {tmp_path / 'parts'}" in capsys.readouterr().err
    assert (tmp_path / "parts" / STATE).exists() and load_lora(tmp_path / "parts" / LORA)[1].trained[
        "updates"
    ] == 2
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "parts")]) == 0
    (a, recipe), (b, _) = load_lora(tmp_path / "whole" / LORA), load_lora(tmp_path / "parts" / LORA)
    assert recipe.method == "rectified-diffusion" and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_goes_on_by_the_settings_that_followed_from_others_when_it_began(tmp_path, monkeypatch):
    """Before there were more solver steps above CFG 3, for instance, they were 8 at any CFG."""
    out = str(tmp_path / "run")
    given = {"cfg": 6.0, "image_steps": 8, **{k: TINY[k] for k in TINY.keys() - {"image_steps"}}}
    distil = headless.distil

    def older(out, spec, settings, *rest, **how):
        run = distil(out, spec, given, *rest, **how)
        spec_file = tmp_path / "run" / SPEC
        found = json.loads(spec_file.read_text())
        found["settings"].pop("image_steps")
        spec_file.write_text(json.dumps(found))
        return run

    monkeypatch.setattr(headless, "distil", older)
    assert main(["distil", "--out", out]) == 0
    monkeypatch.setattr(headless, "distil", distil)
    assert DistilConfig(cfg=6.0).image_steps == 16
    assert resume(out).config.image_steps == 8


def test_a_run_that_spoils_the_model_says_so(tmp_path, capsys):
    for lr, spoilt in ((1.0, True), (1e-3, False)):
        assert main(["distil", "--out", str(tmp_path / str(lr)), *SETTINGS, "--set", f"lr={lr}"]) == 0
        said = capsys.readouterr().out
        before, now = (float(said.split(word)[0].split()[-1]) for word in (" before", " now"))
        assert (
            (now >= before)
            == spoilt
            == ("no nearer to the teacher than the untrained model. Lower lr" in said)
        )


def test_a_config_file_in_toml_and_json_says_the_same(tmp_path):
    config = DistilConfig(method="reflow", rounds=2, include=("*attn*",), alpha=8.0)
    (tmp_path / "a.json").write_text(json.dumps(config.to_dict()))
    lines = [f"{k} = {json.dumps(v)}" for k, v in config.to_dict().items() if v is not None]
    (tmp_path / "a.toml").write_text("\n".join(lines))
    assert all(
        DistilConfig.from_dict(read_config(tmp_path / f"a.{kind}")) == config for kind in ("json", "toml")
    )


def test_a_diffusers_folder_is_distilled_resumed_and_exported(tmp_path, capsys, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_diffusers import pipeline

    pipeline("sd3").save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    run = ["distil", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), *SETTINGS]
    assert main(run) == 2 and "prompts must hold at least one prompt" in capsys.readouterr().err
    run += ["--prompts", str(tmp_path / "prompts.txt"), "--size"]
    assert (
        main([*run, "24,32"]) == 2
        and "multiples of 16 pixels, got 24 wide and 32 high" in capsys.readouterr().err
    )
    assert main([*run, "16,32"]) == 0
    found = json.loads((tmp_path / "run" / SPEC).read_text())
    assert found["settings"] == {
        **LARGE,
        "cfg": 5.0,
        "lr": 5e-5,
        "method": "phased",
        **TINY,
    }  # SD3's, under the user's
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["spec"]["about"]["shape"] == [
        16,
        4,
        2,
    ]
    monkeypatch.setitem(families.FAMILIES, "sd3", families.Family(cfg=2.0))
    assert main(["resume", str(tmp_path / "run")]) == 0  # with what it began with
    native, recipe = load_lora(tmp_path / "run" / LORA)
    assert recipe.path == "flow" and recipe.base == "" and recipe.trained["family"] == "sd3"
    assert any(k.startswith("diffusion_model.joint_blocks.0.") for k in native)
    assert main(["export", str(tmp_path / "run" / LORA), str(tmp_path / "out.safetensors")]) == 0
    exported, _ = load_lora(tmp_path / "out.safetensors")
    assert all(
        k.startswith("transformer.") and k.endswith(("lora_A.weight", "lora_B.weight")) for k in exported
    )
    model = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer")
    pytest.importorskip("peft")
    model.load_lora_adapter(exported)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(exported) // 2


@pytest.mark.parametrize(
    "family, wanted",
    [
        ("flux", {"cfg": 1.0, "rank": 32, "lr": 5e-5}),
        ("sd1", {"cfg": 6.0, "rank": 64, "lr": 1e-4}),
        ("sdxl", {"cfg": 6.5, "rank": 64, "lr": 5e-5}),
        ("new", {"cfg": 4.0, "rank": 32, "lr": 1e-4}),
    ],
)
def test_settings_are_those_of_the_family_unless_the_user_says_otherwise(family, wanted):
    model = types.SimpleNamespace(family=family)
    assert suited(model, {}) == {**LARGE, **wanted}
    assert suited(model, {"lr": 1e-3, "batch": 2}) == {**LARGE, **wanted, "lr": 1e-3, "batch": 2}
    assert suited(object(), {"lr": 1e-3}) == {"lr": 1e-3}  # a packaged teacher


@pytest.mark.parametrize("method", ["matching", "anchored", "phased-matching", "phased"])
def test_a_method_has_its_own_share_of_the_familys_learning_rate(method):
    """As the node has it."""
    model, usual = types.SimpleNamespace(family="sd1"), families.usual("sd1").lr
    share = DistilConfig(method=method).lr / DistilConfig().lr
    assert suited(model, {"method": method})["lr"] == pytest.approx(share * usual)
    assert suited(model, {"method": method, "lr": 1e-3})["lr"] == 1e-3
    assert (share < 0.1) == (method in ("matching", "anchored"))


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["distil", "--set", "steps"], "--set must be NAME=VALUE, got 'steps'"),
        (["distil", "--set", "stepps=4"], "known settings, got stepps"),
        (["distil", "--set", "lr=2"], "lr must be a finite number from 0 to 1, got 2"),
        (["distil", "--set", f"shift={10**400}"], "shift must be a finite number"),
        (
            ["distil", "--set", f"include={'[' * 100_000}"],
            "--set include must be a setting's value, and is nested too deeply",
        ),
        (
            ["distil", "--model", "nowhere"],
            "model must be flow, epsilon or a diffusers folder, got 'nowhere'",
        ),
        (["distil", "--model", ""], "model must be flow, epsilon or a diffusers folder, got ''"),
        (
            ["distil", "--prompts", "p.txt", "--size", "8,8"],
            "--prompts, --size must be left out for the packaged teacher flow",
        ),
        (
            ["reflow", "--negative", "", "--dtype", "float32"],
            "--negative, --dtype must be left out for the packaged teacher flow",
        ),
        (["distil", "--model", ".", "--size", "8"], "size must be width,height such as 512,768, got 8"),
        (
            ["distil", "--model", ".", "--prompts", "none.txt"],
            "file must be there, and 'none.txt' is not. Check its name",
        ),
        (
            ["distil", "--model", ".", "--prompts", "empty.txt"],
            "prompts must hold at least one prompt, and empty.txt has none",
        ),
        (["distil", "--config", "nowhere.toml"], "nowhere.toml must be a config in JSON or TOML"),
        (
            ["distil", "--config", "list.json"],
            'list.json must hold settings by name, such as {"steps": 4}, got []',
        ),
        (
            ["distil", "--config", "deep.json"],
            "deep.json must be a config in JSON or TOML, and is nested too deeply",
        ),
        (
            ["distil", "--config", "deep.TOML"],
            "deep.TOML must be a config in JSON or TOML, and is nested too deeply",
        ),
        (["distil", "--method", "restoration"], '--set \'process=[{"kind": "blur"}]\''),
        (["distil", "--memory", "0.001"], "Training one sample must fit into"),
        (["distil", "--memory", "0.0001"], "memory must be a number of GB from 0.001 up, got 0.0001"),
        (["distil", "--out", "list.json"], "out must be a folder, and list.json is a file"),
        (["demo", "--out", "list.json"], "out must be a folder, and list.json is a file"),
        (["fit", "--out", "list.json"], "out must be a folder, and list.json is a file"),
        (["resume", "nowhere"], "nowhere must be the folder of a run"),
        (["export", "nowhere", "x"], "nowhere"),
        (
            ["export", "nowhere", "list.json"],
            "out must be a new file, and list.json is there already. Choose another name.",
        ),
        (["export", "nowhere", "."], "out must be a new file, and . is there already"),
        (
            ["export", "nowhere", "no/x.safetensors"],
            "out must be a file in a folder that is there, and no is not",
        ),
    ],
)
def test_faults_are_one_line_and_status_2(arguments, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("list.json", "[]"),
        ("deep.json", "[" * 100_000),
        ("deep.TOML", f"a = {'[' * 50_000}"),
        ("empty.txt", "#"),
    ):
        (tmp_path / name).write_text(text)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert why in said and "Traceback" not in said and (tmp_path / "list.json").read_text() == "[]"


@pytest.mark.parametrize(
    "name, text", [("bom.json", '{"steps": 2}'), ("UP.TOML", "steps = 2"), ("bom.toml", "steps = 2")]
)
def test_configs_as_other_editors_write_them_are_read(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_config(tmp_path / name) == {"steps": 2}


def test_memory_that_runs_out_is_told_and_other_faults_are_not_hidden(tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError(words)

    monkeypatch.setattr(headless, "distil", fail)
    words = (
        "[enforce fail at alloc_cpu.cpp:117]\nDefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9 bytes"
    )
    assert main(["distil", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        "the run must fit into memory, and does not ([enforce fail" in said and said.rstrip().count("\n") == 0
    )
    words = "a fault of ours"
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["distil", "--out", str(tmp_path)])


def test_without_torch_it_says_how_to_install_it():
    code = (
        "import sys, runpy; sys.modules['torch'] = None; "
        "runpy.run_module('fewstep.training', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install torch" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "change, why",
    [
        ({"model": "/nowhere"}, "got '/nowhere'"),
        ({"model": 5}, "model must be"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"width": "a", "height": 8}, "width and height must be whole numbers of pixels, got 'a' and 8"),
        ({"x": 1}, "'x'"),
        ({"height": 8}, "width and height must"),
        ({"device": "mps"}, "device must be one of cpu, cuda, got 'mps'"),
        ({"prompts": "a cat"}, "prompts must be a list of texts, got 'a cat'"),
        ({"negative": 1}, "negative must be text, got 1"),
    ],
)
def test_a_run_json_that_does_not_do_is_named(change, why, tmp_path):
    spec = {**dataclasses.asdict(Spec(model="flow")), **change}
    (tmp_path / SPEC).write_text(json.dumps({"version": 1, "spec": spec, "settings": {}, "memory": None}))
    with pytest.raises(ValueError) as raised:
        resume(tmp_path)
    assert f"{tmp_path / SPEC} must tell what a run is of" in str(raised.value) and why in str(raised.value)


@pytest.mark.parametrize(
    "text, why",
    [
        ("{", "must tell what a run is of"),
        ("[]", "must tell what a run is of"),
        ("[" * 100_000, "must tell what a run is of"),
        ('{"spec": {"model": "flow"}, "settings": 5, "memory": null}', "must tell what a run is of"),
        (
            '{"spec": {"model": "flow"}, "settings": {}, "memory": "a"}',
            "memory in .* must be a number of bytes or null, got 'a'",
        ),
    ],
)
def test_a_broken_run_json_is_named(text, why, tmp_path):
    (tmp_path / SPEC).write_text(text)
    with pytest.raises(ValueError, match=f"{SPEC}.*{why}|{why}"):
        resume(tmp_path)


# ---- export ----------------------------------------------------------------------------------------


def pair(layer, value=1.0):
    name = f"diffusion_model.{layer}"
    return {f"{name}.lora_up.weight": torch.full((4, 2), value), f"{name}.lora_down.weight": torch.ones(2, 4)}


def test_export_overwrites_nothing_and_writes_no_nan(tmp_path, capsys):
    lora, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_lora(lora, pair("img_in"))
    before = lora.read_bytes()
    assert main(["export", str(lora), str(lora), "--family", "flux"]) == 2 and lora.read_bytes() == before
    save_lora(lora, pair("img_in", math.nan))
    assert main(["export", str(lora), str(out), "--family", "flux"]) == 2 and not out.exists()
    assert (
        "must hold finite weights, got NaN or infinity in diffusion_model.img_in.lora_up"
        in capsys.readouterr().err
    )


def test_the_family_is_given_or_told_by_the_recipe(tmp_path, capsys):
    lora, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_lora(lora, pair("img_in"))
    assert main(["export", str(lora), str(out)]) == 2 and "family must be given" in capsys.readouterr().err
    assert main(["export", str(lora), str(out), "--family", "flux"]) == 0
    recipe = Recipe(
        method="phased", path="flow", sigmas=(1.0, 0.0), trained={"family": "flux", "blocks": None}
    )
    save_lora(lora, pair("img_in"), recipe)
    assert export(lora, tmp_path / "c.safetensors") == 1
    assert load_lora(tmp_path / "c.safetensors")[0].keys() == load_lora(out)[0].keys()


def test_what_needs_no_other_format_is_told_so(tmp_path):
    teacher = DemoTeacher("flow")
    lora = Lora(teacher.module, 1)
    save_lora(tmp_path / "demo.safetensors", lora.state_dict())
    with pytest.raises(ValueError, match="demo.safetensors: a packaged teacher's LoRA has no other format"):
        export(tmp_path / "demo.safetensors", tmp_path / "x")
    save_lora(tmp_path / "flux.safetensors", pair("single_blocks.0.linear2"))
    with pytest.raises(ValueError, match="got ComfyUI's: it loads this LoRA as it is"):
        export(tmp_path / "flux.safetensors", tmp_path / "x", "comfyui")
    assert not (tmp_path / "x").exists()


def test_quality_sets_the_length_and_a_setting_of_its_own_goes_before(tmp_path, monkeypatch):
    found = {}

    def keep(out, spec, settings, *_, **__):
        found.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(headless, "distil", keep)
    asked = ["--quality", "best", "--set", "images=7"]
    assert main(["distil", "--out", str(tmp_path), *asked]) == 130
    assert (found["updates"], found["images"]) == (1600, 7)
