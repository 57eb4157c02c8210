"""In the real ComfyUI, in process: distilling by the node, and the trained LoRA in the stock loader."""

import logging
import shutil
from pathlib import Path

import pytest
import small_runs
import torch
import zoo
from graph import pack, run, sample_custom

pytestmark = pytest.mark.comfy


def distil(host, teacher, updates=12, **changes):
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    inputs = dict(
        model=teacher[0],
        positive=teacher[2],
        negative=teacher[3],
        latent=latent,
        steps=4,
        cfg=2.0,
        quality="quick",
        name="round trip",
        seed=1,
        updates=updates,
        batch=8,
        vae=teacher[1],
    )
    return run(host, "FewstepDistil", **{**inputs, **changes})


def conditional(args):
    """A guidance that takes the conditional prediction alone."""
    return args["cond"]


def test_what_training_would_leave_out_is_refused_by_name(host, teacher):
    half = torch.zeros(1, 32, 32)
    half[..., :16] = 1
    with torch.inference_mode():
        parts = {
            "mask": host.ConditioningSetMask().append(teacher[2], half, "default", 1.0)[0],
            "area": host.ConditioningSetArea().append(teacher[2], 16, 16, 0, 0, 1.0)[0],
            "start_percent": host.ConditioningSetTimestepRange().set_range(teacher[2], 0.3, 1.0)[0],
            "end_percent": host.ConditioningSetTimestepRange().set_range(teacher[2], 0.0, 0.6)[0],
        }
    for part, positive in parts.items():
        with pytest.raises(
            ValueError, match=f"positive must be prompts .* entry 1 is not, by its {part}.*guider"
        ):
            distil(host, teacher, positive=positive)
    with pytest.raises(ValueError, match="negative must be prompts .* entry 1 is not, by its mask"):
        distil(host, teacher, negative=parts["mask"])
    patched = teacher[0].clone()
    patched.set_model_sampler_cfg_function(conditional)
    with pytest.raises(ValueError, match=r"because of conditional \(sampler_cfg_function\). Wire a guider"):
        distil(host, [patched, *teacher[1:]])


def test_what_makes_no_difference_is_not_refused(host, flow, monkeypatch):
    monkeypatch.setitem(pack(host, "nodes.distil").QUALITY, "quick", (1, 2))
    monkeypatch.setattr(pack(host, "training.run.source"), "PROBES", 1)
    whole = torch.ones(1, 32, 32)
    with torch.inference_mode():
        positive = host.ConditioningSetMask().append(flow[2], whole, "default", 0.7)[0]
        positive = host.ConditioningSetTimestepRange().set_range(positive, 0.0, 1.0)[0]
    patched = flow[0].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    assert distil(host, [patched, *flow[1:]], updates=1, positive=positive)[0]


