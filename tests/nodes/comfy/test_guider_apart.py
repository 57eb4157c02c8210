"""In the real ComfyUI, in process: a recipe that asks for the parts of guidance apart gets just those."""

import dataclasses

import pytest
import torch
from graph import cfg_guider, core, off, pack, run, sample_custom, sampled, uniform

pytestmark = pytest.mark.comfy

SIGMAS = (1.0, 0.9, 0.7, 0.4, 0.2, 0.0)
ROWS = (
    (0.9, 0.3, -0.2),
    (0.8, 0.5, -0.3, 0.1, -0.1),
    (0.6, 0.4, 0.1, -0.1),
    (0.5, 0.3, 0.1, 0.1, -0.1),
    (0.2, 0.9, -0.4, 0.3),
)
ASKS, CALLS = ("cu", "cu", "c", "", "cu"), 7


@pytest.fixture
def apart(host, flow):
    """A recipe that asks for the parts, made without a fit."""
    base = pack(host, "nodes.comfy.fingerprints").base_of(flow[0])
    recipe = pack(host, "training.formats.recipe").Recipe
    return recipe(
        method="fitted", path="flow", sigmas=SIGMAS, coefficients=ROWS, asks=ASKS, cfg=3.0, base=base
    )


@pytest.fixture
def loaded(host, flow, apart):
    """(SAMPLER, SIGMAS, cfg, GUIDER) of Load Recipe."""
    return run(host, "FewstepLoadRecipe", model=flow[0], recipe=apart, positive=flow[2], negative=flow[3])


@pytest.fixture
def noise(generator):
    return torch.randn(2, 3, 32, 32, generator=generator)


def test_the_picture_is_that_of_the_two_predictions_and_no_call_is_wasted(host, flow, apart, loaded, noise):
    sampler, sigmas, cfg, guider = loaded
    with pack(host, "nodes.comfy.calls").ModelCalls(flow[0]) as calls:
        picture = sampled(guider, noise, sampler, sigmas)
        assert calls.take(2) == apart.calls == CALLS and cfg == 3.0
    parts = {"c": cfg_guider(flow[0], flow[2], flow[3], 1.0), "u": cfg_guider(flow[0], flow[3], flow[2], 1.0)}
    x, held = noise * SIGMAS[0], []
    for sigma, row, asked in zip(SIGMAS, ROWS, ASKS):
        held = [predicted(host, parts[kind], x, sigma) for kind in asked] + held
        x = row[0] * x + sum(w * p for w, p in zip(row[1:], held))
    assert off(picture, x) < 2e-5 * float(x.std())


def predicted(host, guider, x, sigma):
    """x0 of a guider at one level, asked by the host's own sampling."""
    ours, found = pack(host, "nodes.comfy.guider_teacher"), []
    inside = ours.Inside(lambda ask: found.append(ask(x, torch.full((len(x),), sigma))))
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(x), torch.zeros_like(x), inside, torch.tensor([sigma, 0.0]), disable_pbar=True
        )
    return found[0]


def test_saved_and_loaded_alone_and_in_a_lora_it_is_the_same_to_the_bit(
    host, flow, apart, loaded, noise, tmp_path, monkeypatch
):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "fewstep_recipes", ([str(tmp_path)], {".json"}))
    run(host, "FewstepSaveRecipe", recipe=apart, name="apart")
    prompts = {"positive": flow[2], "negative": flow[3]}
    again = run(host, "FewstepLoadRecipe", model=flow[0], recipe_name="apart_00001.json", **prompts)
    folder = folder_paths.get_folder_paths("loras")[0]
    pack(host, "training.formats.files").save_lora(f"{folder}/apart.safetensors", {}, apart)
    lora = run(
        host, "FewstepLoadLora", model=flow[0], lora_name="apart.safetensors", strength=1.0, **prompts
    )[1:]
    pictures = [sampled(out[3], noise, *out[:2]) for out in (loaded, again, lora)]
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])


def test_another_guider_is_refused_and_told_what_to_wire(host, flow, loaded):
    with pytest.raises(ValueError, match="guider must be the GUIDER .* 7 calls in 5 steps. Wire GUIDER"):
        sample_custom(host, flow[0], 3.0, flow, *loaded[:2])


def test_to_other_samplers_the_guider_is_the_hosts_own(host, flow, loaded, noise):
    sigmas = uniform(host, flow, 3)
    ours, theirs = (
        sampled(guider, noise, core("euler"), sigmas)
        for guider in (loaded[3], cfg_guider(flow[0], flow[2], flow[3], 3.0))
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("parts", [True, False])
def test_outside_a_mask_the_picture_is_the_latent(host, flow, apart, loaded, noise, generator, parts):
    latent, mask = torch.rand(2, 3, 32, 32, generator=generator) - 0.5, torch.zeros(2, 1, 32, 32)
    mask[..., :16] = 1
    sampler, sigmas, _, guider = loaded
    if not parts:
        rows = tuple(row[: 2 + min(i, 1)] for i, row in enumerate(ROWS))
        whole = dataclasses.replace(apart, coefficients=rows, asks=())
        sampler, sigmas, _, guider = run(
            host, "FewstepLoadRecipe", model=flow[0], recipe=whole, positive=flow[2], negative=flow[3]
        )
    out = inpainted(guider, noise, latent, mask, sampler, sigmas)
    assert torch.allclose(out[..., 16:], latent[..., 16:], atol=1e-6)
    assert off(out[..., :16], latent[..., :16]) > 0.1


def test_differential_diffusion_keeps_the_latent_where_it_lets_nothing_go(
    host, flow, apart, noise, generator
):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    latent = torch.rand(2, 3, 32, 32, generator=generator) - 0.5
    mask = torch.linspace(0, 1, 32).expand(2, 1, 32, 32).contiguous()
    with torch.inference_mode():
        model = DifferentialDiffusion.execute(flow[0]).result[0]
    sampler, sigmas, _, guider = run(
        host, "FewstepLoadRecipe", model=model, recipe=apart, positive=flow[2], negative=flow[3]
    )
    out = inpainted(guider, noise, latent, mask, sampler, sigmas)
    moved = [off(out[..., i], latent[..., i]) for i in range(32)]
    assert max(moved[:6]) < 1e-5 and min(moved[7:]) > 0.05  # the last level is 0.2


def inpainted(guider, noise, latent, mask, sampler, sigmas):
    """What the host's own sampling makes of a latent with a mask."""
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)


