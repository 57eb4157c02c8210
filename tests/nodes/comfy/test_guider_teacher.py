"""In the real ComfyUI: a guider as a teacher is what its own sampling asks."""

import pytest
import torch
from graph import cfg_guider, load, off, pack, run, sampled

pytestmark = pytest.mark.comfy


def ends(host, folder, guider, steps):
    """(noise, ends of the trajectories, their sigmas) of one shard that the fit's teacher draws."""
    fitting, noises = pack(host, "training.run.fitting"), pack(host, "training.trajectories.noises").noises
    with torch.inference_mode():
        teacher = pack(host, "nodes.comfy.guider_teacher").Teacher(guider, (3, 32, 32))
        job = fitting.SolverFit(teacher, fitting.FitConfig(trajectories=8, reference_steps=steps), folder)
        grid = job.grid("auto", steps)
        teacher.run(lambda: list(job.cache.build(teacher, 8)), grid)
        return noises(0, range(8), (3, 32, 32)), job.cache.read(8)[0][:, -1], grid


def test_60_steps_of_the_teacher_are_what_stock_sampling_draws_each_prompt_for_itself(
    host, tmp_path, teacher
):
    other = run(host, "FewstepLoadDemoTeacher", teacher="flow", label="heart")[2]
    guider = pack(host, "nodes.fit").guider_of(None, teacher[0], [*teacher[2], *other], teacher[3], 2.0)
    noise, drawn, grid = ends(host, tmp_path, guider, 60)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    for number, positive in enumerate((teacher[2], other)):
        stock = sampled(cfg_guider(teacher[0], positive, teacher[3]), noise[number::2], sampler, grid.float())
        assert off(drawn[number::2], stock) < 1e-3 and off(drawn[1 - number :: 2], stock) > 0.1


def test_combined_negatives_guide_together_as_in_stock_sampling(host, tmp_path, flow):
    both = [*flow[3], *load(host, "flow", "heart")[2]]
    guider = pack(host, "nodes.fit").guider_of(None, flow[0], flow[2], both, 2.0)
    noise, drawn, grid = ends(host, tmp_path, guider, 24)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    stock, first = (
        sampled(cfg_guider(flow[0], flow[2], negative), noise, sampler, grid.float())
        for negative in (both, flow[3])
    )
    assert off(drawn, stock) < 1e-3 and off(drawn, first) > 0.01


@pytest.mark.parametrize("kind", ["masks", "dual cfg", "no negative", "hook"])
def test_any_guider_is_asked_as_it_samples(host, tmp_path, flow, kind):
    """Regional prompts in one guider, other guiders, and a LoRA that is hooked to a prompt."""
    from comfy_extras import nodes_custom_sampler

    other = load(host, "flow", "heart")[2]
    half = torch.zeros(1, 32, 32)
    half[..., :16] = 1
    with torch.inference_mode():
        if kind == "masks":
            cut = host.ConditioningSetMask().append
            guider = cfg_guider(
                flow[0],
                cut(flow[2], half, "default", 1.0)[0] + cut(other, 1 - half, "default", 1.0)[0],
                flow[3],
            )
        elif kind == "dual cfg":
            guider = nodes_custom_sampler.DualCFGGuider.execute(
                flow[0], flow[2], other, flow[3], 2.0, 1.5, "regular"
            ).result[0]
        elif kind == "no negative":
            guider = nodes_custom_sampler.BasicGuider.execute(flow[0], flow[2]).result[0]
        else:
            import comfy.hooks

            key, weight = "diffusion_model.out.weight", flow[0].model.diffusion_model.out.weight
            hooks = comfy.hooks.create_hook_lora({"diffusion_model.out.diff": 0.3 * weight.clone()}, 1.0, 0.0)
            assert key in flow[0].model_state_dict()
            guider = cfg_guider(
                flow[0], comfy.hooks.set_hooks_for_conditioning(flow[2], hooks=hooks), flow[3]
            )
    noise, drawn, grid = ends(host, tmp_path, guider, 24)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    stock = sampled(guider, noise, sampler, grid.float())
    plain = sampled(cfg_guider(*flow[:1], *flow[2:4]), noise, sampler, grid.float())
    assert off(drawn, stock) < 1e-3 and off(stock, plain) > 0.01


def test_a_large_latent_or_little_memory_means_fewer_samples_a_call(host, flow, monkeypatch):
    import comfy.model_management

    rows = pack(host, "nodes.comfy.guider_teacher").rows_at_once
    assert rows(flow[0], (3, 32, 32)) == 8
    need = flow[0].model.memory_required([4, 3, 512, 512])
    monkeypatch.setattr(
        comfy.model_management, "get_total_memory", lambda device: flow[0].model_size() + 1.2 * need
    )
    assert rows(flow[0], (3, 512, 512)) == 2
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 0.1 * need)
    assert rows(flow[0], (3, 512, 512)) == 1


