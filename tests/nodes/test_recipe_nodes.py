"""In the real ComfyUI, in process: recipes saved, loaded, and sampled by the solver that they hold."""

import dataclasses
import logging
import os

import pytest
import torch
from graph import cfg_guider, load, pack, run, sample_custom, sampled

pytestmark = pytest.mark.comfy


@pytest.fixture(autouse=True)
def folders(host, tmp_path, monkeypatch):
    """The folder of recipes, of this test alone."""
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "fewstep_recipes", ([str(tmp_path / "recipes")], {".json"})
    )


@pytest.fixture(scope="module")
def fitted(host):
    """A recipe for 3 steps of the flow teacher, made without a fit."""
    linear, paths, recipe = (
        pack(host, n) for n in ("diffusion.solvers.linear", "diffusion.paths", "training.formats.recipe")
    )
    solver = linear.classical([1.0, 0.8, 0.4, 0.0], paths.path("flow"), 2)
    rows = (*solver.rows[:-1], (*solver.rows[-1][:-1], solver.rows[-1][-1] + 0.01))
    base = pack(host, "nodes.comfy.fingerprints").base_of(load(host, "flow")[0])
    return recipe.Recipe(
        method="fitted", path="flow", sigmas=solver.sigmas, coefficients=rows, cfg=2.0, base=base
    )


def test_saved_and_loaded_it_draws_the_same_picture_to_the_bit(host, folders, flow, fitted):
    assert run(host, "FewstepSaveRecipe", recipe=fitted, name="mine/4: x")[0] is fitted
    run(host, "FewstepSaveRecipe", recipe=fitted, name="mine/4: x")
    names = [
        i.options
        for i in host.NODE_CLASS_MAPPINGS["FewstepLoadRecipe"].define_schema().inputs
        if i.id == "recipe_name"
    ][0]
    assert names == ["mine_4_ x_00001.json", "mine_4_ x_00002.json"]
    wired, loaded = (
        run(host, "FewstepLoadRecipe", model=flow[0], **source)
        for source in ({"recipe": fitted, "recipe_name": "absent.json"}, {"recipe_name": names[0]})
    )
    guider, noise = cfg_guider(flow[0], flow[2], flow[3], wired[2]), torch.randn(2, 3, 32, 32)
    a, b = (sampled(guider, noise, *out[:2]) for out in (wired, loaded))
    assert torch.equal(a, b) and torch.equal(wired[1], loaded[1]) and wired[2] == loaded[2] == 2.0
    unfitted = dataclasses.replace(fitted, coefficients=(), order=2)
    assert not torch.equal(
        a, sampled(guider, noise, *run(host, "FewstepLoadRecipe", model=flow[0], recipe=unfitted)[:2])
    )


@pytest.mark.parametrize("name", ["四步" * 38, "é" * 300, "CON", "nul. ", "x" * 99 + " y" * 200])
def test_any_name_can_be_saved_and_loaded(host, folders, flow, fitted, name):
    import folder_paths

    run(host, "FewstepSaveRecipe", recipe=fitted, name=name)
    (file,) = folder_paths.get_filename_list("fewstep_recipes")
    assert file[:3] == name[:3] and run(host, "FewstepLoadRecipe", model=flow[0], recipe_name=file)[2] == 2.0


def test_a_recipes_sampler_refuses_other_sigmas_and_another_path(host, flow, fitted):
    sampler, sigmas, *_ = run(host, "FewstepLoadRecipe", model=flow[0], recipe=fitted)
    noise, guider = torch.randn(1, 3, 32, 32), cfg_guider(flow[0], flow[2], flow[3])
    for other in (sigmas[1:], torch.tensor([1.0, 0.8, 0.401, 0.0])):
        with pytest.raises(
            ValueError,
            match="sigmas must be those that the solver was fitted for, 1, 0.8, 0.4, 0, got .*unfitted",
        ):
            sampled(guider, noise, sampler, other)
    epsilon = load(host, "epsilon")
    with pytest.raises(
        ValueError, match="model must be on the flow path .* this one is on variance exploding"
    ):
        sampled(cfg_guider(epsilon[0], *epsilon[2:4]), noise, sampler, sigmas)


