"""`fewstep distil --start-from FILE`: a run begins with a LoRA file's function, whatever its layout and rank,
also when it is resumed; what doesn't fit is named before the teacher draws anything.
"""

import json

import pytest
import torch
from fewstep.training.adapter.lora import Lora
from fewstep.training.cli import headless
from fewstep.training.cli.headless import FOR_DIFFUSERS, LORA, SPEC
from fewstep.training.cli.main import main
from fewstep.training.formats.files import load_lora, save_lora, write_tensors
from fewstep.training.formats.lora_keys import from_diffusers, on_layers, table, to_diffusers
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.run.probe import NONE, Probe
from fewstep.training.run.run import Run

TINY = {"updates": 1, "images": 2, "batch": 2, "image_steps": 2, "steps": 2, "rank": 2, "chunk": 10}
SETTINGS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


class Begun(Exception):
    """The run has begun, and no teacher was asked yet."""


@pytest.fixture
def begun(monkeypatch):
    """{layer: the change that the run begins with}, filled when a run gets as far; it then ends."""
    found = {}

    def progress(run):
        lora = run.student.lora
        for name, pair in lora.weights.items():
            found[name] = lora.scale * (pair["up"] @ pair["down"].flatten(1)).detach()
        assert run.student.warmed == any(bool(change.any()) for change in found.values())
        raise Begun
        yield

    monkeypatch.setattr(Run, "progress", progress)
    return found


def trained(module, rank=2, seed=6, **options):
    """A LoRA of random weights on a module, as (its file's tensors, {layer: its change})."""
    lora, g = Lora(module, rank, **options), torch.Generator().manual_seed(seed)
    lora.load([0.1 * torch.randn(p.shape, generator=g) for p in lora.parameters()])
    changes = {
        name: lora.scale * (pair["up"] @ pair["down"].flatten(1)).detach()
        for name, pair in lora.weights.items()
    }
    tensors = lora.state_dict()
    lora.remove()
    return tensors, changes


def distil(out, *more):
    return main(["distil", "--out", str(out), *SETTINGS, *map(str, more)])


def same(found, wanted):
    """Whether two {layer: change} are alike; what the second lacks is zero in the first."""
    return all(
        torch.allclose(change, wanted.get(name, torch.zeros(())), atol=1e-5) for name, change in found.items()
    )


def test_a_packaged_teachers_lora_of_any_rank_is_begun_with(tmp_path, begun):
    teacher = DemoTeacher("flow")
    for rank in (1, 5):
        file = tmp_path / f"{rank}.safetensors"
        tensors, changes = trained(teacher.module, rank, alpha=3.0)
        save_lora(file, tensors)
        if rank > TINY["rank"]:  # Eckart & Young
            for name, change in changes.items():
                u, s, v = torch.linalg.svd(change, full_matrices=False)
                changes[name] = (u[:, :2] * s[:2]) @ v[:2]
        with pytest.raises(Begun):
            distil(tmp_path / f"run{rank}", "--start-from", file, "--set", "alpha=1.0")
        assert begun.keys() == changes.keys() and same(begun, changes)


def test_it_is_begun_with_again_before_there_is_a_state_and_not_wanted_after(
    tmp_path, begun, monkeypatch, capsys
):
    file, out = tmp_path / "a.safetensors", tmp_path / "run"
    tensors, changes = trained(DemoTeacher("flow").module)
    save_lora(file, tensors)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Begun):
        distil(out, "--start-from", "a.safetensors")
    told = json.loads((out / SPEC).read_text())["start_from"]
    assert (
        told == {"file": str(file), "partly": False, "digest": told["digest"]} and len(told["digest"]) == 16
    )
    begun.clear()
    monkeypatch.chdir("/")
    with pytest.raises(Begun):
        main(["resume", str(out)])
    assert same(begun, changes) and any(change.any() for change in begun.values())

    kept = file.read_bytes()
    save_lora(file, {key: 2 * value for key, value in tensors.items()})
    assert main(["resume", str(out)]) == 2
    assert f"{file} must be the LoRA that the run began with, and has changed" in capsys.readouterr().err
    file.unlink()
    assert main(["resume", str(out)]) == 2
    assert f"start_from must be a LoRA file, and {file} can't be read" in capsys.readouterr().err

    file.write_bytes(kept)
    monkeypatch.undo()
    assert main(["resume", str(out)]) == 0
    file.unlink()
    capsys.readouterr()
    monkeypatch.setattr(Probe, "outcome", NONE)
    assert main(["resume", str(out)]) == 0  # the state has what came of it
    assert "no nearer to the teacher than the LoRA that it began with" in capsys.readouterr().out


