"""In the real ComfyUI, in process: schedules, the sampler's modes, inspection and comparison."""

import math
import time

import pytest
import torch
from fewstep.tests.nodes.test_host import pack, run, sample_custom, uniform

pytestmark = pytest.mark.comfy


@pytest.fixture(params=("flow", "epsilon"))
def teacher(host, request):
    return run(host, "FewstepLoadDemoTeacher", teacher=request.param, label="cat")


@pytest.fixture
def flow(host):
    return run(host, "FewstepLoadDemoTeacher", teacher="flow", label="cat")


def core(name, **options):
    import comfy.samplers

    return comfy.samplers.ksampler(name, options) if options else comfy.samplers.sampler_object(name)


def schedule(host, model, name, steps, denoise=1.0, **options):
    return run(
        host,
        "FewstepSchedule",
        model=model,
        schedule={"schedule": name, **options},
        steps=steps,
        shift=1.0,
        denoise=denoise,
    )[0]


def test_every_schedule_and_its_options(host, teacher):
    grids = pack(host, "diffusion.schedules.grids")
    offered = host.NODE_CLASS_MAPPINGS["FewstepSchedule"].GET_SCHEMA().inputs[1]
    assert [o.key for o in offered.options] == list(grids.NAMES)
    for option in offered.options:
        assert {i.id for i in option.inputs} == set(grids.OPTIONS.get(option.key, {}))
        values = {i.id: i.default for i in option.inputs}
        assert values == grids.OPTIONS.get(option.key, {})
        for steps, denoise in ((1, 1.0), (4, 1.0), (20, 0.3)):
            sigmas = schedule(host, teacher[0], option.key, steps, denoise, **values)
            assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert not torch.equal(
        schedule(host, teacher[0], "karras", 6, rho=3.0), schedule(host, teacher[0], "karras", 6, rho=7.0)
    )


def test_edit_translate_and_show(host, teacher):
    other = run(host, "FewstepLoadDemoTeacher", teacher="epsilon", label="cat")
    plain = uniform(host, teacher, 8)
    edit = dict(model=teacher[0], sigmas=plain, shift=1.0, scale=1.0, blend=0.5, snap=0, split=0)
    same, high, low = run(host, "FewstepEditSchedule", **edit)
    assert torch.equal(same, plain) and torch.equal(high, plain) and torch.equal(low, plain[-2:])
    moved, high, low = run(host, "FewstepEditSchedule", **{**edit, "shift": 3.0, "split": 3, "snap": 100})
    assert len(high) == 4 and len(low) == 6 and high[-1] == low[0] and (moved[1:-1] > plain[1:-1]).all()
    mixed = run(host, "FewstepEditSchedule", **edit, blend_with=schedule(host, teacher[0], "karras", 5))[0]
    assert len(mixed) == 9 and (mixed.diff() < 0).all()
    there = run(host, "FewstepTranslateSchedule", sigmas=plain, from_model=teacher[0], to_model=other[0])[0]
    assert (
        there[0] == pytest.approx(float(other[0].get_model_object("model_sampling").sigma_max))
        and (there.diff() < 0).all()
    )
    out = show(host, "FewstepShowSchedule", model=teacher[0], sigmas=plain, sigmas_3=moved)
    assert (
        out.result[0].shape[-1] == 3
        and set(out.ui["fewstep"][0]["schedules"]) == {"sigmas", "sigmas_3"}
        and out.ui["images"]
    )


def show(host, node_id, **inputs):
    with torch.inference_mode():
        return host.NODE_CLASS_MAPPINGS[node_id].execute(**inputs)


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
        assert (out - fine).square().mean() < 0.3 * (
            other - fine
        ).square().mean()  # the picture of this seed, not any cat


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
        ValueError, match=r"mask must fit the latent, whose shape is \(1, 3, 32, 32\), got \(1, 1, 16, 16\)"
    ):
        sampling.sample(
            wrapped,
            x,
            torch.tensor([1.0, 0.5, 0.0]),
            {"denoise_mask": torch.ones(1, 1, 16, 16)},
            disable=True,
        )


