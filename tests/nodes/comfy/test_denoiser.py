"""In the real ComfyUI: a MODEL as the backend asks it."""

import contextlib
import math

import pytest
import torch
import zoo
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


# of the cross-attention tensors of three prompts: which of them the host pads until they fit together
LENGTHS = {"cross": (77, 154, 77), "joint": (32, 48, 32)}
PADDED = ("sd15", "sd2_eps", "sd2_v", "sdxl", "sdxl_v")
ONE_CALL = (*PADDED, "flux2")  # which pads them all itself


@contextlib.contextmanager
def opened(host, name, prompts, negative):
    """A denoiser of a tiny model, and a list that gets the batch of each call of its network."""
    with pack(host, "nodes.comfy.session").training_session(zoo.load(name)) as patcher:
        kind = pack(host, "nodes.comfy.denoiser").ComfyDenoiser
        denoiser, batches = kind(patcher, prompts, negative, zoo.latent(name)), []
        hook = denoiser.module.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
        try:
            yield denoiser, batches
        finally:
            hook.remove()


def prompt(name, seed, length):
    ((cross, options),) = zoo.conditioning(name, seed)
    if "attention_mask" in options:
        options = {**options, "attention_mask": torch.ones(1, length, dtype=torch.long)}
    return [cross[:, :1].expand(-1, length, -1) * torch.linspace(0.5, 1, length)[:, None], options]


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_different_prompts_share_a_call_wherever_the_host_lets_them(host, name):
    lengths = LENGTHS["cross" if name in PADDED else "joint"]
    prompts = [prompt(name, seed, length) for seed, length in enumerate(lengths)]
    negative = [prompt(name, 3, lengths[0])]
    numbers = torch.tensor([0, 1, -1, 2, 0, 1])
    x, t = zoo.latent(name, batch=6), torch.tensor([0.9, 0.5, 0.5, 0.3, 0.2, 0.7])
    with opened(host, name, prompts, negative) as (denoiser, batches), torch.no_grad():
        sigma = denoiser.sigma_of(t).float()
        together = denoiser(x, sigma, numbers)
        calls = sorted(batches)
        alone = [denoiser(x[i : i + 1], sigma[i : i + 1], numbers[i : i + 1]) for i in range(6)]
        guided = pack(host, "training.models.denoiser").guided(denoiser, x, sigma, 0 * numbers, 2.0)
        halves = [denoiser(x, sigma, 0 * numbers + n) for n in (-1, 0)]
    assert calls == ([6] if name in ONE_CALL else [2, 4])
    assert batches[-3:] == [12, 6, 6]  # guidance is one call too
    for row, one in zip(together, alone):
        assert (row - one[0]).abs().max() <= 1e-5 * one.abs().max()
    wanted = halves[0] + 2.0 * (halves[1] - halves[0])
    assert (guided - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_call_is_as_large_as_the_hosts_unless_something_is_trained(host):
    prompts = [prompt("sd15", seed, 77) for seed in range(3)]
    with opened(host, "sd15", prompts, prompts[:1]) as (denoiser, batches):
        x, numbers = zoo.latent("sd15", batch=6), torch.arange(6) % 3
        sigma = denoiser.sigma_of(torch.full((6,), 0.5)).float()
        needed = denoiser.model.memory_required([3, *denoiser.shape])
        for free, with_grad, wanted in (
            (1.5 * needed + 1, False, [3, 3]),
            (1.5 * needed / 2 + 1, False, [1] * 6),
            (0, True, [6]),
            (math.inf, False, [6]),
        ):
            denoiser.free_memory = lambda free=free: free
            with torch.set_grad_enabled(with_grad):
                denoiser(x, sigma, numbers)
            assert batches == wanted, free
            batches.clear()


def test_several_prompts_in_one_entry_are_refused(host):
    cross, options = prompt("sd15", 0, 77)
    check, remedy = pack(host, "nodes.comfy.whole_prompts").check_whole, "Take it off"
    two, levels = [[cross.repeat(2, 1, 1), options]], torch.tensor([1.0, 0.0])
    with pytest.raises(
        ValueError, match="positive must hold one prompt in each of its entries, got 2 at once"
    ):
        check("positive", two, zoo.load("sd15"), (4, 8, 8), levels, remedy)