def test_another_file_is_another_run(tmp_path, begun, monkeypatch, capsys):
    tensors, _ = trained(DemoTeacher("flow").module)
    for name, scale in (("a", 1), ("b", 2)):
        save_lora(tmp_path / f"{name}.safetensors", {key: scale * t for key, t in tensors.items()})
    with pytest.raises(Begun):
        distil(tmp_path / "run", "--start-from", tmp_path / "a.safetensors")
    monkeypatch.setattr("fewstep.training.cli.spec.Spec.denoiser", lambda *_, **__: pytest.fail("loaded"))
    for more in ((), ("--start-from", tmp_path / "b.safetensors")):
        assert distil(tmp_path / "run", *more) == 2
        assert "run holds another run: its start_from is '" in capsys.readouterr().err


def test_the_plan_is_of_a_run_that_begins_with_it_at_the_rank_that_was_asked(tmp_path, begun, monkeypatch):
    real, given = headless.plan, {}

    def plan(*args, warm, lower_rank):
        given.update(warm=warm, lower_rank=lower_rank)
        return real(*args, warm=warm, lower_rank=lower_rank)

    monkeypatch.setattr(headless, "plan", plan)
    tensors, _ = trained(DemoTeacher("flow").module)
    save_lora(tmp_path / "a.safetensors", tensors)
    usual = [part for part in SETTINGS if "rank" not in part]
    usual = [part for part, after in zip(usual, [*usual[1:], ""]) if (part, after) != ("--set", "--set")]
    line = ["distil", *usual, "--out"]
    with pytest.raises(Begun):
        main([*line, str(tmp_path / "plain")])
    assert given == {"warm": None, "lower_rank": True}
    with pytest.raises(Begun):
        main([*line, str(tmp_path / "warm"), "--start-from", str(tmp_path / "a.safetensors")])
    assert given["lower_rank"] is False and len(given["warm"]) == len(tensors) * 2 // 3


def test_what_does_not_fit_is_named_before_anything_long(tmp_path, begun, monkeypatch, capsys):
    tensors, changes = trained(DemoTeacher("flow").module)
    layer = next(iter(changes))
    file, up = tmp_path / "a.safetensors", f"diffusion_model.{layer}.lora_up.weight"
    text = {"lora_te1_x.lora_up.weight": torch.ones(2, 1), "text_encoder.x.lora_A.weight": torch.ones(1, 2)}
    none = {key.replace("diffusion_model.", "diffusion_model.no."): t.clone() for key, t in tensors.items()}
    partly = ["--start-partly"]
    for found, more, why in (
        ({**tensors, "diffusion_model.norm.diff": torch.ones(3)}, [], "also has diffusion_model.norm.diff"),
        ({**tensors, "lora_unet_no_out.lora_up.weight": torch.ones(2, 1)}, [], "also has lora_unet_no_out."),
        (
            {**tensors, **dict(list(none.items())[:3])},
            [],
            f"also has no.{layer}. Choose another file, or add",
        ),
        (none, partly, "a.safetensors has none of its layers"),
        (text, partly, "a.safetensors has none of its layers"),
        (
            {k: t for k, t in tensors.items() if k != up},
            partly,
            "a.safetensors: tensors must hold up (out, r",
        ),
        ({**tensors, up: torch.ones(3, 2)}, [], f"does not fit: diffusion_model.{layer} must be"),
        (
            {**tensors, up: tensors[up] * torch.nan},
            [],
            "must hold finite lora_up and lora_down weights, diff",
        ),
        (tensors, ["--set", 'include=["no*", "*out*"]'], "must have layers of this run alone, got"),
    ):
        save_lora(file, found)
        assert distil(tmp_path / "run", "--start-from", file, *more) == 2, why
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1
    for name, content, why in (
        ("b.ckpt", b"\x80pickle", "b.ckpt must be a LoRA in safetensors, and can't be read"),
        ("none", None, "start_from must be a LoRA file, and"),
    ):
        if content:
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr("fewstep.training.cli.spec.Spec.denoiser", lambda *_, **__: pytest.fail("loaded"))
        assert distil(tmp_path / "run", "--start-from", tmp_path / name) == 2
        assert why in capsys.readouterr().err
    assert distil(tmp_path / "run", "--start-partly") == 2
    assert "--start-partly must go with --start-from FILE" in capsys.readouterr().err
    assert not begun and not (tmp_path / "run" / SPEC).exists()


