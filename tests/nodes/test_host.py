"""In the real ComfyUI, in process: the nodes, the MODEL adapter, and the LoRA's round trip through the stock
loader.
"""

import inspect
import logging
import shutil
from pathlib import Path

import pytest
import torch
from graph import pack, run

pytestmark = pytest.mark.comfy
KINDS = ("flow", "epsilon")


@pytest.fixture(params=KINDS)
def teacher(host, request):
    return run(host, "FewstepLoadDemoTeacher", teacher=request.param, label="cat")


def uniform(host, teacher, steps, denoise=1.0):
    return run(
        host,
        "FewstepSchedule",
        model=teacher[0],
        schedule={"schedule": "uniform"},
        steps=steps,
        shift=1.0,
        denoise=denoise,
    )[0]


def sample_custom(host, model, cfg, teacher, sampler, sigmas, seed=3, latent=None, count=2):
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    latent = latent or host.EmptyLatentImage().generate(32, 32, count)[0]
    with torch.inference_mode():
        return SamplerCustom.execute(
            model, True, seed, cfg, teacher[2], teacher[3], sampler, sigmas, latent
        ).result[0]["samples"]


def test_every_node_has_a_name_a_description_tooltips_and_a_help_page(host):
    nodes = {k: v for k, v in host.NODE_CLASS_MAPPINGS.items() if k.startswith("Fewstep")}
    assert len(nodes) == 22
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        assert schema.display_name and schema.description and schema.category == "Fewstep", node_id
        assert all(i.tooltip for part in schema.inputs for i in part.get_all()), node_id
        assert (Path(__file__).parent.parent.parent / "js" / "docs" / f"{node_id}.md").stat().st_size > 200, (
            node_id
        )
        widgets = [i for i in schema.inputs if hasattr(i, "default") and not getattr(i, "advanced", False)]
        assert len(widgets) <= 8, node_id


@pytest.mark.parametrize(
    "sampler, scheduler", [("euler", "normal"), ("dpmpp_2m", "karras"), ("uni_pc", "simple")]
)
def test_stock_ksampler_draws_with_the_teacher(host, teacher, sampler, scheduler):
    latent = host.EmptyLatentImage().generate(32, 32, 2)[0]
    with torch.inference_mode():
        out = host.KSampler().sample(
            teacher[0], 7, 12, 2.0, sampler, scheduler, teacher[2], teacher[3], latent
        )[0]
        image = host.VAEDecode().decode(teacher[1], out)[0]
    assert image.shape == (2, 32, 32, 3) and torch.isfinite(image).all()
    assert (
        image.mean() > 0.5 and (image - image[:1].mean()).abs().max() > 0.3
    )  # white paper, and something on it


@pytest.mark.parametrize("kind", KINDS)
def test_the_node_and_the_headless_teacher_are_one_model(host, kind):
    """x0 of ComfyUI's apply_model and of the command line's adapter, at the same levels."""
    from fewstep.training.models.demo.teacher import DemoTeacher

    model, _, positive, negative, _ = run(host, "FewstepLoadDemoTeacher", teacher=kind, label="heart")
    headless = DemoTeacher(kind)
    with pack(host, "nodes.comfy.host").training_session(model) as patcher:
        adapter = pack(host, "nodes.comfy.host").ComfyDenoiser(
            patcher, positive, negative, torch.zeros(1, 3, 32, 32)
        )
        grid = pack(host, "diffusion.schedules.grids").grid("uniform", 5, adapter.sigma_of, adapter.path)
        ours = pack(host, "diffusion.schedules.grids").grid("uniform", 5, headless.sigma_of, adapter.path)
        assert torch.allclose(grid, ours, rtol=1e-5)
        assert adapter.base == headless.base
        sigma = grid[:5].float()
        x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * (
            sigma.view(-1, 1, 1, 1) + 1
        )
        label = torch.full((5,), headless.labels.index("heart"))
        with torch.no_grad():
            assert (
                adapter(x, sigma, torch.zeros(5, dtype=torch.long)) - headless(x, sigma, label)
            ).abs().max() < 1e-4
            nothing = torch.full((5,), -1)
            assert (adapter(x, sigma, nothing) - headless(x, sigma, nothing)).abs().max() < 1e-4


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
        ([1.0], "at least two"),
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