def test_no_step_returns_the_latent(host, flow, fitted):
    sampler, sigmas, *_ = run(host, "FewstepLoadRecipe", model=flow[0], recipe=fitted)
    latent = {"samples": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    out = sample_custom(host, flow[0], 2.0, flow, sampler, sigmas[-1:], latent=latent)
    assert (out - latent["samples"]).abs().max() < 1e-6


def test_inspect_sampler_reads_the_recipes_own_weights(host, flow, fitted):
    sampler, sigmas, *_ = run(host, "FewstepLoadRecipe", model=flow[0], recipe=fitted)
    data = pack(host, "nodes.inspect_sampler").inspect(flow[0], sampler, sigmas)
    assert data["calls"] == 3 and sum(data["weights"]) == pytest.approx(1.01, abs=1e-3)


def test_another_model_is_warned_of_and_another_path_or_range_refused(host, flow, fitted, caplog):
    replace = dataclasses.replace
    with caplog.at_level(logging.WARNING):
        run(host, "FewstepLoadRecipe", model=flow[0], recipe=fitted)
        assert "another base" not in caplog.text
        out = host.NODE_CLASS_MAPPINGS["FewstepLoadRecipe"].execute(
            model=flow[0], recipe=replace(fitted, base="0" * 16)
        )
    assert "another base model" in caplog.text and "another base model" in out.ui["text"][0]
    epsilon = load(host, "epsilon")[0]
    with pytest.raises(
        ValueError, match="recipe must be for a model on the variance exploding path, the wired recipe"
    ):
        run(host, "FewstepLoadRecipe", model=epsilon, recipe=fitted)
    beyond = replace(fitted, path="variance exploding", coefficients=(), sigmas=(99.0, 1.0, 0.0))
    with pytest.raises(
        ValueError, match="recipe: the sigmas of the wired recipe must start at this model's .* 40"
    ):
        run(host, "FewstepLoadRecipe", model=epsilon, recipe=beyond)


@pytest.mark.parametrize("name", [None, "absent.json", "../user/x.json"])
def test_a_missing_file_is_refused_by_name(host, flow, name):
    with pytest.raises(ValueError, match="recipe_name must be a file in models/fewstep, got .*Save Recipe"):
        run(host, "FewstepLoadRecipe", model=flow[0], recipe_name=name)


def test_a_lora_with_coefficients_is_sampled_by_its_solver(host, flow, fitted):
    import folder_paths

    folder = folder_paths.get_folder_paths("loras")[0]
    pack(host, "training.formats.files").save_lora(f"{folder}/solver.safetensors", {}, fitted)
    _, sampler, sigmas, cfg, _ = run(
        host, "FewstepLoadLora", model=flow[0], lora_name="solver.safetensors", strength=1.0
    )
    told = [
        host.NODE_CLASS_MAPPINGS[node].fingerprint_inputs(lora_name="solver.safetensors")
        for node in ("FewstepLoadLora", "FewstepRestore")
    ]
    os.utime(f"{folder}/solver.safetensors", (1, 1))  # a file of the same name, written at another time
    for node, before in zip(("FewstepLoadLora", "FewstepRestore"), told):
        assert host.NODE_CLASS_MAPPINGS[node].fingerprint_inputs(lora_name="solver.safetensors") != before
    plain = run(host, "FewstepLoadRecipe", model=flow[0], recipe=fitted)
    noise, guider = torch.randn(1, 3, 32, 32), cfg_guider(flow[0], flow[2], flow[3])
    assert cfg == 2.0 and torch.equal(
        sampled(guider, noise, sampler, sigmas), sampled(guider, noise, *plain[:2])
    )
    with pytest.raises(
        ValueError, match="lora_name must be for a model on the variance exploding path, solver"
    ):
        run(
            host,
            "FewstepLoadLora",
            model=load(host, "epsilon")[0],
            lora_name="solver.safetensors",
            strength=1.0,
        )
