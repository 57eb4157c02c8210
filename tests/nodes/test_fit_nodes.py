"""In the real ComfyUI, in process: fitting a solver through a guider, and the caches of it."""

import json

import pytest
import torch
from graph import cfg_guider, core, load, off, pack, run, sample_custom, sampled, uniform

pytestmark = pytest.mark.comfy
SMALL = {"steps": "2, 4", "trajectories": 8, "reference_steps": 24, "cfg": 2.0}


@pytest.fixture(autouse=True)
def folders(host, tmp_path, monkeypatch):
    """The host's user folder and the folder of recipes, both of this test alone."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "fewstep_recipes", ([str(tmp_path / "recipes")], {".json"})
    )
    return tmp_path


def fit(host, teacher, **changes):
    inputs = {
        "latent": latent(host),
        "model": teacher[0],
        "positive": teacher[2],
        "negative": teacher[3],
        **SMALL,
        **changes,
    }
    return run(host, "FewstepFit", **{k: v for k, v in inputs.items() if v is not None})


def latent(host, count=1):
    return host.EmptyLatentImage().generate(32, 32, count)[0]


def caches(folder):
    """{folder of a cache: how many shards it has}."""
    return {f.parent.name: len(list(f.parent.glob("0*"))) for f in (folder / "user").rglob("manifest.json")}


# ---- the teacher -----------------------------------------------------------------------------------


# ---- fits ------------------------------------------------------------------------------------------


def test_a_guider_and_its_model_and_prompts_give_one_fit_and_one_cache(host, folders, teacher):
    first = fit(host, teacher, vae=teacher[1])
    guider = cfg_guider(teacher[0], teacher[2], teacher[3])
    second = fit(host, teacher, guider=guider, model=None, positive=None, negative=None, cfg=None)
    assert first[0] == second[0] and list(caches(folders).values()) == [1]
    recipe, _, sigmas, cfg, report, figures, _ = first
    assert 0 < recipe.errors["held_out"] < 0.5 and recipe.base and len(recipe.coefficients) == 4
    assert len(sigmas) == 5 and cfg == 2.0 and "4 " in figures
    assert report.shape[1] > second[4].shape[1] + 200  # pictures above the curve, with a VAE
    assert len(fit(host, teacher, use_steps=1)[2]) == 3  # 2 is the nearest to 1


def test_the_sampler_is_as_near_as_the_recipe_says(host, folders, teacher):
    """Through the stock node, from the noise of the three trajectories that were held out."""
    from safetensors.torch import load_file

    recipe, sampler, sigmas, *_ = fit(host, teacher)
    truth = load_file(next((folders / "user").rglob("00000.safetensors")))["states"][:, -1]
    noise = pack(host, "training.trajectories.noises").noises(0, (5, 6, 7), (3, 32, 32))
    drawn = sampled(cfg_guider(teacher[0], teacher[2], teacher[3]), noise, sampler, sigmas)
    apart = torch.tensor([off(one, other) for one, other in zip(drawn, truth[5:])]) / float(truth.std())
    assert float(apart.mean()) == pytest.approx(recipe.errors["held_out"], rel=1e-2)


def test_cancel_keeps_the_trajectories_and_the_next_fit_goes_on(host, folders, flow, monkeypatch):
    import comfy.model_management

    management, kind = comfy.model_management, pack(host, "nodes.comfy.guider_teacher").Teacher
    asked, calls = kind.__call__, []

    def counting(self, *args):
        calls.append(len(args[0]))
        if len(calls) == 30:
            management.interrupt_current_processing()
        return asked(self, *args)

    monkeypatch.setattr(pack(host, "nodes.fit"), "settle", lambda teacher, sigmas: teacher)
    monkeypatch.setattr(kind, "__call__", counting)
    with pytest.raises(management.InterruptProcessingException):
        fit(host, flow, trajectories=16, steps="2")
    assert list(caches(folders).values()) == [1] and len(calls) == 30
    begun = len(calls)
    fit(host, flow, trajectories=16, steps="2")
    resumed, begun = len(calls) - begun, len(calls)
    fit(host, flow, trajectories=16, steps="2")
    assert resumed - (len(calls) - begun) == 24 and list(caches(folders).values()) == [2]


def test_what_is_patched_into_the_model_has_a_cache_of_its_own(host, folders, flow):
    guiding = pack(host, "nodes.comfy.guider_teacher")

    def patched(strength, size=1.0):
        model = flow[0].clone()
        weight = flow[0].model.diffusion_model.out.weight
        model.add_patches(
            {"diffusion_model.out.weight": ("diff", (size * torch.ones_like(weight),))}, strength
        )
        return model

    def identity(model):
        return guiding.Teacher(cfg_guider(model, *flow[2:4]), (3, 32, 32)).identity

    plain = identity(flow[0])
    assert plain["patches"] == ""
    seen = [identity(m)["patches"] for m in (flow[0], patched(0.5), patched(0.25), patched(0.5, 2.0))]
    assert len(set(seen)) == 4 and identity(patched(0.5)) == identity(patched(0.5))
    first, second = (fit(host, [m, *flow[1:]], steps="2")[0] for m in (flow[0], patched(0.05)))
    assert len(caches(folders)) == 2 and first.base == second.base and first.errors != second.errors
    assert identity(flow[0]) == plain  # with the other's weights still patched in


def test_a_quantised_model_is_fitted(host, monkeypatch):
    """Its layers hold fp8 weights, which a LoRA is patched into on top."""
    import comfy.ops
    from comfy.quant_ops import QuantizedTensor

    demo = pack(host, "nodes.demo_teacher")
    flow = load(host, "flow")
    tensors = {k: v.clone() for k, v in flow[0].model.diffusion_model.state_dict().items()}
    for key in [k for k in tensors if k.startswith("blocks") and k.endswith("weight")]:
        weight = QuantizedTensor.from_float(tensors.pop(key), "TensorCoreFP8E4M3Layout")
        tensors.update(weight.state_dict(key))
        tensors[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(
            list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8
        )
    monkeypatch.setattr(
        demo.EmojiConfig, "custom_operations", comfy.ops.mixed_precision_ops({}, torch.float32)
    )
    with torch.inference_mode():  # as loaders are run
        model = demo.build("flow", disable_dynamic=True)
        model.model.load_model_weights(tensors, "")
    assert isinstance(model.model.diffusion_model.blocks[0].qkv.weight, QuantizedTensor)
    base_of = pack(host, "nodes.comfy.fingerprints").base_of
    base = base_of(model)
    styled = model.clone()
    shape = flow[0].model.diffusion_model.blocks[0].qkv.weight.shape
    styled.add_patches({"diffusion_model.blocks.0.qkv.weight": ("diff", (torch.full(shape, 0.01),))}, 1.0)
    plain, patched = (fit(host, [m, *flow[1:]], steps="2")[0] for m in (model, styled))
    assert plain.base == patched.base == base == base_of(styled) != base_of(flow[0])
    assert plain.errors != patched.errors and plain.errors["held_out"] < 0.5


@pytest.mark.parametrize(
    "changes, why",
    [
        (
            {"guider": "any"},
            "guider must be the only source of model and prompts, got model and positive and negative too",
        ),
        ({"model": None}, "model must be wired where guider is not"),
        ({"positive": None}, "positive must be wired"),
        ({"positive": []}, "positive must be wired"),
        ({"negative": None}, "negative must be wired where cfg is not 1, got none at cfg 2"),
        ({"steps": "2, 13"}, r"steps must be whole numbers from 1 to 12 between commas, .* got '2, 13'"),
        ({"steps": "x"}, r"steps must be whole numbers from 1 to 12 between commas, .* got 'x'"),
        ({"calls": "6;8"}, r"calls must be whole numbers from 1 to 24 between commas, .* got '6;8'"),
        ({"calls": "24"}, "reference_steps must be 46 or more, twice the 23 steps .* got 24. Raise it"),
        ({"denoise": 0.2}, "denoise must leave 8 or more of the 24 reference_steps, twice the 4 steps"),
        ({"trajectories": 3}, "trajectories must be a whole number from 4 to 1000000, got 3"),
        ({"reference_steps": 23}, "reference_steps must be a whole number from 24"),
        ({"limit_gib": 0.001}, "trajectories must fit into 0.00 GiB"),
    ],
    ids=str,
)
def test_bad_inputs_are_refused_by_name_before_the_model_is_called(host, flow, changes, why):
    model = flow[0].clone()

    def never(*args):
        raise AssertionError("the model was called")

    model.set_model_unet_function_wrapper(never)
    with pytest.raises(ValueError, match=why):
        fit(host, [model, *flow[1:]], **changes)


def test_without_a_negative_at_cfg_1(host, flow):
    assert fit(host, flow, negative=None, cfg=1.0, steps="2")[3] == 1.0


def test_a_fit_for_image_to_image_goes_on_from_a_noised_picture(host, flow):
    """Through the stock node: nearer to many steps from that state than Euler is in as many calls."""
    recipe, sampler, sigmas, cfg, *_ = fit(
        host, flow, steps="2", denoise=0.6, trajectories=16, reference_steps=48
    )
    assert float(sigmas[0]) == pytest.approx(0.6, rel=1e-6)
    assert recipe.sigmas[0] == pytest.approx(float(sigmas[0]), rel=1e-6)
    noise = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    guider = cfg_guider(flow[0], flow[2], flow[3])
    picture = {"samples": sampled(guider, noise, core("euler"), uniform(host, flow, 12))}

    def drawn(sampler, levels):
        return sample_custom(host, flow[0], cfg, flow, sampler, levels, latent=picture)

    truth = drawn(core("heun"), float(sigmas[0]) * torch.linspace(1, 0, 41))
    euler = drawn(core("euler"), float(sigmas[0]) * torch.linspace(1, 0, 3))
    ours = off(drawn(sampler, sigmas), truth)
    print(f"2 steps from .6: {ours:.4f}, Euler {off(euler, truth):.4f}")
    assert ours < 0.9 * off(euler, truth)


def test_a_fit_with_denoise_starts_where_the_hosts_scheduler_does(host, teacher):
    """A stage before it ends there: the first half of the host's own schedule, or of ours."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler, SplitSigmas

    *_, sigmas, _, _, figures, _ = fit(host, teacher, steps="2", denoise=0.5, effort="quick")
    with torch.inference_mode():
        half = BasicScheduler.execute(teacher[0], "simple", 4, 0.5).result[0]
        first, _ = SplitSigmas.execute(uniform(host, teacher, 6), 3).result
    assert float(sigmas[0]) == pytest.approx(float(half[0]), rel=1e-6)
    assert float(sigmas[0]) == pytest.approx(float(first[-1]), rel=1e-6)
    assert f"starts from a noised picture at sigma {float(sigmas[0]):.6g}, where a stage before" in figures


