"""diffusers models as denoisers, on tiny random ones: equality with diffusers' own schedulers and whole
pipelines.
"""

import json
import math
import sys

import pytest
import torch
from fewstep.diffusion.predictions import KINDS
from fewstep.diffusion.samplers import sample
from fewstep.diffusion.schedules.grids import grid
from fewstep.training.models.denoiser import for_sampler
from fewstep.training.models.diffusers_model import DiffusersDenoiser
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
from tiny_diffusers import (  # noqa: E402
    DYNAMIC,
    FLOW,
    SCALED,
    V,
    conditionings,
    denoiser,
    module,
    pipeline,
    raw,
)

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")


# ---- one prediction --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, prediction",
    [("sd1", "epsilon"), ("sd1", "v_prediction"), ("sd2", "v_prediction"), ("sdxl", "epsilon")],
)
@pytest.mark.parametrize("index", [0, 137, 500, 999])
def test_discrete_x0_is_what_ddim_says(family, prediction, index):
    config = {**SCALED, "prediction_type": prediction}
    d = denoiser(family, config)
    ddim = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction,
    )
    ddim.set_timesteps(1000)
    left = ddim.alphas_cumprod[index].double()
    sigma = ((1 - left) / left).sqrt().float()
    vp = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(2))
    item = conditionings(family)[1]
    expected = ddim.step(
        raw(family, d.module, vp, torch.tensor([index]), item), index, vp
    ).pred_original_sample
    with torch.no_grad():
        x0 = d(vp / float(left.sqrt()), sigma[None], torch.tensor([1]))
    assert torch.allclose(x0, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))
    assert d.path.name == "variance exploding" and d.prediction in KINDS and d.prediction[0] == prediction[0]


@pytest.mark.parametrize("index", [0, 600, 998, 999])
def test_zero_terminal_snr_is_what_the_euler_scheduler_says(index):
    """At the last level almost nothing of x is left, and x0 is -v."""
    d = denoiser("sd1", {**V, "rescale_betas_zero_snr": True})
    euler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    euler.set_timesteps(1000)
    t = euler.timesteps[999 - index]
    sigma = euler.sigmas[999 - index]
    x = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(2)) * float(1 + sigma**2) ** 0.5
    v = raw("sd1", d.module, euler.scale_model_input(x, t), t, conditionings("sd1")[0])
    expected = euler.step(v, t, x).pred_original_sample
    with torch.no_grad():
        x0 = d(x, sigma[None], torch.tensor([0]))
    assert float(d.table[index]) == pytest.approx(float(sigma), rel=1e-4)
    assert torch.allclose(x0, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))
    if index == 999:
        assert torch.allclose(x0, -v, atol=2e-3) and float(d.sigma_of(torch.ones(1))[0]) == pytest.approx(
            4096, rel=1e-3
        )


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("sigma", [1.0, 0.7, 0.03])
def test_flow_x0_is_x_minus_sigma_velocity(family, sigma):
    d = denoiser(family, guidance=2.5)
    x = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(2))
    for number, item in enumerate(conditionings(family)):
        velocity = raw(family, d.module, x, torch.tensor([1000 * sigma]), item, 2.5)
        with torch.no_grad():
            x0 = d(x, torch.tensor([sigma]), torch.tensor([number if number < 2 else -1]))
        assert torch.allclose(x0, x - sigma * velocity, atol=2e-5)
    assert d.path.name == "flow" and d.prediction == "velocity"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_other_levels_and_conditions_is_the_single_calls(family):
    d = denoiser(family, size=(64, 96))
    assert d.shape[1:] == (8, 12) and d.conditions == 2
    x = torch.randn(3, *d.shape, generator=torch.Generator().manual_seed(2))
    sigma, condition = d.sigma_of(torch.tensor([1.0, 0.4, 0.1])).float(), torch.tensor([1, -1, 0])
    with torch.no_grad():
        batch = d(x, sigma, condition)
        single = torch.cat([d(x[i : i + 1], sigma[i : i + 1], condition[i : i + 1]) for i in range(3)])
        other = d(x, sigma, torch.tensor([0, 0, 1]))
    scale = single.abs().amax((1, 2, 3), keepdim=True)
    assert ((batch - single) / scale).abs().max() < 1e-5
    assert ((batch - other) / scale).abs().amax((1, 2, 3)).min() > 1e-4  # each condition counts
    assert batch.dtype == torch.float32 and d.noise_scale == 1 and len(d.base) == 16