def test_partly_and_without_text_encoders_it_begins_with_the_rest(tmp_path, begun):
    tensors, changes = trained(DemoTeacher("flow").module)
    file = tmp_path / "a.safetensors"
    more = {"lora_te_x.lora_up.weight": torch.ones(2, 1)}
    save_lora(file, {**tensors, **more})
    with pytest.raises(Begun):
        distil(tmp_path / "a", "--start-from", file)
    assert same(begun, changes)
    left = next(iter(changes))
    full = {key: t for key, t in tensors.items() if not key.startswith(f"diffusion_model.{left}.")}
    write_tensors(file, {**full, f"diffusion_model.{left}.diff": torch.ones(3)}, {})
    with pytest.raises(Begun):
        distil(tmp_path / "b", "--start-from", file, "--start-partly")
    assert same(begun, {name: change for name, change in changes.items() if name != left})
    assert json.loads((tmp_path / "b" / SPEC).read_text())["start_from"]["partly"] is True


OTHERS = {  # what is no plain LoRA, of a layer of 4 x 3
    "DoRA": {"lora_up.weight": (4, 2), "lora_down.weight": (2, 3), "alpha": (), "dora_scale": (4, 1)},
    "a middle": {"lora_up.weight": (4, 2), "lora_down.weight": (2, 3), "lora_mid.weight": (2, 2)},
    "LoHa": {"hada_w1_a": (4, 2), "hada_w1_b": (2, 3), "hada_w2_a": (4, 2), "hada_w2_b": (2, 3), "alpha": ()},
    "LoKr": {"lokr_w1": (2, 1), "lokr_w2": (2, 3), "alpha": ()},
    "alpha alone": {"alpha": ()},
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_a_layer_that_is_no_plain_lora_is_none_as_a_whole(prefix, kind):
    layer = {f"{prefix}other.{name}": torch.ones(shape) for name, shape in OTHERS[kind].items()}
    plain = {
        f"{prefix}one.lora_up.weight": torch.ones(4, 2),
        f"{prefix}one.lora_down.weight": torch.ones(2, 3),
    }
    pairs, odd = on_layers({**plain, **layer}, ["one", "other"])
    assert set(pairs) == {"one"} and odd == [f"{prefix}other"]


@pytest.mark.parametrize("half", ["up", "down"])
def test_a_layer_with_one_half_is_refused(half):
    with pytest.raises(ValueError, match="one has"):
        on_layers({f"diffusion_model.one.lora_{half}.weight": torch.ones(4, 2)}, ["one"])


@pytest.mark.parametrize(
    "told, why",
    [
        ({"file": 1, "digest": ""}, "file must be text, got 1"),
        ({"file": "a", "digest": None}, "digest must be text, got None"),
        ({"file": "a", "digest": "", "partly": 1}, "partly must be true or false, got 1"),
        ({"file": "a"}, "digest"),
        ("a", "mapping"),
    ],
)
def test_a_run_json_that_tells_it_wrongly_is_named(tmp_path, told, why):
    spec = {"spec": {"model": "flow"}, "settings": {}, "memory": None, "start_from": told}
    (tmp_path / SPEC).write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=f"{SPEC} must tell what a run is of.*{why}"):
        headless.resume(tmp_path)


