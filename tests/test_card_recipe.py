"""The LCM-LoRA recipe beside which `benchmarks/card.py` measures this trainer: its translation for a model of
Flux's shape held against diffusers' own pipeline, its levels, and what an update asks of the model.
"""

import importlib
import types
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
pytest.importorskip("peft", reason="needs peft: pip install peft")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def recipe(monkeypatch):
    """`benchmarks/card_recipe.py` as a module, on the CPU."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("card_recipe")
    for each in (module, importlib.import_module("card_rates")):
        monkeypatch.setattr(each, "DEVICE", torch.device("cpu"))
    return module


def test_flux_is_asked_as_its_pipeline_asks(recipe):
    asked = {}

    def model(**options):
        asked.update(options)
        return types.SimpleNamespace(sample=options["hidden_states"])

    x, times = torch.randn(2, 16, 8, 12), torch.tensor([20.0, 1000.0])
    assert torch.equal(recipe.of_flux(model, x, times, torch.zeros(2, 5, 4096)), x)
    pipeline = diffusers.FluxPipeline
    assert torch.equal(asked["hidden_states"], pipeline._pack_latents(x, 2, 16, 8, 12))
    ids = pipeline._prepare_latent_image_ids(2, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(asked["img_ids"], ids) and asked["txt_ids"].shape == (5, 3)
    assert asked["timestep"].tolist() == pytest.approx([0.02, 1.0])
    assert asked["guidance"].tolist() == [3.5, 3.5]


def test_levels_are_those_of_the_published_models(recipe):
    sd, flux = recipe.levels_of("SD1.5"), recipe.levels_of("Flux-shaped")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False
    )
    places = sd.times.long()
    assert places[-1] == 999 and torch.allclose(
        sd.alphas.square(), scheduler.alphas_cumprod[places], atol=1e-5
    )
    assert float(sd.sigmas[-1] / sd.alphas[-1]) == pytest.approx(14.6146, rel=1e-3)
    assert flux.sigmas.tolist() == pytest.approx([i / 50 for i in range(51)])


@pytest.mark.parametrize("name, calls", [("SD1.5", 4), ("SDXL", 4), ("Flux-shaped", 3)])
def test_an_update_of_the_recipe(recipe, name, calls):
    """Its teacher is asked once where the network takes guidance as a number, else twice; only the adapter
    learns.
    """
    module, latent, prompt = recipe.made(name, True, torch.float32)
    lcm, counted = importlib.import_module("lcm_recipe"), []
    model = lcm.adapted(module, 0, 2)
    module.register_forward_hook(lambda *_: counted.append(torch.is_grad_enabled()))
    flux = name == "Flux-shaped"
    net = recipe.Asked(model, torch.float32, recipe.of_flux if flux else recipe.of_unet)
    images, noise = torch.randn(2, 1, *latent)
    context = torch.randn(1, *prompt)
    value = lcm.loss_of(
        net, recipe.levels_of(name), images, noise, torch.tensor([25]), context, cfg=recipe.cfg_of(name)
    )
    assert value.isfinite() and counted == [False] * (calls - 1) + [True]
    value.backward()
    learnt = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt and all("lora_B" in key for key in learnt)  # A's gradient is 0 at the start