def test_unknown_label_and_steps_below_1_are_refused(host, teacher):
    with pytest.raises(ValueError, match="label must be one of: smiling face, .*; got 'unicorn'"):
        run(host, "FewstepLoadDemoTeacher", teacher="flow", label="unicorn")
    with pytest.raises(ValueError, match="steps must be a whole number of 1 or more, got 0"):
        run(
            host,
            "FewstepSchedule",
            model=teacher[0],
            schedule={"schedule": "uniform"},
            steps=0,
            shift=1.0,
            denoise=1.0,
        )


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "FLOW_COSMOS", "STABLE_CASCADE", "IMG_TO_IMG_FLOW"])
def test_an_unsupported_model_is_refused_by_its_type(host, kind):
    import comfy.model_base

    demo = pack(host, "nodes.demo_teacher")
    sampling = comfy.model_base.model_sampling(
        demo.EmojiConfig({}), getattr(comfy.model_base.ModelType, kind)
    )
    with pytest.raises(
        ValueError, match="model must be an epsilon, v-prediction, EDM or flow model; this one's type is "
    ):
        pack(host, "nodes.comfy.host").path_of(sampling)


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


def test_what_training_would_leave_out_is_refused_by_name(host, teacher):
    masked = [[entry[0], {**entry[1], "mask": "any"}] for entry in teacher[2]]
    with pytest.raises(ValueError, match="positive must be a plain prompt to distil from; it carries mask"):
        distil(host, teacher, positive=masked)
    patched = teacher[0].clone()
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    with pytest.raises(
        ValueError, match="model must be without changes to guidance .* it has sampler_cfg_function"
    ):
        distil(host, [patched, *teacher[1:]])


def test_a_failure_keeps_what_was_learnt_and_queueing_again_goes_on_exactly(
    host, teacher, request, monkeypatch
):
    import folder_paths

    name = f"kept {request.node.callspec.id}"
    module = pack(host, "training.run.distil")
    update, begun = module.Distillation.update, []

    def failing(self):
        begun.append(self.done)
        if self.done == 3:
            raise RuntimeError("the power went")
        return update(self)

    whole = distil(host, teacher, name="straight")
    shutil.rmtree(pack(host, "nodes.comfy.host").folder("runs"))
    monkeypatch.setattr(module.Distillation, "update", failing)
    with pytest.raises(RuntimeError, match="the power went"):
        distil(host, teacher, name=name)
    kept = [
        n for n in folder_paths.get_filename_list("loras") if n.startswith(f"kept {request.node.callspec.id}")
    ]
    assert len(kept) == 1 and begun == [0, 1, 2, 3]
    monkeypatch.setattr(module.Distillation, "update", lambda self: begun.append(self.done) or update(self))
    again = distil(host, teacher, name=name)
    assert begun[4] == 3 and again[4] == kept[0]  # it goes on, and writes over its own file
    assert again[1] == whole[1] and all(torch.equal(again[0][k], whole[0][k]) for k in whole[0])
    finished = distil(host, teacher, name=name)
    assert len(begun) == 4 + 9 and all(torch.equal(finished[0][k], whole[0][k]) for k in whole[0])


def test_lora_round_trip_through_the_stock_loader(host, teacher, caplog, monkeypatch):
    """0 unmatched keys, and the loaded LoRA samples what the student sampled at training time, within 1e-3."""
    import folder_paths

    module, in_chunks = pack(host, "training.run.distil"), pack(host, "training.trajectories.sampling").in_chunks
    seen = {}
    close = module.Distillation.close

    def watch(self):
        if self.probe is None:  # the trial before the run
            return close(self)
        noise, condition, _ = self.probe
        seen["noise"], seen["sigmas"] = noise, self.sigmas_for(4)
        seen["student"] = self.student_samples(noise, condition, seen["sigmas"])
        with self.lora.off():
            seen["base"] = in_chunks(self.denoiser, noise, condition, 1.0, seen["sigmas"])
        close(self)

    monkeypatch.setattr(module.Distillation, "close", watch)
    tensors, losses, preview, sigmas, name = distil(host, teacher)
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
        loaded, sampler, sigmas, cfg = run(
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
    shutil.rmtree(pack(host, "nodes.comfy.host").folder("runs"))  # or the second would be taken from there
    second, other = (distil(host, teacher, updates=3, seed=s)[0] for s in (5, 6))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


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

    monkeypatch.setattr(pack(host, "nodes.comfy.host"), "training_session", never)
    with pytest.raises(ValueError, match=why):
        distil(host, teacher, **changes)


def test_sampler_signature_is_what_the_host_calls(host):
    parameters = list(inspect.signature(pack(host, "nodes.sampling").sample).parameters)
    assert parameters[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