# ---- layouts ---------------------------------------------------------------------------------------


def kohya(tensors, prefix="lora_unet"):
    """Native or headless keys in kohya's spelling."""
    out = {}
    for key, tensor in tensors.items():
        layer, half = key.removeprefix("diffusion_model.").split(".lora_" if ".lora_" in key else ".alpha")
        half = f"lora_{half}" if half else "alpha"
        out[f"{prefix}_{layer.replace('.', '_')}.{half}"] = tensor
    return out


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_every_layout_of_a_diffusers_models_lora_is_the_same_beginning(family):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_diffusers import module

    net = module(family)
    headless_keys, changes = trained(net, alpha=3.0)
    blocks = net.config.get("layers_per_block")
    native = from_diffusers(headless_keys, family, blocks)
    layouts = {
        "native": native,
        "headless": headless_keys,
        "peft": to_diffusers(headless_keys, family, blocks),
        "kohya": kohya(headless_keys),
        "kohya of ComfyUI's layers": kohya(native),
        "onetrainer": kohya(headless_keys, "lora_transformer"),
    }
    for name, tensors in layouts.items():
        pairs, odd = on_layers(tensors, changes.keys(), family, blocks)
        found = {layer: up @ down for layer, (up, down) in pairs.items()}
        assert not odd and found.keys() == changes.keys() and same(found, changes), name


def test_both_files_of_a_run_go_on_where_it_ended(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_diffusers import pipeline

    pipeline("sd3").save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    line = [
        "distil",
        "--model",
        str(tmp_path / "model"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        *SETTINGS,
    ]
    line += ["--set", "lr=0.01", "--lora-precision", "fp32"]
    assert main([*line, "--out", str(tmp_path / "first")]) == 0
    before, found = load_lora(tmp_path / "first" / LORA)[0], []
    real = Run.__init__

    def begin(run, *args, **options):
        real(run, *args, **options)
        found.append(run.student.lora.state_dict())

    monkeypatch.setattr(Run, "__init__", begin)
    for name in (LORA, FOR_DIFFUSERS):
        out = tmp_path / f"after {name}"
        assert main([*line, "--out", str(out), "--start-from", str(tmp_path / "first" / name)]) == 0
        own = from_diffusers(found.pop(), "sd3")
        changes = [
            {
                key: t.double() @ tensors[key.replace("_up", "_down")].double()
                for key, t in tensors.items()
                if "lora_up" in key
            }
            for tensors in (before, own)
        ]
        assert changes[0].keys() == changes[1].keys() and any(c.any() for c in changes[0].values())
        assert all(torch.allclose(changes[1][key], c, atol=1e-6) for key, c in changes[0].items())


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_kohyas_spelling_means_one_layer(family):
    names = table(family)
    layers = {*names, *(part for parts in names.values() for part in parts)}
    assert len({name.replace(".", "_") for name in layers}) == len(layers)


def test_a_layer_that_is_told_twice_is_not_half_read():
    layer = "img_in"
    halves = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    twice = {f"diffusion_model.{layer}.{half}": t for half, t in halves.items()}
    twice |= {f"lora_unet_{layer}.{half}": t for half, t in halves.items()}
    pairs, odd = on_layers(twice, {layer})
    assert list(pairs) == [layer] and sorted(odd) == [f"lora_unet_{layer}.{half}" for half in sorted(halves)]
