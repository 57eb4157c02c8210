"""In the real ComfyUI: a MODEL as the backend asks it."""

import pytest
import torch
from graph import pack, run

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_the_node_and_the_headless_teacher_are_one_model(host, kind):
    """x0 of ComfyUI's apply_model and of the command line's adapter, at the same levels."""
    from fewstep.training.models.demo.teacher import DemoTeacher

    model, _, positive, negative, _ = run(host, "FewstepLoadDemoTeacher", teacher=kind, label="heart")
    headless = DemoTeacher(kind)
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        kind_of_adapter = pack(host, "nodes.comfy.denoiser").ComfyDenoiser
        adapter = kind_of_adapter(patcher, positive, negative, torch.zeros(1, 3, 32, 32))
        grids = pack(host, "diffusion.schedules.grids")
        grid = grids.grid("uniform", 5, adapter.sigma_of, adapter.path)
        ours = grids.grid("uniform", 5, headless.sigma_of, adapter.path)
        assert torch.allclose(grid, ours, rtol=1e-5)
        assert adapter.base == headless.base
        sigma = grid[:5].float()
        noise = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        x = noise * (sigma.view(-1, 1, 1, 1) + 1)
        first, nothing = torch.zeros(5, dtype=torch.long), torch.full((5,), -1)
        label = torch.full((5,), headless.labels.index("heart"))
        with torch.no_grad():
            assert (adapter(x, sigma, first) - headless(x, sigma, label)).abs().max() < 1e-4
            assert (adapter(x, sigma, nothing) - headless(x, sigma, nothing)).abs().max() < 1e-4
