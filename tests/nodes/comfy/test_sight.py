"""In the real ComfyUI: every family's pictures are seen by its own middle block."""

import pytest
import torch
import zoo
from graph import pack

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("name, change", [*((name, dict) for name in zoo.FAMILIES), ("sd15", zoo.quantised)])
def test_the_middle_block_of_every_family_sees_pictures(host, name, change):
    model = zoo.load(name, change=change)
    session, kind = pack(host, "nodes.comfy.session"), pack(host, "nodes.comfy.denoiser").ComfyDenoiser
    sight = pack(host, "training.run.sight")
    prompts = [*zoo.conditioning(name), *zoo.conditioning(name, 1)]
    with session.training_session(model) as patcher, torch.no_grad():
        latent = zoo.latent(name)
        denoiser = kind(patcher, prompts, zoo.conditioning(name, 1), latent)
        eye = sight.Sight(denoiser)
        pictures = torch.cat([zoo.latent(name, seed=seed) for seed in range(3)])
        condition = torch.tensor([0, 1, 0]) % denoiser.conditions
        seen = eye.features(pictures, condition)
        again = eye.features(pictures[2:], condition[2:])
    assert eye.seen_in == sight.BLOCK and eye.block.name
    assert len(seen) == 3 and bool(seen.isfinite().all()) and (seen[0] - seen[2]).abs().max() > 0
    assert again.shape == seen[2:].shape
