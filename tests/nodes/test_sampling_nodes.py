"""In the real ComfyUI, in process: the samplers through stock nodes."""

import inspect
import math
import types

import numpy as np
import pytest
import torch
from graph import cfg_guider, core, off, pack, run, sample_custom, sampled, uniform

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("churn, order", [(0.0, "1"), (0.0, "2"), (0.5, "1"), (1.0, "2")])
def test_sampler_node(host, teacher, churn, order):
    sigmas = uniform(host, teacher, 6)
    sampler = run(host, "FewstepSampler", churn=churn, order=order)[0]
    out = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas)
    assert out.shape == (2, 3, 32, 32) and torch.isfinite(out).all()
    assert torch.equal(out, sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas))
    assert not torch.equal(out, sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, seed=4))


def test_churn_0_equals_cores_euler_and_order_2_nears_the_same_picture(host, teacher):
    import comfy.samplers

    sigmas = uniform(host, teacher, 8)
    ours = sample_custom(
        host, teacher[0], 2.0, teacher, run(host, "FewstepSampler", churn=0.0, order="1")[0], sigmas
    )
    core = sample_custom(host, teacher[0], 2.0, teacher, comfy.samplers.sampler_object("euler"), sigmas)
    assert (ours - core).abs().max() < 1e-3


def test_consistency_sampler_equals_cores_lcm_at_equal_noise(host, teacher):
    """One step has no fresh noise; at two the noises differ, so means over a batch are compared."""
    import comfy.samplers

    node = run(host, "FewstepConsistencySampler", method={"method": "consistency", "fresh_noise": 1.0})[0]
    lcm = comfy.samplers.sampler_object("lcm")
    for steps, count in ((1, 2), (2, 32)):
        sigmas = uniform(host, teacher, steps)
        a, b = (sample_custom(host, teacher[0], 2.0, teacher, s, sigmas, count=count) for s in (node, lcm))
        if steps == 1:
            assert (a - b).abs().max() < 1e-4
        else:
            assert abs(a.mean() - b.mean()) < 0.1 and abs(a.std() - b.std()) < 0.1 and not torch.equal(a, b)


def test_image_to_image_keeps_the_picture_and_mask_keeps_its_part(host, teacher):
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    full = uniform(host, teacher, 8)
    sampler = run(host, "FewstepSampler", churn=0.0, order="2")[0]
    picture = sample_custom(host, teacher[0], 2.0, teacher, sampler, full, latent=latent)
    for denoise in (0.1, 0.5):
        part = uniform(host, teacher, 4, denoise)
        assert len(part) == 5 and part[0] < full[0]
        again = sample_custom(
            host, teacher[0], 2.0, teacher, sampler, part, seed=9, latent={"samples": picture}
        )
        distance = (again - picture).square().mean().sqrt() / picture.std()
        assert distance < (0.25 if denoise == 0.1 else 1.0)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    masked = {"samples": picture, "noise_mask": mask}
    inpainted = sample_custom(host, teacher[0], 2.0, teacher, sampler, full, seed=9, latent=masked)
    assert (inpainted - picture)[..., 16:].abs().max() < 1e-3 < (inpainted - picture)[..., :16].abs().max()


@pytest.mark.parametrize(
    "bad, why",
    [
        ([0.2, 0.5, 0.0], "descend"),
        ([1.0, float("nan"), 0.0], "finite"),
        ([1000.0, 1.0, 0.0], "largest noise level|start at 1 or below"),
    ],
)
def test_bad_sigmas_are_refused_before_the_model_is_called(host, teacher, bad, why):
    model = teacher[0].clone()

    def never(*args):
        raise AssertionError("the model was called")

    model.set_model_unet_function_wrapper(never)
    with pytest.raises(ValueError, match=f"sigmas must .*({why})"):
        sample_custom(
            host, model, 2.0, teacher, run(host, "FewstepSampler", churn=0.0, order="1")[0], torch.tensor(bad)
        )


def test_sampler_signature_is_what_the_host_calls(host):
    parameters = list(inspect.signature(pack(host, "nodes.sampling").sample).parameters)
    assert parameters[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]


MODES = [
    dict(order="3"),
    dict(order="heun"),
    dict(order="auto", churn=0.3),
    dict(order="2", churn=1.0, mode="raise first"),
    dict(order="1", churn=1.0, mode="restart", start=0.3, end=0.6),
    dict(order="heun", churn=0.5, s_noise=1.05, end=0.5),
]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_sampler_modes_draw_the_same_cat_and_repeat_from_the_seed(host, teacher, options):
    sigmas = uniform(host, teacher, 8)
    sampler = run(host, "FewstepSampler", **{"churn": 0.0, **options})[0]
    out = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas)
    assert torch.isfinite(out).all() and torch.equal(
        out, sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas)
    )
    if not options.get("churn"):
        fine = sample_custom(host, teacher[0], 2.0, teacher, core("dpmpp_2m"), uniform(host, teacher, 40))
        other = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, seed=4)
        # the picture of this seed, not any cat
        assert (out - fine).square().mean() < 0.3 * (other - fine).square().mean()


