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