# ---- inspection ------------------------------------------------------------------------------------

# reference/samplers.md of the design, measured there independently: flow, shift 1, 8 steps
KNOWN = {
    "euler": ([0.125] * 8, 1.000),
    "euler_ancestral": ([0.04, 0.08, 0.11, 0.14, 0.16, 0.18, 0.18, 0.13], 0.178),
    "dpmpp_2m": ([0.05, 0.12, 0.12, 0.11, 0.11, 0.14, 0.23, 0.13], 1.000),
    "dpmpp_2m_sde": ([0.01, 0.02, 0.06, 0.09, 0.14, 0.25, 0.31, 0.13], 0.014),
    "lcm": ([0.00, 0.02, 0.06, 0.13, 0.21, 0.25, 0.22, 0.13], 0.002),
}


def inspect(host, model, sampler, sigmas):
    return show(host, "FewstepInspectSampler", model=model, sampler=sampler, sigmas=sigmas, seed=0).ui[
        "fewstep"
    ][0]


@pytest.mark.parametrize("name", KNOWN)
def test_known_weights_of_cores_samplers(host, flow, name):
    found = inspect(host, flow[0], core(name), uniform(host, flow, 8))
    weights, survival = KNOWN[name]
    assert max(abs(a - b) for a, b in zip(found["weights"], weights)) < 0.0101
    assert abs(found["survival"] - survival) < 0.002 and abs(sum(found["weights"]) - 1) < 0.01
    assert found["linear"] and found["right"]


@pytest.mark.parametrize(
    "name, options", [("ddpm", {}), ("res_multistep_ancestral", {}), ("euler", {"s_churn": 4.0})]
)
def test_what_core_does_wrong_on_flow_is_named(host, flow, name, options):
    found = inspect(host, flow[0], core(name, **options), uniform(host, flow, 8))
    assert (
        not found["right"]
        and ("signal" in found["verdict"] or "noise" in found["verdict"])
        and "call" in found["verdict"]
    )


def test_a_sampler_that_adapts_is_said_to_be_non_linear(host, flow):
    found = inspect(host, flow[0], core("dpm_adaptive"), uniform(host, flow, 8))
    assert not found["linear"] and found["weights"] == [] and "not linear" in found["report"]


def test_churn_is_found_and_the_model_stays_untouched(host, teacher):
    sampling = teacher[0].model.model_sampling
    found = inspect(
        host, teacher[0], run(host, "FewstepSampler", churn=0.7, order="2")[0], uniform(host, teacher, 6)
    )
    told = [c for c in found["churn"] if c is not None]
    assert len(told) >= 4 and max(abs(c - 0.7) for c in told) < 1e-3
    assert teacher[0].model.model_sampling is sampling and found["right"]


def test_a_part_of_a_schedule_and_a_sampler_that_fails_are_named(host, flow):
    with pytest.raises(ValueError, match="sigmas must end at 0 to be inspected, got 0.5"):
        inspect(host, flow[0], core("euler"), torch.tensor([1.0, 0.75, 0.5]))
    with pytest.raises(
        ValueError, match="sampler can't be inspected: it fails on this schedule of 1 steps with IndexError"
    ):
        inspect(host, flow[0], core("dpm_adaptive"), torch.tensor([1.0, 0.0]))
    assert (
        "makes nothing of its predictions"
        in inspect(host, flow[0], core("uni_pc"), torch.tensor([1.0, 0.0]))["report"]
    )
    with pytest.raises(ValueError, match="sigmas must start at"):
        inspect(host, flow[0], core("euler"), torch.tensor([9.0, 0.5, 0.0]))


def test_a_split_run_keeps_the_noise_right(host, teacher):
    """Both parts of a run with one seed draw different noise: the spread of the result is that of the whole
    run.
    """
    sampler, sigmas = run(host, "FewstepSampler", churn=1.0, order="1")[0], uniform(host, teacher, 8)
    probing = pack(host, "nodes.comfy.probing")
    noise, latent = (
        torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, 4, 64, 64),
    )
    seen = []

    def model(x, sigma):
        seen.append(float(x.std()) / sigma)
        return torch.zeros_like(x)

    high = probing.run(teacher[0], sampler, sigmas[:5], model, noise, latent, 3)
    probing.run(teacher[0], sampler, sigmas[4:], model, torch.zeros_like(noise), high, 3)
    assert max(abs(s - 1) for s in seen) < 0.03


