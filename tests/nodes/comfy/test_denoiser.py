"""In the real ComfyUI: a MODEL as the backend asks it."""

import pytest
import torch
from graph import pack, run

pytestmark = pytest.mark.comfy

KINDS = ("flow", "epsilon")


@pytest.mark.parametrize("kind", KINDS)
def test_the_node_and_the_headless_teacher_are_one_model(host, kind):
    """x0 of ComfyUI's apply_model and of the command line's adapter, at the same levels."""
    from fewstep.training.models.demo.teacher import DemoTeacher

    model, _, positive, negative, _ = run(host, "FewstepLoadDemoTeacher", teacher=kind, label="heart")
    headless = DemoTeacher(kind)
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        adapter = pack(host, "nodes.comfy.denoiser").ComfyDenoiser(
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
