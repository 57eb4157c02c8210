"""In the real ComfyUI: families with conditioning or kernels of their own, trained three updates, saved,
loaded; and that what the student is asked is what the host's sampler asks.
"""

import logging

import more_zoo as zoo
import pytest
import torch
from graph import cfg_guider, pack, run

pytestmark = pytest.mark.comfy
FEW = {"steps": 2, "quality": "quick", "updates": 3, "batch": 2, "rank": 2, "seed": 1, "learning_rate": 3e-3}


@pytest.fixture
def few(host, monkeypatch):
    """Few trajectories, so that the test is about training."""
    monkeypatch.setitem(pack(host, "nodes.distil").QUALITY, "quick", (3, 2))
    monkeypatch.setattr(pack(host, "training.run.source"), "PROBES", 1)


@pytest.fixture(scope="module")
def models(host):
    kept = {}
    return lambda name: kept.setdefault(name, zoo.load(name))


def asked(host, model, name, tensors=None, mask=None):
    """(x, sigma, x0 of the positive, x0 of the negative) of the student, those tensors in its adapter."""
    session, kind = pack(host, "nodes.comfy.session"), pack(host, "nodes.comfy.denoiser").ComfyDenoiser
    with session.training_session(model) as patcher, torch.no_grad():
        denoiser = kind(
            patcher, zoo.conditioning(name), zoo.conditioning(name, 1), 0 * zoo.latent(name), mask
        )
        if tensors:
            adapter = pack(host, "training.adapter.lora").Lora(denoiser.module, 2)
            adapter.load_state_dict(tensors)
        sigma = denoiser.sigma_of(torch.tensor([0.5, 0.5])).float()
        x = zoo.latent(name).view(1, *denoiser.shape).expand(2, *[-1] * len(denoiser.shape)) * (1 + sigma[0])
        try:
            out = denoiser(x, sigma, torch.tensor([0, -1]))
        finally:
            if tensors:
                adapter.remove()
    return x, sigma, *out


def sampled(model, name, x, sigma, mask=None):
    """(x0 of the positive, x0 of the negative) that the host's own sampling path gives there."""
    import comfy.samplers

    found = []

    class Once(comfy.samplers.Sampler):
        def sample(self, wrap, sigmas, extra_args, callback, noise, latent_image=None, *rest):
            both = [wrap.conds["positive"], wrap.conds["negative"]]
            options = extra_args["model_options"]
            level = sigma[:1].expand(len(noise))
            found.extend(
                comfy.samplers.calc_cond_batch(wrap.inner_model, both, x[0].view_as(noise), level, options)
            )
            return noise

    guider = cfg_guider(model, zoo.conditioning(name), zoo.conditioning(name, 1), 2.0)
    empty = 0 * zoo.latent(name)
    with torch.inference_mode():
        levels = torch.tensor([float(sigma[0]), 0.0])
        guider.sample(empty, empty, Once(), levels, mask, disable_pbar=True, seed=0)
    return found


def off(a, b):
    return float((a.reshape(b.shape) - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_the_student_is_asked_as_the_hosts_sampler_asks(host, models, name):
    x, sigma, *ours = asked(host, models(name), name)
    assert max(off(a, b) for a, b in zip(ours, sampled(models(name), name, x, sigma))) < 1e-4


def test_an_inpainting_model_is_told_the_mask_of_the_latent(host, models):
    """Set Latent Noise Mask with plain prompts."""
    name, mask = "sd15 inpainting, plain", (zoo.drawn(1, 1, 64, 64) > 0).float()
    x, sigma, *ours = asked(host, models(name), name, mask=mask)
    assert max(off(a, b) for a, b in zip(ours, sampled(models(name), name, x, sigma, mask))) < 1e-4
    assert off(asked(host, models(name), name)[2], ours[0]) > 0.01


@pytest.mark.parametrize(  # Anima's text adapter has its real size
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "anima" else n for n in zoo.FAMILIES]
)
def test_trained_saved_and_loaded_by_the_stock_loader(host, models, few, name, caplog):
    import comfy.quant_ops

    model, before = models(name), dict(vars(comfy.quant_ops.ck))
    inputs = {
        "model": model,
        "positive": zoo.conditioning(name),
        "negative": zoo.conditioning(name, 1),
        "latent": {"samples": 0 * zoo.latent(name)},
        "cfg": 2.0,
        "name": name,
    }
    tensors, losses, _, _, file = run(host, "FewstepDistil", **FEW, **inputs)
    assert len(losses["loss"]) == 3 and all(0 < v < 1e4 for v in losses["loss"])
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        loaded = host.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)[0]
    assert "not loaded" not in caplog.text.lower()
    plain, trained = asked(host, model, name)[2:], asked(host, model, name, tensors)[2:]
    merged = asked(host, loaded, name)[2:]
    assert max(off(a, b) for a, b in zip(merged, trained)) < 1e-3
    assert off(plain[0], trained[0]) > 3 * off(merged[0], trained[0])  # and it does something
    assert dict(vars(comfy.quant_ops.ck)) == before


def test_a_guider_is_asked_for_whole_videos(host, models):
    """The frames of SVD are one sample to Fit and to a guider as the teacher too."""
    model = models("svd")
    x, sigma, positive, _ = asked(host, model, "svd")
    guider = cfg_guider(model, zoo.conditioning("svd"), zoo.conditioning("svd", 1), 1.0)
    shape = pack(host, "nodes.comfy.latents").sample_shape(model, zoo.latent("svd"))
    teacher = pack(host, "nodes.comfy.guider_teacher").Teacher(guider, shape)
    found = []
    teacher.run(lambda: found.append(teacher(x, sigma.double(), torch.tensor([0, 0]))), sigma[:1])
    assert shape == (3, 4, 8, 8) and found[0].shape == x.shape
    assert max(off(row, positive) for row in found[0]) < 1e-4


@pytest.mark.parametrize("cls", ["ACEStep", "Hunyuan3Dv2mini", "SAM31", "DepthAnything3", "StableAudio3"])
def test_what_makes_no_pictures_is_refused_by_name(host, flow, cls):
    import types

    import comfy.supported_models

    config = object.__new__(getattr(comfy.supported_models, cls))
    model = types.SimpleNamespace(model=types.SimpleNamespace(model_config=config))
    with pytest.raises(ValueError, match=f"model must make pictures or videos; {cls} makes .*can't train"):
        pack(host, "nodes.comfy.families").check_trainable(model)


def test_an_error_of_the_models_own_code_names_its_family(host, models, few):
    """A prompt of another model, which lacks what this one reads."""
    wrong = [[torch.zeros(1, 77, 1280), {}]]
    latent = {"samples": 0 * zoo.latent("sdxl refiner")}
    inputs = {"model": models("sdxl refiner"), "positive": wrong, "negative": wrong, "latent": latent}
    with pytest.raises(ValueError, match='the code of SDXLRefiner gave "KeyError: .*Wire the prompts'):
        run(host, "FewstepDistil", **{**FEW, **inputs, "cfg": 2.0, "name": "no"})