def test_cfg_pp_samplers_can_be_inspected(host, flow):
    assert inspect(host, flow[0], core("euler_cfg_pp"), uniform(host, flow, 4))["calls"] == 4


def test_inspecting_uni_pc_leaves_the_schedule_as_it_was(host, teacher):
    """It writes into its sigmas."""
    sigmas = uniform(host, teacher, 5)
    before = sigmas.clone()
    inspect(host, teacher[0], core("uni_pc"), sigmas)
    assert torch.equal(sigmas, before)


def test_inspection_of_20_steps_takes_less_than_a_second(host, teacher):
    sampler, sigmas = run(host, "FewstepSampler", churn=0.5, order="2")[0], uniform(host, teacher, 20)
    inspect(host, teacher[0], sampler, sigmas)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        inspect(host, teacher[0], sampler, sigmas)
        times.append(time.perf_counter() - begun)
    assert min(times) < 1.0


# ---- comparison ------------------------------------------------------------------------------------


def compare(host, teacher, **changes):
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    inputs = dict(
        model=teacher[0],
        positive=teacher[2],
        negative=teacher[3],
        latent=latent,
        vae=teacher[1],
        samplers="auto, euler, heun/karras",
        steps="2, 6",
        cfg=2.0,
        seed=1,
        tolerance=0.2,
    )
    return show(host, "FewstepCompare", **{**inputs, **changes})


def test_compare_measures_and_hands_on_the_cheapest_that_is_near_enough(host, teacher):
    out = compare(host, teacher)
    image, sampler, sigmas, text = out.result
    data = out.ui["fewstep"][0]
    rows = {(r["name"], r["steps"]): r for r in data["rows"]}
    assert len(rows) == 6 and rows["heun/karras", 6]["nfe"] == 11 and rows["euler", 6]["nfe"] == 6
    assert rows["auto", 6]["distance"] < rows["auto", 2]["distance"] and data["reference"]["drift"] < 0.05
    near = [r for r in rows.values() if r["distance"] <= 0.2]
    best = (
        min(near, key=lambda r: (r["nfe"], r["distance"]))
        if near
        else min(rows.values(), key=lambda r: r["distance"])
    )
    assert data["chosen"] == f"{best['name']}, {best['steps']} steps" and data["chosen"] in text
    assert image.shape[0] == 1 and image.shape[1] > 3 * 128
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    again = sample_custom(host, teacher[0], 2.0, teacher, sampler, sigmas, seed=1, latent=latent)
    assert torch.isfinite(again).all() and len(sigmas) == best["steps"] + 1


def test_compare_measures_inside_the_mask(host, flow):
    mask = torch.nn.functional.pad(torch.ones(1, 8, 8), (0, 24, 0, 24))
    latent = {**host.EmptyLatentImage().generate(32, 32, 1)[0], "noise_mask": mask}
    row = compare(host, flow, samplers="order 1", steps="1", latent=latent).ui["fewstep"][0]["rows"][0]
    assert row["distance"] > 0.15


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"steps": "two"}, "steps must be whole numbers from 1 to 200"),
        ({"steps": "0, 4"}, "steps must be whole numbers"),
        ({"samplers": " , "}, "samplers must name at least one"),
        ({"samplers": "best"}, "samplers must be among auto, .* got 'best'"),
        ({"samplers": "euler/nice"}, "schedule of 'euler/nice' must be among"),
        (
            {"samplers": "euler/kl_optimal", "steps": "1"},
            "schedule of 'euler/kl_optimal' with 1 steps must be finite",
        ),
    ],
)
def test_bad_comparisons_are_refused_before_the_model_is_called(host, flow, changes, why, monkeypatch):
    import comfy.sample

    monkeypatch.setattr(comfy.sample, "sample_custom", lambda *a, **k: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=why):
        compare(host, flow, **changes)