def splitting(host, sigmas, step):
    """The two SIGMAS of the stock node Split Sigmas."""
    from comfy_extras.nodes_custom_sampler import SplitSigmas

    return SplitSigmas.execute(sigmas, step).result


CONSISTENCY = [
    {"method": "consistency", "fresh_noise": 1.0},
    {"method": "TCD", "gamma": 0.3},
    {"method": "deterministic"},
]
STEPLESS = [
    *[("FewstepSampler", {"churn": 0.0, **options}) for options in [{"order": "1"}, *MODES]],
    *[("FewstepConsistencySampler", {"method": method}) for method in CONSISTENCY],
]


@pytest.mark.parametrize("node, options", STEPLESS, ids=str)
def test_no_step_returns_the_latent_as_cores_samplers_do(host, teacher, node, options):
    high, none = splitting(host, uniform(host, teacher, 4), 4)
    assert none.tolist() == [0.0] and len(high) == 5
    sampler = run(host, node, **options)[0]
    latent = {"samples": sample_custom(host, teacher[0], 2.0, teacher, sampler, high)}
    out = sample_custom(host, teacher[0], 2.0, teacher, sampler, none, latent=latent)
    theirs = sample_custom(host, teacher[0], 2.0, teacher, core("euler"), none, latent=latent)
    assert torch.equal(out, theirs) and (out - latent["samples"]).abs().max() < 1e-6
    start = splitting(host, uniform(host, teacher, 4, 0.5), 0)[0]  # one level above 0
    ours, theirs = (
        sample_custom(host, teacher[0], 2.0, teacher, s, start, latent=latent)
        for s in (sampler, core("euler"))
    )
    assert len(start) == 1 and torch.equal(ours, theirs)


@pytest.mark.parametrize("method", [{"method": "TCD", "gamma": 0.3}, {"method": "deterministic"}])
def test_consistency_methods(host, teacher, method):
    sigmas = uniform(host, teacher, 4)
    out = sample_custom(
        host, teacher[0], 2.0, teacher, run(host, "FewstepConsistencySampler", method=method)[0], sigmas
    )
    plain = sample_custom(
        host, teacher[0], 2.0, teacher, run(host, "FewstepSampler", churn=0.0, order="1")[0], sigmas
    )
    assert torch.equal(out, plain) == (method["method"] == "deterministic") and torch.isfinite(out).all()


def test_tcd_without_gamma_is_deterministic_and_with_1_renews_all(host, flow):
    sampling = pack(host, "nodes.sampling")
    path, sigma_of = pack(host, "diffusion.paths").FLOW, pack(host, "diffusion.schedules.grids").flow_sigma()
    assert sampling.tcd_share(0.0, path, sigma_of)(0.9, 0.5) == 0
    assert sampling.tcd_share(1.0, path, sigma_of)(0.9, 0.5) == 1
    reached = 0.7 * 0.5  # of the next time
    kept = (1 - 0.5) * reached / ((1 - reached) * 0.5)
    assert sampling.tcd_share(0.3, path, sigma_of)(0.9, 0.5) == pytest.approx(
        math.sqrt(1 - kept**2), rel=1e-9
    )


def test_auto_takes_the_order_from_the_guidance_and_the_steps(host, teacher):
    """Three steps at CFG 8 are order 1's own."""
    sigmas = uniform(host, teacher, 3)
    one, auto = (run(host, "FewstepSampler", churn=0.0, order=order)[0] for order in ("1", "auto"))
    strong, weak = (
        [sample_custom(host, teacher[0], cfg, teacher, sampler, sigmas) for sampler in (one, auto)]
        for cfg in (8.0, 2.0)
    )
    assert torch.equal(*strong) and not torch.equal(*weak)
    strength_of = pack(host, "nodes.comfy.guider_teacher").strength_of
    assert strength_of(types.SimpleNamespace(cfg1=1.0, cfg2=4)) == 4 and strength_of(object()) == 1


@pytest.mark.parametrize("style, strength", [("regular", 3.0), ("nested", 6.0)])
def test_auto_takes_two_guidances_for_as_strong_as_the_host_makes_them(host, teacher, style, strength):
    """Nested they multiply: with the middle prompt as the negative it is plain guidance of their product."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model, _, positive, negative = teacher[:4]
    dual = DualCFGGuider.execute(model, positive, negative, negative, 2.0, 3.0, style).result[0]
    assert pack(host, "nodes.comfy.guider_teacher").strength_of(dual) == strength
    if style == "regular":
        return
    sigmas = uniform(host, teacher, 3)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = cfg_guider(model, positive, negative, 6.0)
    assert off(*(sampled(guider, noise, sampler, sigmas) for guider in (dual, plain))) < 1e-3


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor, int])
def test_a_cfg_is_a_number_of_any_kind(host, teacher, number):
    """Other packs' nodes may make it with NumPy or PyTorch, and the host samples with that."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    sigmas = uniform(host, teacher, 3)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    made = CFGGuider.execute(teacher[0], teacher[2], teacher[3], number(8)).result[0]
    of_teacher = pack(host, "nodes.comfy.guider_teacher")
    assert of_teacher.strength_of(made) == of_teacher.cfg_of(made) == 8
    assert type(of_teacher.cfg_of(made)) is float
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = cfg_guider(teacher[0], teacher[2], teacher[3], 8.0)
    assert off(*(sampled(guider, noise, sampler, sigmas) for guider in (made, plain))) < 1e-5