def test_flux_without_guidance_embedding_and_with_another_guidance():
    schnell = denoiser("flux", {**FLOW, "shift": 1.0}, net=module("flux", guidance_embeds=False))
    x, one = torch.randn(1, *schnell.shape, generator=torch.Generator().manual_seed(2)), torch.tensor([0.8])
    with torch.no_grad():
        assert schnell(x, one, torch.tensor([0])).isfinite().all()
        a, b = (denoiser("flux", guidance=g)(x, one, torch.tensor([0])) for g in (1.0, 7.0))
    assert (a - b).abs().max() > 1e-4
    assert float(schnell.sigma_of(torch.tensor(0.3))) == pytest.approx(0.3)


def test_half_precision_does_not_round_the_time():
    """bfloat16 has 4 between neighbours at 750; the network still gets the exact time and guidance."""
    d = denoiser("flux", dtype=torch.bfloat16, guidance=3.3)
    seen = []
    d.module.time_text_embed.time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        out = d(torch.zeros(1, *d.shape), torch.tensor([0.7511]), torch.tensor([0]))
    assert [float(v) for v in seen] == pytest.approx([751.1, 3300.0]) and out.dtype == torch.float32
    assert not d.module.time_text_embed._forward_pre_hooks


# ---- noise levels ----------------------------------------------------------------------------------


def test_flow_shift_is_the_schedulers():
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    d = denoiser("sd3")
    assert torch.allclose(grid("uniform", 4, d.sigma_of, d.path).float(), euler.sigmas, atol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_is_the_pipelines(kind):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {**DYNAMIC, "time_shift_type": kind}
    euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    d = denoiser("flux", config, size=(512, 768))
    euler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(32 * 48))
    assert torch.allclose(grid("uniform", 4, d.sigma_of, d.path).float(), euler.sigmas, atol=1e-6)


# ---- whole folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, cfg", [("sd1", 4.0), ("sd2", 4.0), ("sdxl", 4.0), ("sd3", 4.0), ("flux", 1.0)]
)
def test_a_folder_samples_as_its_own_pipeline_does(family, cfg, tmp_path):
    """Text encoding, guidance, shift, scaling and packing at once: Euler from the same noise."""
    pipe = pipeline(family, V if family == "sd2" else None)
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    d = DiffusersDenoiser(tmp_path, ["a cat", "the dog"], negative="bad", size=(64, 64))
    noise = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(5))
    options = dict(
        prompt="the dog", height=64, width=64, num_inference_steps=3, output_type="latent", return_dict=False
    )
    if family == "flux":
        packed = pipe(latents=pipe._pack_latents(noise, 1, 16, 8, 8), guidance_scale=3.5, **options)[0]
        expected = pipe._unpack_latents(packed, 64, 64, 8)
    else:
        expected = pipe(latents=noise, guidance_scale=cfg, negative_prompt="bad", **options)[0]
    sigmas = pipe.scheduler.sigmas.double()
    start = noise if d.path.name == "flow" else noise * pipe.scheduler.init_noise_sigma
    with torch.no_grad():
        *_, last = sample(for_sampler(d, torch.tensor([1]), cfg), start, sigmas, d.path)
    assert (last.x - expected).abs().max() < 1e-4 * expected.abs().max()


def test_no_negative_is_what_the_pipeline_takes_without_one(tmp_path):
    pipeline("sdxl").save_pretrained(tmp_path)
    assert not DiffusersDenoiser(tmp_path, "a", negative=None)._embeds[-1].any()
    assert DiffusersDenoiser(tmp_path, "a")._embeds[-1].any()


def test_the_size_may_be_the_models_own_and_the_vae_says_what_a_latent_spans(tmp_path):
    pipe = pipeline("sd1")
    pipe.save_pretrained(tmp_path)
    assert DiffusersDenoiser(tmp_path, ["a"]).shape == (4, 8, 8)
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [8, 8]}))
    assert DiffusersDenoiser(tmp_path, ["a"], size=(64, 32)).shape == (4, 32, 16)


# ---- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation_runs(family):
    d = denoiser(family, size=(32, 32))
    config = DistilConfig(updates=2, images=4, batch=2, image_steps=4, steps=2, phases=2, rank=2)
    run = Run(d, config)
    losses = [p.loss for p in run.progress() if p.loss is not None]
    assert len(losses) == 2 and all(math.isfinite(v) for v in losses)
    untouched = {name for name, pair in run.student.lora.weights.items() if not pair["up"].any()}
    # nothing reads what SD3's last block has the text ask for
    assert untouched == ({"transformer_blocks.1.attn.add_q_proj"} if family == "sd3" else set())
    run.close()


# ---- refusals --------------------------------------------------------------------------------------


