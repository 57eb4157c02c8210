"""Pipeline folders: those with files of a variant alone, and broken ones, which are named."""

import json
import shutil

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
from fewstep.training.models.diffusers_model import DiffusersDenoiser
from fewstep.training.models.pipelines import variant_of
from tiny_diffusers import pipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a small SD1."""
    folder = tmp_path_factory.mktemp("whole")
    pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(whole, tmp_path / "model")


def answer(folder):
    d = DiffusersDenoiser(folder, ["a cat"])
    with torch.no_grad():
        return d(torch.ones(1, *d.shape), torch.tensor([1.0]), torch.tensor([0]))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "200KB"}])
def test_a_folder_with_files_of_a_variant_alone_is_the_same_model(options, whole, tmp_path):
    pipeline("sd1").save_pretrained(tmp_path, variant="fp16", **options)
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == bool(options)
    assert torch.allclose(answer(tmp_path), answer(whole), atol=1e-5)


def test_one_part_may_have_the_variant_alone(folder, whole):
    for part, name in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        (folder / part / f"{name}.safetensors").rename(folder / part / f"{name}.fp16.safetensors")
        assert torch.equal(answer(folder), answer(whole))


@pytest.mark.parametrize(
    "names, variant",
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        ([], None),
        (["model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00002.safetensors", "model.fp16.safetensors"], None),
        (["other.fp16.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "fp16"),
    ],
)
def test_plain_weights_come_first(names, variant, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant


INDEX, SCHEDULER, VAE = "model_index.json", "scheduler/scheduler_config.json", "vae/config.json"
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.mark.parametrize(
    "file, content, why",
    [  # content: bytes, settings that are changed, or None for no file at all
        (INDEX, b"[]", rf"{INDEX} must hold a JSON object, got \[\]"),
        (INDEX, b"\xff\xfe", f"{INDEX} must be readable JSON, got"),
        (INDEX, b"[" * 100_000, f"{INDEX} must be readable JSON, got"),
        (INDEX, {"_class_name": ["a"]}, r"must hold one of StableDiffusionPipeline, .*, got \['a'\]"),
        (
            INDEX,
            {"_class_name": "StableDiffusionXLPipeline"},
            f"must name text_encoder_2 in its {INDEX} for a StableDiffusionXL",
        ),
        (INDEX, {"tokenizer": []}, "must hold a readable diffusers pipeline"),
        ("tokenizer", None, "must hold tokenizer, which model_index.json names"),
        (SCHEDULER, b"[]", r"scheduler_config.json must hold a JSON object, got \[\]"),
        (SCHEDULER, {"beta_schedule": "x"}, "readable diffusers pipeline, got NotImplementedError"),
        (VAE, b"{}", f"{VAE} must tell block_out_channels, a list, got None"),
        (VAE, b"[]", f"{VAE} must hold a JSON object"),
        (UNET, b"x" * 99, "must hold a readable diffusers pipeline"),
        (UNET, None, "no file named diffusion_pytorch_model"),
        (TEXT, b"x" * 99, "must hold a readable diffusers pipeline, got SafetensorError"),
    ],
)
def test_a_broken_folder_is_named(file, content, why, folder):
    path = folder / file
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content}).encode()
    for part in [path] if path.is_file() else path.iterdir():
        part.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as raised:
        DiffusersDenoiser(folder, ["a cat"])
    assert str(folder) in str(raised.value)
