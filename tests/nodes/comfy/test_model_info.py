"""In the real ComfyUI: what plots are told of a model, loaded or by its file's header alone."""

import json

import pytest
import torch
import zoo
from graph import load, pack

pytestmark = pytest.mark.comfy
POINTS = "[[0.2, 0.5], [0.7, 0.25]]"


def test_schedule_nodes_tell_their_levels_and_the_models(host):
    model = load(host, "epsilon")[0]
    for node, inputs in (
        ("FewstepDrawSchedule", {"points": POINTS}),
        ("FewstepSchedule", {"schedule": {"schedule": "auto"}, "shift": 1.0}),
    ):
        with torch.inference_mode():
            out = host.NODE_CLASS_MAPPINGS[node].execute(model=model, steps=4, denoise=1.0, **inputs)
        told = json.loads(json.dumps(out.ui))["fewstep"][0]
        assert (
            told["sigmas"] == pytest.approx(out.result[0].tolist())
            and told["model"]["prediction"] == "epsilon"
        )
        same(told["model"], model.get_model_object("model_sampling"), host)


def same(told, sampling, host):
    """The description is that sampling object's: levels at 257 times, path and prediction."""
    levels = pack(host, "nodes.comfy.levels")
    times = torch.linspace(0, 1, 257, dtype=torch.float64)
    assert told["times"] == times.tolist() and told["sigmas"][0] == 0
    assert told["sigmas"] == pytest.approx(levels.sigma_of(sampling)(times).tolist(), rel=1e-6)
    assert told["sigmas"][-1] == pytest.approx(float(sampling.sigma_max), rel=1e-6)
    assert told["path"] == levels.path_of(sampling).name and told["prediction"] == levels.prediction_of(
        sampling
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty folders of checkpoints and diffusion models."""
    import folder_paths

    for kind in ("checkpoints", "diffusion_models"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors", ".ckpt"})
        )
        folder_paths.filename_list_cache.pop(kind, None)
    yield tmp_path
    for kind in ("checkpoints", "diffusion_models"):
        folder_paths.filename_list_cache.pop(kind, None)


def save(tensors, path, prefix="", metadata=None):
    import safetensors.torch

    named = {(prefix if "." in k else "") + k: v.contiguous() for k, v in tensors.items()}
    safetensors.torch.save_file(named, path, metadata)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_header_tells_what_the_loaded_model_has(host, family, files):
    """As a diffusion model alone and, for those that come so, inside of a checkpoint, where keys have a
    prefix.
    """
    import comfy.sd

    info, tensors = pack(host, "nodes.comfy.model_info"), zoo.state_dict(family)
    loaded = comfy.sd.load_diffusion_model_state_dict(dict(tensors)).get_model_object("model_sampling")
    save(tensors, files / "diffusion_models" / "a.safetensors")
    same(info.describe("unet", "a.safetensors"), loaded, host)
    save(tensors, files / "checkpoints" / "b.safetensors", "model.diffusion_model.")
    same(info.describe("checkpoint", "b.safetensors"), loaded, host)


def test_the_header_alone_is_read_but_for_small_tensors(host, files, monkeypatch):
    """Large tensors may be cut off; a file that changes is read again."""
    info = pack(host, "nodes.comfy.model_info")
    path = files / "diffusion_models" / "a.safetensors"
    save(zoo.state_dict("sd3"), path)
    read, told = [], info.Header.__getitem__
    monkeypatch.setattr(
        info.Header, "__getitem__", lambda self, name: read.append(told(self, name)) or read[-1]
    )
    first = info.describe("unet", "a.safetensors")
    assert read and all(t.is_meta or t.numel() <= info.SMALL for t in read) and any(t.is_meta for t in read)
    assert info.describe("unet", "a.safetensors") is first
    save(zoo.state_dict("sd15"), path)
    assert info.describe("unet", "a.safetensors")["path"] == "variance exploding"


def test_what_is_no_model_is_a_lookup_error(host, files):
    info = pack(host, "nodes.comfy.model_info")
    save({"a.weight": torch.zeros(3)}, files / "checkpoints" / "vae.safetensors")
    (files / "checkpoints" / "broken.safetensors").write_bytes(b"\xff" * 64)
    (files / "checkpoints" / "old.ckpt").write_bytes(b"pickle")
    (files / "secret.safetensors").write_bytes(b"x")
    for name in (
        "vae.safetensors",
        "broken.safetensors",
        "old.ckpt",
        "none.safetensors",
        "../secret.safetensors",
        "",
        None,
        5,
    ):
        with pytest.raises(LookupError):
            info.describe("checkpoint", name)
    with pytest.raises(LookupError):
        info.describe("loras", "vae.safetensors")