def rescaled(model):
    """A MODEL whose guidance is changed visibly: the stock RescaleCFG, wholly."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    with torch.inference_mode():
        return RescaleCFG().patch(model, 1.0)[0]


def test_each_prompt_takes_the_place_of_the_guiders_own(host, tmp_path, flow):
    heart = load(host, "flow", "heart")[2]
    guider = cfg_guider(rescaled(flow[0]), flow[2], flow[3], 4.0)
    ours = pack(host, "nodes.comfy.guider_teacher").prompted(guider, [*flow[2], *heart])
    noise, drawn, grid = ends(host, tmp_path, ours, 24)
    sampler = run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    for number, positive in enumerate((flow[2], heart)):
        alone = cfg_guider(rescaled(flow[0]), positive, flow[3], 4.0)
        stock = sampled(alone, noise[number::2], sampler, grid.float())
        plain = sampled(cfg_guider(flow[0], positive, flow[3], 4.0), noise[number::2], sampler, grid.float())
        assert off(drawn[number::2], stock) < 1e-3 and off(plain, stock) > 0.01


def test_what_else_the_guiders_entry_carries_stays_with_every_prompt(host, flow):
    prompted = pack(host, "nodes.comfy.guider_teacher").prompted
    carried = [[flow[2][0][0], {**flow[2][0][1], "strength": 0.5, "pooled_output": "own"}]]
    guider = prompted(
        cfg_guider(flow[0], carried, flow[3]), [[torch.ones(1, 2), {"pooled_output": "new"}]] * 2
    )
    entries = guider.original_conds["positive"]
    assert [(e["strength"], e["pooled_output"]) for e in entries] == [(0.5, "new")] * 2
    assert all(torch.equal(e["cross_attn"], torch.ones(1, 2)) for e in entries)


def test_regions_teach_one_prompt_and_several_are_refused(host, flow):
    prompted = pack(host, "nodes.comfy.guider_teacher").prompted
    heart = load(host, "flow", "heart")[2]
    regions = cfg_guider(flow[0], [*flow[2], *heart], flow[3])
    assert prompted(regions, flow[2]) is regions
    asked_alone = prompted(regions, [*flow[2], *heart])  # the very prompts: one by one
    assert len(asked_alone.original_conds["positive"]) == 2 and asked_alone is not regions
    with pytest.raises(
        ValueError, match="guider must have one positive entry, .* each of the 3 prompts.*got 2"
    ):
        prompted(regions, [*flow[2]] * 3)


@pytest.mark.parametrize("method", ["phased", "reflow", "consistency-training"])
def test_distilling_through_a_guider_learns_what_it_draws(host, flow, method, monkeypatch):
    training, runs = pack(host, "nodes.training"), []
    kind = training.Run
    monkeypatch.setattr(training, "Run", lambda *a, **k: runs.append(kind(*a, **k)) or runs[-1])
    monkeypatch.setitem(pack(host, "nodes.distil").QUALITY, "quick", (3, 4))
    monkeypatch.setattr(pack(host, "training.run.source"), "PROBES", 2)
    guider = cfg_guider(rescaled(flow[0]), flow[2], flow[3], 4.0)
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    inputs = dict(model=flow[0], positive=flow[2], negative=flow[3], latent=latent, guider=guider)
    tensors = run(
        host,
        "FewstepDistil",
        **inputs,
        steps=2,
        cfg=0.0,
        quality="quick",
        name="guided",
        seed=1,
        method=method,
    )[0]
    assert any(bool(v.abs().max() > 0) for k, v in tensors.items() if "lora_up" in k)
    source, sampler = runs[0].source, run(host, "FewstepSampler", churn=0.0, order="auto")[0]
    # the trajectories' own solver, order 2 with corrector, is what auto takes without guidance
    monkeypatch.setattr(pack(host, "nodes.sampling"), "strength_of", lambda guider: 1.0)
    stock, plain = (
        sampled(
            cfg_guider(model, flow[2], flow[3], 4.0), source.held.noise, sampler, source.phases.fine.float()
        )
        for model in (rescaled(flow[0]), flow[0])
    )
    assert off(source.held.reference, stock) < 1e-3 and off(stock, plain) > 0.01
    assert runs[0].recipe().trained["teacher_cfg"] == 4.0


def test_a_method_that_asks_the_teacher_online_takes_no_guider(host, flow):
    guider = cfg_guider(rescaled(flow[0]), flow[2], flow[3], 4.0)
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    inputs = dict(model=flow[0], positive=flow[2], negative=flow[3], latent=latent, guider=guider)
    with pytest.raises(
        ValueError, match="method must be one of phased, .* where a guider is wired, got consist"
    ):
        run(
            host,
            "FewstepDistil",
            **inputs,
            steps=2,
            cfg=0,
            quality="quick",
            name="x",
            seed=1,
            method="consistency",
        )


def test_pairs_are_drawn_through_a_guider_and_trained_on(host, flow):
    guider = cfg_guider(rescaled(flow[0]), flow[2], flow[3], 4.0)
    latent = host.EmptyLatentImage().generate(32, 32, 1)[0]
    inputs = dict(model=flow[0], positive=flow[4][:2], negative=flow[3], latent=latent)
    asked = dict(**inputs, count=4, steps=8, cfg=4.0, name="guided", seed=3)
    data, about = run(host, "FewstepReflowPairs", **asked, guider=guider)[0]
    plain = run(host, "FewstepReflowPairs", **asked)[0][0]
    assert torch.allclose(data.noise, plain.noise, atol=1e-5) and off(data.images, plain.images) > 0.01
    assert about["conditions"] == 2 and about["cfg"] == 4.0 and data.condition.tolist() == [0, 1, 0, 1]
    more = dict(method="reflow", steps=2, cfg=0.0, memory="auto", name="guided", seed=0, updates=2, batch=2)
    assert run(host, "FewstepTrainOnPairs", **inputs, pairs=(data, about), **more)[0]