def test_folders_that_do_not_do_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="folder must be a diffusers pipeline with a model_index.json, got .*save_pretrained"
    ):
        DiffusersDenoiser(tmp_path, ["a"])
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(
        ValueError, match="must hold one of StableDiffusionPipeline, .*FluxPipeline, got PixArtSigmaPipeline"
    ):
        DiffusersDenoiser(tmp_path, ["a"])
    index.write_text(
        json.dumps(
            {
                "_class_name": "FluxPipeline",
                "text_encoder_2": ["transformers", "T5EncoderModel"],
                "text_encoder": [None, None],
            }
        )
    )
    with pytest.raises(ValueError, match="must hold transformer/ and scheduler/scheduler_config.json"):
        DiffusersDenoiser(tmp_path, ["a"])
    (tmp_path / "transformer").mkdir()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold text_encoder_2, which .*from_component"):
        DiffusersDenoiser(tmp_path, ["a"])
    with pytest.raises(ValueError, match="prompts must hold at least one text"):
        DiffusersDenoiser(tmp_path, [])


@pytest.mark.parametrize(
    "family, changes, why",
    [
        (
            "sd1",
            {**SCALED, "prediction_type": "sample"},
            "prediction_type must be one of epsilon, v_prediction, got 'sample'",
        ),
        (
            "sd1",
            {**SCALED, "rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr with prediction_type epsilon",
        ),
        (
            "sd1",
            {"_class_name": "EDMEulerScheduler"},
            "discrete one with a beta_schedule, got EDMEulerScheduler",
        ),
        ("sd1", {**SCALED, "use_flow_sigmas": True}, "got PNDMScheduler with use_flow_sigmas"),
        ("sd1", FLOW, "a discrete one for a UNet2DConditionModel, got FlowMatch"),
        ("flux", SCALED, "a flow-matching one for a FluxTransformer2DModel, got PNDM"),
        ("sd1", {**SCALED, "beta_schedule": "nope"}, "beta_schedule that diffusers knows, .*'nope'"),
        (
            "sd1",
            {**SCALED, "beta_end": "x"},
            "beta_schedule that diffusers knows, and numbers beside it, got .*'beta_end': 'x'",
        ),
        ("sd1", {**SCALED, "num_train_timesteps": 1}, "noise levels that rise, two or more"),
        ("sd1", {**SCALED, "beta_start": 0.0}, "noise levels that rise, two or more"),
        ("sd3", {**FLOW, "shift": 0}, "a shift from 0.001 to 1000, got 0"),
        ("sd3", {**FLOW, "shift": "a"}, "numbers for shift, .*got 'a'"),
        ("flux", {**DYNAMIC, "max_image_seq_len": 256}, "numbers for shift"),
        ("flux", {**DYNAMIC, "base_shift": 900}, "a shift from 0.001 to 1000"),
        ("sd3", {**FLOW, "invert_sigmas": True}, "without invert_sigmas"),
    ],
)
def test_schedulers_that_do_not_do_are_refused(family, changes, why):
    with pytest.raises(ValueError, match=why):
        denoiser(family, changes)


@pytest.mark.parametrize(
    "net, why",
    [
        (lambda: torch.nn.Linear(2, 2), "module must be one of UNet2DConditionModel, .*got Linear"),
        (lambda: module("sd1", in_channels=9), "got 9 in and 4 out"),
        (lambda: module("sd1", time_cond_proj_dim=4), "got one with time_cond_proj_dim"),
    ],
)
def test_networks_that_do_not_do_are_refused(net, why):
    with pytest.raises(ValueError, match=why):
        denoiser("sd1", net=net())


def test_without_diffusers_it_says_how_to_install_it(monkeypatch):
    net = module("sd1")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install diffusers transformers"):
        denoiser("sd1", net=net)


def test_sizes_and_conditionings_that_do_not_do_are_refused():
    net, (one, two, _) = module("flux"), conditionings("flux")
    for size, why in (
        ((60, 64), "multiples of 16 pixels, got 64 wide and 60 high"),
        ((8, 8), "multiples of 16 pixels, got 8 wide"),
        ((64,), r"a height and a width in pixels, got 64"),
    ):
        with pytest.raises(ValueError, match=why):
            DiffusersDenoiser.from_component(net, FLOW, [one], two, size)
    with pytest.raises(ValueError, match=r"conditioning 1 must have embeds of shape 5 × 16, got 4 × 16"):
        DiffusersDenoiser.from_component(net, FLOW, [one, (two[0][:4], two[1])], two, (64, 64))
    with pytest.raises(ValueError, match=r"the negative must have pooled of shape 16, got None"):
        DiffusersDenoiser.from_component(net, FLOW, [one], (two[0], None), (64, 64))
