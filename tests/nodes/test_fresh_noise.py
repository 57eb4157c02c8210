"""In the real ComfyUI: the fresh noise of a picture is its own, for every sampler mode that draws any."""

import pytest
import torch
import zoo
from graph import cfg_guider, pack, run, sample_custom, uniform

pytestmark = pytest.mark.comfy
SAMPLERS = [
    ("FewstepSampler", {"churn": 1.0, "order": "1"}),
    ("FewstepSampler", {"churn": 0.6, "order": "heun"}),
    ("FewstepSampler", {"churn": 1.0, "order": "2"}),
    ("FewstepSampler", {"churn": 0.8, "order": "1", "mode": "raise first"}),
    ("FewstepSampler", {"churn": 1.0, "order": "auto", "mode": "restart", "start": 0.3, "end": 0.6}),
    ("FewstepConsistencySampler", {"method": {"method": "consistency", "fresh_noise": 1.0}}),
    ("FewstepConsistencySampler", {"method": {"method": "TCD", "gamma": 0.3}}),
]
# modes whose step needs nothing of the steps before
SINGLE_STEP = [pair for pair in SAMPLERS if pair[1].get("order") in ("1", "heun", None)]
# what the demo teacher's own arithmetic changes with the batch's size; other noise changes by .1 and more
SAME = 1e-3


@pytest.fixture(params=["flow", "epsilon"])
def draw(host, request):
    """(sampler, sigmas, seed, latent) -> latents of the demo teacher, and its schedule."""
    from graph import load

    teacher = load(host, request.param)

    def drawn(sampler, sigmas, seed, latent, **options):
        return sample_custom(host, teacher[0], 1.0, teacher, sampler, sigmas, seed, latent, **options)

    return drawn, uniform(host, teacher, 6), teacher


def empty(host, count):
    return host.EmptyLatentImage().generate(32, 32, count)[0]


@pytest.mark.parametrize("node, options", SAMPLERS, ids=str)
def test_a_picture_of_a_batch_is_the_picture_alone(host, draw, node, options):
    draw, sigmas, _ = draw
    sampler, four = run(host, node, **options)[0], empty(host, 4)
    whole = draw(sampler, sigmas, 5, four)
    third = draw(sampler, sigmas, 5, host.LatentFromBatch().frombatch(four, 2, 1)[0])
    assert (third - whole[2:3]).abs().max() < SAME
    repeated = host.RepeatLatentBatch().repeat(host.LatentFromBatch().frombatch(four, 1, 1)[0], 3)[0]
    assert repeated["batch_index"] == [1, 2, 3]
    assert (draw(sampler, sigmas, 5, repeated) - whole[1:]).abs().max() < SAME
    fixed = draw(sampler, sigmas, 5, {**empty(host, 3), "batch_index": [2, 2, 2]})
    assert (fixed - whole[2]).abs().max() < SAME
    assert (whole[0] - whole[1]).abs().max() > 0.1
    assert (draw(sampler, sigmas, 6, empty(host, 1)) - whole[0]).abs().max() > 0.1


@pytest.mark.parametrize("node, options", SINGLE_STEP, ids=str)
def test_a_split_run_is_the_whole_run(host, draw, node, options):
    """With the same seed, with none (Disable Noise), and for one picture that is picked between the parts."""
    from comfy_extras.nodes_custom_sampler import (
        DisableNoise,
        RandomNoise,
        SamplerCustomAdvanced,
        SplitSigmas,
    )

    draw, sigmas, teacher = draw
    sampler, four = run(host, node, **options)[0], empty(host, 4)
    whole = draw(sampler, sigmas, 5, four)
    high, low = SplitSigmas.execute(sigmas, 3).result
    first = {**four, "samples": draw(sampler, high, 5, four)}
    left = pack(host, "nodes.comfy.fresh_noise")._left
    kept = list(left)
    left.clear()  # as after a restart: the seed tells
    assert (draw(sampler, low, 5, first, add_noise=False) - whole).abs().max() < SAME
    left.extend(kept)
    picked = host.LatentFromBatch().frombatch(first, 2, 1)[0]
    assert (draw(sampler, low, 9, picked, add_noise=False) - whole[2]).abs().max() < SAME
    guider, none = cfg_guider(teacher[0], *teacher[2:4], 1.0), DisableNoise.execute().result[0]
    with torch.inference_mode():
        seeded = RandomNoise.execute(5).result[0]
        first = SamplerCustomAdvanced.execute(seeded, guider, sampler, high, four).result[0]
        last = SamplerCustomAdvanced.execute(none, guider, sampler, low, first).result[0]["samples"]
    assert (last - whole).abs().max() < SAME


@pytest.mark.parametrize("node, options", SAMPLERS[:1] + SAMPLERS[-2:], ids=str)
def test_videos_too(host, node, options):
    """A sample is a row, whatever its shape; half precision latents have the noise of whole ones."""
    model = zoo.load("wan21")
    sampler = run(host, node, **options)[0]
    sigmas = torch.linspace(1, 0, 4)
    conds = (None, None, zoo.conditioning("wan21"), zoo.conditioning("wan21", 1))
    three = {"samples": torch.zeros(3, 16, 2, 8, 8)}

    def draw(latent):
        return sample_custom(host, model, 1.0, conds, sampler, sigmas, 5, latent)

    whole = draw(three)
    last = draw(host.LatentFromBatch().frombatch(three, 2, 1)[0])
    assert (last - whole[2:]).abs().max() < SAME * whole.abs().max()
    keys = pack(host, "nodes.comfy.fresh_noise")._by_signs
    noise = zoo.latent("wan21", 2)
    assert keys(noise) == keys(noise.half() * 3) == keys(noise.bfloat16())