@pytest.mark.parametrize("node", ["FewstepDistil", "FewstepReflowPairs", "FewstepTrainOnPairs"])
def test_combined_negatives_are_refused_before_the_model_is_loaded(host, flow, node, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(pack(host, "nodes.comfy.session"), "training_session", never)
    with torch.inference_mode():
        (both,) = host.ConditioningCombine().combine(flow[3], flow[2])
    shared = dict(model=flow[0], positive=flow[4], negative=both, name="both", seed=0, steps=2, cfg=2.0)
    shared["latent"] = host.EmptyLatentImage().generate(32, 32, 1)[0]
    more = {
        "FewstepDistil": {"quality": "quick"},
        "FewstepReflowPairs": {"count": 2},
        "FewstepTrainOnPairs": {"pairs": (None, {}), "method": "reflow", "memory": "auto"},
    }
    with pytest.raises(ValueError, match="negative must be a single prompt .*, got 2 that are combined"):
        run(host, node, **shared, **more[node])
    with pytest.raises(AssertionError, match="training began"):  # combined positives are prompts
        run(host, "FewstepDistil", **{**shared, "negative": flow[3]}, **more["FewstepDistil"])


def test_a_failure_keeps_what_was_learnt_and_queueing_again_goes_on_exactly(
    host, teacher, request, monkeypatch
):
    import folder_paths

    name = f"kept {request.node.callspec.id}"
    kind = pack(host, "training.run.run").Run
    update, begun = kind.update, []

    def failing(self, *who):
        begun.append(self.done)
        if self.done == 3:
            raise RuntimeError("the power went")
        return update(self, *who)

    whole = distil(host, teacher, name="straight")
    shutil.rmtree(pack(host, "nodes.comfy.folders").of_user("runs"))
    monkeypatch.setattr(kind, "update", failing)
    with pytest.raises(RuntimeError, match="the power went"):
        distil(host, teacher, name=name)
    kept = [
        n for n in folder_paths.get_filename_list("loras") if n.startswith(f"kept {request.node.callspec.id}")
    ]
    assert len(kept) == 1 and begun == [0, 1, 2, 3]
    monkeypatch.setattr(kind, "update", lambda self, *who: begun.append(self.done) or update(self, *who))
    again = distil(host, teacher, name=name)
    assert begun[4] == 3 and again[4] == kept[0]  # it goes on, and writes over its own file
    assert again[1] == whole[1] and all(torch.equal(again[0][k], whole[0][k]) for k in whole[0])
    finished = distil(host, teacher, name=name)
    assert len(begun) == 4 + 9 and all(torch.equal(finished[0][k], whole[0][k]) for k in whole[0])


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "phased-matching"}, {"method": "anchored", "learning_rate": 2e-3}],
    ids=lambda changes: changes.get("method", "auto"),
)
def test_lora_round_trip_through_the_stock_loader(host, teacher, caplog, monkeypatch, changes):
    """No unmatched key, and the loaded LoRA samples what the student sampled in training, within 1e-3."""
    import folder_paths

    kind, in_chunks = (
        pack(host, "training.run.run").Run,
        pack(host, "training.trajectories.sampling").in_chunks,
    )
    seen, close = {}, kind.close

    def watch(self):
        noise, condition = self.probe.held.noise, self.probe.held.condition
        seen["noise"], seen["sigmas"] = noise, self.task.sigmas_for(4)
        seen["student"] = self.student.sample(noise, condition, seen["sigmas"], adapter=self.adapter)
        with self.student.lora.off():
            seen["base"] = in_chunks(self.denoiser, noise, condition, 1.0, seen["sigmas"])
        close(self)

    monkeypatch.setattr(kind, "close", watch)
    tensors, losses, preview, sigmas, name = distil(host, teacher, **changes)
    assert len(losses["loss"]) == 12 and preview.ndim == 4 and preview.shape[-1] == 3
    newest = Path(folder_paths.get_full_path("loras", name))
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        loaded = host.LoraLoaderModelOnly().load_lora_model_only(teacher[0], newest.name, 1.0)[0]
    assert "not loaded" not in caplog.text.lower()
    assert len(loaded.patches) == len(tensors) // 3 == 33
    noise, sigmas = seen["noise"], seen["sigmas"].float()

    class Fixed:
        seed = 0

        def generate_noise(self, latent):
            return noise

    from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced

    sampler = run(host, "FewstepSampler", churn=0.0, order="1")[0]
    with torch.inference_mode():
        guider = CFGGuider.execute(loaded, teacher[2], teacher[3], 1.0).result[0]
        out = SamplerCustomAdvanced.execute(
            Fixed(), guider, sampler, sigmas, {"samples": torch.zeros(noise.shape)}
        ).result[0]
    image = teacher[0].model.process_latent_in(out["samples"])
    assert (image - seen["student"]).abs().max() < 1e-3
    with torch.inference_mode():
        loaded, sampler, sigmas, cfg, _ = run(
            host, "FewstepLoadLora", model=teacher[0], lora_name=newest.name, strength=1.0
        )
        guider = CFGGuider.execute(loaded, teacher[2], teacher[3], cfg).result[0]
        again = SamplerCustomAdvanced.execute(
            Fixed(), guider, sampler, sigmas, {"samples": torch.zeros(noise.shape)}
        ).result[0]
    assert torch.equal(again["samples"], out["samples"])
    assert (seen["student"] - seen["base"]).abs().max() > 1e-2  # and it does something