def test_image_to_image_at_one_half(host, teacher):
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    sampler = run(host, "FewstepSampler", churn=0.5, order="auto")[0]
    picture = sample_custom(
        host, teacher[0], 2.0, teacher, sampler, uniform(host, teacher, 12), latent=latent
    )
    half = sample_custom(
        host,
        teacher[0],
        2.0,
        teacher,
        sampler,
        uniform(host, teacher, 6, 0.5),
        seed=8,
        latent={"samples": picture},
    )
    distance = float((half - picture).square().mean().sqrt() / picture.std())
    assert 0.02 < distance < 1.0


def test_batch_seeds_and_previews_work_as_with_cores_samplers(host, teacher):
    """LatentFromBatch's batch_index picks the starting noise; the callback sees every step's prediction."""
    sigmas, sampler = uniform(host, teacher, 4), run(host, "FewstepSampler", churn=0.0, order="2")[0]
    four = host.EmptyLatentImage().generate(32, 32, 4)[0]
    whole = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, latent=four)
    third = host.LatentFromBatch().frombatch(four, 2, 1)[0]
    alone = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, latent=third)
    assert (whole[2] - alone[0]).abs().max() < 1e-3
    seen = []
    import comfy.sample

    latent = comfy.sample.fix_empty_latent_channels(teacher[0], torch.zeros(1, 4, 4, 4), 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            teacher[0],
            noise,
            2.0,
            sampler,
            sigmas,
            teacher[2],
            teacher[3],
            latent,
            callback=lambda i, x0, x, total: seen.append((i, total, x0.shape)),
            seed=0,
        )
    assert [s[:2] for s in seen] == [(i, 4) for i in range(4)] and seen[0][2] == noise.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"order": 3}, {"order": 2, "churn": 1.0}, {"kappa": 1.0}])
def test_half_precision_latents_stay_finite(host, teacher, dtype, options):
    probing, sampling = pack(host, "nodes.comfy.probing"), pack(host, "nodes.sampling")
    sigmas = uniform(host, teacher, 8)
    guider = probing.DenoiserGuider(teacher[0], lambda x, sigma: 0.3 * x / (1 + sigma))
    wrapped = __import__("comfy.samplers", fromlist=["x"]).KSamplerX0Inpaint(guider, sigmas)
    wrapped.latent_image = wrapped.noise = None
    x = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * float(sigmas[0])).to(dtype)
    out = sampling.sample(
        wrapped, x, sigmas, {"seed": 1, "denoise_mask": None, "model_options": {}}, disable=True, **options
    )
    assert out.dtype == dtype and torch.isfinite(out).all()


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(churn=-1.0, order="1"), "churn must be 0 or more"),
        (dict(churn=0.5, order="1", mode="restart"), "churn must be a whole number"),
        (dict(churn=1.0, order="1", start=0.8, end=0.2), "start must not be above end"),
    ],
)
def test_bad_sampler_settings_are_refused(host, options, why):
    with pytest.raises(ValueError, match=why):
        run(host, "FewstepSampler", **options)


def test_a_mask_of_another_size_is_refused_before_the_model_is_called(host, flow):
    sampling, x = pack(host, "nodes.sampling"), torch.zeros(1, 3, 32, 32)
    guider = pack(host, "nodes.comfy.probing").DenoiserGuider(
        flow[0], lambda x, sigma: pytest.fail("the model was called")
    )
    wrapped = __import__("comfy.samplers", fromlist=["x"]).KSamplerX0Inpaint(guider, torch.tensor([1.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"mask must fit the latent, whose shape is 1 × 3 × 32 × 32, got 1 × 1 × 16 × 16"
    ):
        sampling.sample(
            wrapped,
            x,
            torch.tensor([1.0, 0.5, 0.0]),
            {"denoise_mask": torch.ones(1, 1, 16, 16)},
            disable=True,
        )


def test_a_split_run_keeps_the_noise_right(host, teacher):
    """Both parts of a run with one seed draw different noise: the spread of the result is that of the whole
    run.
    """
    sampler, sigmas = run(host, "FewstepSampler", churn=1.0, order="1")[0], uniform(host, teacher, 8)
    probing = pack(host, "nodes.comfy.probing")
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    latent = torch.zeros(1, 4, 64, 64)
    seen = []

    def model(x, sigma):
        seen.append(float(x.std()) / sigma)
        return torch.zeros_like(x)

    high = probing.run(teacher[0], sampler, sigmas[:5], model, noise, latent, 3)
    probing.run(teacher[0], sampler, sigmas[4:], model, torch.zeros_like(noise), high, 3)
    assert max(abs(s - 1) for s in seen) < 0.03
