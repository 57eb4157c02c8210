"""In the real ComfyUI: LoRAs of the two parts of the way, trained by the node and sampled in sequence."""

import pytest
import torch
from fewstep.tests.js.plots import node
from graph import load, pack, run

pytestmark = pytest.mark.comfy

SPLIT = 0.4


def distil(host, teacher, **changes):
    inputs = dict(
        model=teacher[0],
        positive=teacher[4],
        negative=teacher[3],
        latent=host.EmptyLatentImage().generate(32, 32, 1)[0],
        steps=2,
        cfg=2.0,
        quality="quick",
        name="part",
        seed=1,
        updates=4,
        batch=4,
        vae=teacher[1],
    )
    return run(host, "FewstepDistil", **{**inputs, **changes})


def test_the_second_part_goes_on_from_what_the_first_leaves_over(host, teacher, monkeypatch):
    """Sampled by stock nodes, noise in the first alone, the second LoRA draws what it drew in training."""
    monkeypatch.setitem(pack(host, "nodes.distil").QUALITY, "quick", (100, 8))
    kind, seen = pack(host, "training.run.run").Run, {}
    close = kind.close

    def watch(self):
        held, task = self.probe.held, self.task
        state = pack(host, "training.trajectories.noises").start(
            held.noise, self.phases.fine, self.denoiser.path
        )
        seen.update(
            state=state[:1], drawn=task.draw(held, self.adapter)[:1], condition=int(held.condition[0])
        )
        close(self)

    *_, preview, sigmas, high = distil(host, teacher, to_percent=SPLIT)
    assert preview.shape[-1] == 3 and sigmas[-1] > 0
    monkeypatch.setattr(kind, "close", watch)
    *_, low = distil(host, teacher, from_percent=SPLIT, first_stage=teacher[0])
    load = {"model": teacher[0], "strength": 1.0}
    high = run(host, "FewstepLoadLora", lora_name=high, **load)
    low = run(host, "FewstepLoadLora", lora_name=low, **load)
    assert high[2][-1] == low[2][0] and low[2][-1] == 0
    model, level = teacher[0].model, low[2][0]
    leaves = (
        seen["state"] / (1 - level)
        if pack(host, "nodes.comfy.levels").path_of(model.model_sampling).name == "flow"
        else seen["state"]
    )
    latent = {"samples": model.process_latent_out(leaves)}
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    prompt = [teacher[4][seen["condition"]]]
    with torch.inference_mode():
        out = SamplerCustom.execute(
            low[0], False, 0, low[3], prompt, teacher[3], low[1], low[2], latent
        ).result[0]
    assert abs(model.process_latent_in(out["samples"]) - seen["drawn"]).max() < 1e-3
    with torch.inference_mode():
        empty = host.EmptyLatentImage().generate(32, 32, 1)[0]
        first = SamplerCustom.execute(
            high[0], True, 3, 1.0, prompt, teacher[3], high[1], high[2], empty
        ).result[0]
        both = SamplerCustom.execute(low[0], False, 0, 1.0, prompt, teacher[3], low[1], low[2], first).result[
            0
        ]
    assert both["samples"].isfinite().all() and both["samples"].std() < 2


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"from_percent": 0.5}, "first_stage must be wired where from_percent is above 0"),
        ({"first_stage": "same"}, "first_stage must be left out where from_percent is 0"),
        ({"from_percent": 0.5, "first_stage": "other"}, "first_stage must hand on latents that model takes"),
        (
            {"from_percent": 0.5, "first_stage": "same", "first_positive": "one"},
            "as many prompts as positive",
        ),
        ({"to_percent": 0.5, "method": "reflow"}, "must be 0 and 1 for the method reflow"),
        ({"from_percent": 0.6, "to_percent": 0.4}, "to_percent must be at least 0.01 above"),
        ({"to_percent": 0.5, "method": "consistency"}, "needs pictures to learn a part"),
    ],
)
def test_parts_that_cannot_be_are_refused_by_name(host, flow, changes, why, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(pack(host, "training.run.run").Run, "progress", never)
    given = {"same": flow[0], "other": load(host, "epsilon")[0], "one": flow[2]}
    changes = {k: given.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=why):
        distil(host, flow, **changes)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_shares_that_one_click_takes_from_steps_are_the_hosts_noise_levels(host, kind, tmp_path):
    """What the page works out of steps and scheduler is the level that the host hands on at."""
    import comfy.samplers
    from comfy.model_base import ModelType, model_sampling

    sampling = model_sampling(None, ModelType[kind])
    if kind == "FLOW":
        sampling.set_parameters(shift=3.0)
    sigma_of = pack(host, "nodes.comfy.levels").sigma_of(sampling)
    names = ["simple", "normal", "sgm_uniform", "ddim_uniform", "beta"]
    names += ["karras", "exponential"] if kind == "EPS" else []
    cases = [(name, step, steps) for name in names for step, steps in ((20, 25), (10, 20), (2, 8))]
    script = """
import { shareAt } from "./js/graph/parts.js";
answer(data.map((one) => shareAt(...one)));
"""
    shares = node(tmp_path, script, cases)
    for (name, step, steps), share in zip(cases, shares):
        wanted = float(comfy.samplers.calculate_sigmas(sampling, name, steps)[step])
        found = float(sigma_of(torch.tensor([1 - share], dtype=torch.float64)))
        assert found == pytest.approx(wanted, rel=0.04), (name, step, steps)