# ---- a budget of model calls -----------------------------------------------------------------------


def test_the_model_is_called_as_often_as_the_recipe_says(host, flow):
    recipe, sampler, sigmas, cfg, _, figures, guider = fit(host, flow, calls="5", cfg=4.0, trajectories=12)
    noise = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with pack(host, "nodes.comfy.calls").ModelCalls(flow[0]) as counter:
        picture = sampled(guider, noise, sampler, sigmas)
        assert counter.take(3) == recipe.calls <= 5
    assert cfg == 4.0 and f"{recipe.steps:5} {recipe.calls:5}" in figures
    again = run(host, "FewstepLoadRecipe", model=flow[0], recipe=recipe, positive=flow[2], negative=flow[3])
    assert torch.equal(picture, sampled(again[3], noise, *again[:2]))


def test_calls_that_a_patch_adds_are_told(host, flow):
    """A patch as SAG's and SLG's: it calls the model again after guidance, and wants both parts at CFG 1."""
    import comfy.samplers

    def again(args):
        (other,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.1 * (args["denoised"] - other)

    patched = flow[0].clone()
    patched.set_model_sampler_post_cfg_function(again, disable_cfg1_optimization=True)
    small = {"steps": "2", "effort": "quick"}
    for cfg, counted in ((2.0, 2), (1.0, 1)):
        figures = fit(host, flow, model=patched, cfg=cfg, **small)[5]
        assert f"makes 3 model calls, where recipe and report count {counted}" in figures
    assert "where recipe and report count" not in fit(host, flow, **small)[5]


def test_a_fit_on_several_prompts_gives_the_guider_of_the_first(host, flow):
    several = fit(host, flow, positive=flow[4][:2], steps="1", trajectories=8)
    alone = cfg_guider(flow[0], [flow[4][0]], flow[3])
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(*(sampled(guider, noise, *several[1:3]) for guider in (several[6], alone)))


def test_a_guider_that_is_more_than_a_cfg_is_named(host, flow):
    """Nobody can make it from a recipe, whose guidance is a number, or say what a step of it costs."""
    from comfy_execution.graph_utils import ExecutionBlocker
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    with torch.inference_mode():
        dual = DualCFGGuider.execute(flow[0], flow[2], flow[4][:1], flow[3], 3.0, 2.0, "regular").result[0]
    only = {"guider": dual, "model": None, "positive": None, "negative": None, "cfg": None}
    recipe, *_, figures, _ = fit(host, flow, steps="2", **only)
    assert recipe.trained["guider"] == "Guider_DualCFG" and "    2     –" in figures
    loaded = run(host, "FewstepLoadRecipe", model=flow[0], recipe=recipe, positive=flow[2], negative=flow[3])
    assert isinstance(loaded[3], ExecutionBlocker) and "Guider_DualCFG" in loaded[3].message


def test_a_budget_needs_a_guidance_that_has_parts(host, flow):
    from comfy_extras.nodes_custom_sampler import BasicGuider

    with torch.inference_mode():
        basic = BasicGuider.execute(flow[0], flow[2]).result[0]
    only = {"guider": basic, "model": None, "positive": None, "negative": None, "cfg": None}
    with pytest.raises(ValueError, match="calls must be empty where the guider is not a plain CFG guider"):
        fit(host, flow, calls="4", **only)
    with pytest.raises(ValueError, match="calls must be whole numbers from 1 to 24"):
        fit(host, flow, calls="25")
