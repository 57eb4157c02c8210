"""In the real ComfyUI, every family: three training steps by the node's own code, the file, the stock loader,
the same output.
"""

import logging

import pytest
import torch
import zoo
from graph import pack, run

pytestmark = pytest.mark.comfy
SMALL = {
    "steps": 2,
    "quality": "quick",
    "updates": 3,
    "batch": 2,
    "rank": 2,
    "seed": 1,
    "learning_rate": 3e-3,
}


@pytest.fixture
def few(host, monkeypatch):
    """Few trajectories, so that the test is about training."""
    monkeypatch.setitem(pack(host, "nodes.distil").QUALITY, "quick", (3, 2))
    monkeypatch.setattr(pack(host, "training.run.source"), "PROBES", 1)


def distil(host, family, model, **changes):
    return run(
        host,
        "FewstepDistil",
        **{
            **SMALL,
            "model": model,
            "positive": zoo.conditioning(family),
            "cfg": 2.0,
            "negative": zoo.conditioning(family, 1),
            "latent": {"samples": 0 * zoo.latent(family)},
            "name": f"zoo {family}",
            **changes,
        },
    )


def prediction(host, model, name, tensors=None):
    """x0 of the model from fixed noise halfway, with those tensors in the adapter that trains."""
    session, kind = pack(host, "nodes.comfy.session"), pack(host, "nodes.comfy.denoiser").ComfyDenoiser
    with session.training_session(model) as patcher, torch.no_grad():
        denoiser = kind(patcher, zoo.conditioning(name), zoo.conditioning(name, 1), zoo.latent(name))
        if tensors:
            adapter = pack(host, "training.adapter.lora").Lora(denoiser.module, 2)
            adapter.load_state_dict(tensors)
        sigma = denoiser.sigma_of(torch.tensor([0.5])).float()
        patcher.inject_model()  # of a LoRA that is not merged
        try:
            return denoiser(zoo.latent(name) * (1 + sigma), sigma, torch.tensor([0]))
        finally:
            patcher.eject_model()
            if tensors:
                adapter.remove()


def round_trip(host, name, model, caplog, limit, bypass=False, **changes):
    """Train, load the file by the stock loader (or the one that does not merge), compare; returns the loaded
    model's error too.
    """
    import folder_paths

    tensors, losses, _, sigmas, file = distil(host, name, model, **changes)
    assert len(losses["loss"]) == 3 and all(0 < v < 1e4 for v in losses["loss"]) and len(sigmas) == 3
    assert any(bool(v.abs().max() > 0) for k, v in tensors.items() if "lora_up" in k)
    assert folder_paths.get_full_path("loras", file)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        loaded = host.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)[0]
        merged = loaded
        if bypass:
            from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly

            loaded = LoraLoaderBypassModelOnly().load_lora_model_only(model, file, 1.0)[0]
    assert "not loaded" not in caplog.text.lower()
    assert len(merged.patches) == len(tensors) // 3
    trained, base, patched = (
        prediction(host, model, name, tensors),
        prediction(host, model, name),
        prediction(host, loaded, name),
    )
    size = trained.abs().max()
    assert (patched - trained).abs().max() < limit * size
    assert (trained - base).abs().max() > 3 * (patched - trained).abs().max()  # and it does something
    return float((prediction(host, merged, name) - trained).abs().max() / size)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_trained_saved_and_loaded_by_the_stock_loader(host, few, name, caplog):
    round_trip(host, name, zoo.load(name), caplog, 1e-3)


@pytest.mark.parametrize("name", ["sd15", "flux_dev"])
def test_a_base_in_fp8_trains_through_hooks(host, few, name, caplog):
    """The loader that does not merge gives what was trained; merging rounds base and LoRA to fp8 once more:
    the host's part.
    """
    model = zoo.load(name, dtype=torch.float8_e4m3fn)
    assert any(p.dtype == torch.float8_e4m3fn for p in model.model.diffusion_model.parameters())
    merged = round_trip(host, name, model, caplog, 1e-2, bypass=True)
    print(f"{name} in fp8, merged by the host: off by {merged:.2%} of the largest")


@pytest.mark.parametrize("name", ["sd15", "flux_dev"])
def test_a_quantised_base_trains_on_all_its_layers(host, few, name, caplog):
    model = zoo.load(name, change=zoo.quantised)
    layers = [m for m in model.model.diffusion_model.modules() if getattr(m, "layout_type", None)]
    assert layers and not any(isinstance(m, torch.nn.Linear) for m in layers)
    merged = round_trip(host, name, model, caplog, 1e-2, bypass=True)
    print(f"{name} quantised, merged by the host: off by {merged:.2%} of the largest")
    assert not any(getattr(m, "comfy_force_cast_weights", False) for m in layers)


@pytest.mark.parametrize("method", ["consistency", "rectified-diffusion", "windowed-reflow", "reflow"])
def test_the_other_methods_train_a_v_model_with_zero_snr(host, few, method, caplog):
    name = "sdxl_v" if method == "reflow" else "sd2_v"
    round_trip(host, name, zoo.load(name), caplog, 1e-3, method=method)


@pytest.mark.parametrize("name", ["flux2", "ltxv"])
def test_too_little_memory_is_told_before_any_work_or_blocks_are_recomputed(host, few, name, monkeypatch):
    memory = pack(host, "training.run.memory")
    model, seen = zoo.load(name), []
    monkeypatch.setattr(pack(host, "training.run.memory"), "available", lambda device: 1 << 20)
    with pytest.raises(MemoryError, match="Training one sample must fit into .*Choose a"):
        distil(host, name, model)
    choose = memory.Memory.choose

    def tight(self, budget, batch, recompute):
        seen.append(choose(self, self.peak(1, True) + 1, batch, recompute))
        return seen[-1]

    monkeypatch.setattr(memory.Memory, "choose", tight)
    tensors = distil(host, name, model, batch=3)[0]
    assert seen[-1] == (1, True) and all(torch.isfinite(v).all() for v in tensors.values())


def test_a_lora_of_another_base_is_refused_unless_told_otherwise(host, few):
    file = distil(host, "sd3", zoo.load("sd3"))[4]
    inputs = {"model": zoo.load("sd35m"), "lora_name": file, "strength": 1.0}
    with pytest.raises(
        ValueError, match="was made from another base model than the wired one.*switch any_base on"
    ):
        run(host, "FewstepLoadLora", **inputs)
    assert len(run(host, "FewstepLoadLora", **inputs, any_base=True)) == 5


def test_start_from_begins_with_the_files_weights(host, few):
    model = zoo.load("sd15")
    first = distil(host, "sd15", model, name="first")
    again = distil(host, "sd15", model, name="second", start_from=first[4], learning_rate=1e-9, rank=4)
    for key, value in first[0].items():
        if key.endswith("lora_up.weight"):
            down = key.replace("lora_up", "lora_down")
            assert torch.allclose(again[0][key] @ again[0][down], value @ first[0][down], atol=1e-5)