def test_without_prompts_the_guider_says_what_it_needs(host, flow, apart):
    blocked = run(host, "FewstepLoadRecipe", model=flow[0], recipe=apart)[3]
    assert "wire positive and negative" in blocked.message
    with pytest.raises(ValueError, match="negative must be wired where .* at cfg 3"):
        run(host, "FewstepLoadRecipe", model=flow[0], recipe=apart, positive=flow[2])


@pytest.mark.parametrize("asks", [("cu", "cu", "c", "", "cu"), ("g", "c", "c", "c", "c")], ids=["u", "g"])
def test_a_negative_is_asked_for_wherever_an_answer_is_made_of_it(host, flow, apart, noise, asks):
    rows = tuple((0.5, *[0.1] * max(1, len(asked))) for asked in asks)
    recipe = dataclasses.replace(apart, coefficients=rows, asks=asks)
    inputs = {"model": flow[0], "positive": flow[2]}
    with pytest.raises(ValueError, match="negative must be wired where .* at cfg 3"):
        run(host, "FewstepLoadRecipe", recipe=recipe, **inputs)
    only = dataclasses.replace(recipe, coefficients=((0.5, 0.1),) * 5, asks=("c",) * 5)
    sampler, sigmas, _, guider = run(host, "FewstepLoadRecipe", recipe=only, **inputs)
    assert sampled(guider, noise, sampler, sigmas).isfinite().all()
    if "cu" in asks:  # another recipe's guider, which has no negative
        sampler, sigmas, *_ = run(host, "FewstepLoadRecipe", recipe=recipe, **inputs, negative=flow[3])
        with pytest.raises(ValueError, match="negative must be wired, as the recipe asks for"):
            sampled(guider, noise, sampler, sigmas)


def test_inspect_sampler_shows_both_parts(host, flow, loaded):
    data = pack(host, "nodes.inspect_sampler").inspect(flow[0], *loaded[:2])
    assert data["linear"] and data["calls"] == CALLS and data["steps"] == 5


@pytest.mark.parametrize("count", [1, 3])
def test_a_teacher_answers_apart_what_its_guidance_is_made_of(host, flow, noise, count):
    teachers, apart = (pack(host, f"nodes.comfy.guider_{name}") for name in ("teacher", "apart"))
    prompts = [*flow[2], *flow[4][:2]][:count]
    guider = apart.apart_of(cfg_guider(flow[0], prompts, flow[3], 3.0))
    teacher = teachers.Teacher(teachers.prompted(guider, prompts), (3, 32, 32))
    plain = teachers.Teacher(
        teachers.prompted(cfg_guider(flow[0], prompts, flow[3], 3.0), prompts), (3, 32, 32)
    )
    assert teacher.identity == plain.identity and plain.apart is None
    x, sigma, condition = (
        noise.repeat(2, 1, 1, 1)[:3],
        torch.full((3,), 0.6, dtype=torch.float64),
        torch.arange(3) % count,
    )
    found = []

    def work():
        found.extend([teacher(x, sigma, condition), *teacher.apart(x, sigma, condition, "cu")])

    with torch.inference_mode():
        teacher.run(work, torch.tensor([1.0, 0.0]))
    whole, c, u = found
    assert whole.shape == c.shape == u.shape and off(whole, u + 3 * (c - u)) < 1e-5
    assert off(c, u) > 0.01


def test_what_an_out_of_memory_taught_is_remembered(host, flow, noise):
    teachers, apart = (pack(host, f"nodes.comfy.guider_{name}") for name in ("teacher", "apart"))
    sizes = []

    def small(apply, args):
        sizes.append(len(args["input"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("Allocation on device ")
        return apply(args["input"], args["timestep"], **args["c"])

    model = flow[0].clone()
    model.set_model_unet_function_wrapper(small)
    guider = apart.apart_of(cfg_guider(model, flow[2], flow[3], 3.0))
    teacher = teachers.Teacher(teachers.prompted(guider, flow[2]), (3, 32, 32))
    asked = noise.repeat(2, 1, 1, 1), torch.full((4,), 0.6, dtype=torch.float64), torch.zeros(4).long()

    def work():
        for _ in range(2):
            teacher.apart(*asked, "cu")

    with torch.inference_mode():
        teacher.run(work, torch.tensor([1.0, 0.0]))
    assert max(sizes) == 8 and sizes.count(2) == 8 and len([n for n in sizes if n > 2]) == 2