def test_training_leaves_the_model_as_it_was(host, teacher):
    before = sample_custom(
        host,
        teacher[0],
        2.0,
        teacher,
        run(host, "FewstepSampler", churn=0.0, order="1")[0],
        torch.tensor([1.0, 0.5, 0.0]),
    )
    distil(host, teacher, updates=3)
    import comfy.model_management

    assert not comfy.model_management.in_training
    after = sample_custom(
        host,
        teacher[0],
        2.0,
        teacher,
        run(host, "FewstepSampler", churn=0.0, order="1")[0],
        torch.tensor([1.0, 0.5, 0.0]),
    )
    assert torch.equal(before, after)


def test_same_seed_same_lora(host, teacher):
    first = distil(host, teacher, updates=3, seed=5)[0]
    shutil.rmtree(
        pack(host, "nodes.comfy.folders").of_user("runs")
    )  # or the second would be taken from there
    second, other = (distil(host, teacher, updates=3, seed=s)[0] for s in (5, 6))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_names_are_those_that_file_systems_take(host, flow, tmp_path, monkeypatch):
    """76 Chinese characters, which with number and suffix are too many bytes."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    name = "四步蒸馏" * 19
    *_, lora = distil(host, flow, updates=1, batch=1, name=name, vae=None)
    shared = dict(model=flow[0], positive=flow[2], negative=flow[3], name=name, seed=1, cfg=1.0)
    shared["latent"] = host.EmptyLatentImage().generate(32, 32, 1)[0]
    pairs, file = run(host, "FewstepReflowPairs", **shared, count=2, steps=2)
    more = dict(pairs=pairs, method="reflow", memory="auto", steps=1, updates=1, batch=1)
    *_, again = run(host, "FewstepTrainOnPairs", **shared, **more)
    assert lora.startswith(name[:60]) and file.startswith(name[:60]) and again.startswith(name[:60])
    assert lora != again and {lora, again} <= set(folder_paths.get_filename_list("loras"))


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"positive": []}, "positive must hold at least one"),
        ({"name": "///"}, "name must hold"),
        ({"steps": 0}, "steps must be a whole number from 1 to"),
    ],
)
def test_bad_distil_inputs_are_refused_before_the_model_is_loaded(host, teacher, changes, why, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(pack(host, "nodes.comfy.session"), "training_session", never)
    with pytest.raises(ValueError, match=why):
        distil(host, teacher, **changes)


@pytest.mark.parametrize(
    "family, zeroed, settings, told",
    [
        ("sd15", True, {}, True),
        ("sd15", False, {}, False),
        ("sd15", True, {"cfg": 1.0}, False),  # where it is not used
        ("sdxl", True, {}, False),  # whose base was trained so
    ],
)
def test_a_negative_of_zeros_is_remarked_where_the_teacher_is_guided_by_it(
    host, family, zeroed, settings, told
):
    negative = zoo.conditioning(family, 1)
    if zeroed:
        negative = host.ConditioningZeroOut().zero_out(negative)[0]
    name = f"zeros {family} {zeroed} {len(settings)}"
    small_runs.trained(host, family, zoo.load(family), name, negative=negative, **settings)
    folders, runs = pack(host, "nodes.comfy.folders"), pack(host, "training.run.runs")
    (log,) = (one["log"] for one in runs.listing(folders.of_user("runs")) if one["name"] == name)
    assert any("all zeros" in one["message"]["key"] for one in log) == told


@pytest.mark.parametrize(
    "outer, inner, style, steps",
    [(7, 6, "regular", 16), (2, 1.5, "regular", 8), (1, 6, "regular", 16), (2, 2, "nested", 16)],
)
def test_a_guider_with_two_cfgs_has_as_many_steps_as_its_strength_takes(
    host, teacher, monkeypatch, outer, inner, style, steps
):
    """Its own `cfg`, which the base class has, stays 1."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model, _, positive, negative = teacher[:4]
    dual = DualCFGGuider.execute(model, positive, positive, negative, outer, inner, style).result[0]
    orders = []

    def kept(order):
        orders.append(order)
        raise InterruptedError

    monkeypatch.setattr(pack(host, "nodes.distil"), "train", kept)
    with pytest.raises(InterruptedError):
        distil(host, teacher, guider=dual)
    assert orders[0].config.image_steps == steps
