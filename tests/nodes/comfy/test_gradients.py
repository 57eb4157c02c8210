"""In the real ComfyUI: gradients of a LoRA through models of twelve families, which no family may bend."""

import pytest
import torch
import zoo
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.lora import Lora
from fewstep.training.adapter.proof import check_gradient, slope
from graph import pack
from saved_bytes import held_for

pytestmark = pytest.mark.comfy
CASES = [(name, depth) for name, family in zoo.FAMILIES.items() for depth in sorted({2, family.deep})]
OVERWRITING = {"flux_dev", "flux_schnell", "flux2", "ltxv"}


class Case:
    """x0-MSE of a LoRA on every layer of a model, both of its halves random, and its exact gradient."""

    def __init__(self, host, name, patcher):
        kind = pack(host, "nodes.comfy.denoiser").ComfyDenoiser
        denoiser = kind(patcher, zoo.conditioning(name), zoo.conditioning(name, 1), zoo.latent(name))
        self.name = name
        self.module, self.in_float32 = denoiser.module, denoiser.in_float32
        self.lora = Lora(self.module, 2)
        g = zoo.generator(name, 5)
        with torch.no_grad():
            for pair in self.lora.weights.values():
                pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))
        self.parameters = self.lora.parameters()
        sigma = denoiser.sigma_of(torch.tensor([0.5])).float()
        x, target = zoo.latent(name) * (1 + sigma), zoo.latent(name, seed=1)
        self.compute = lambda: (denoiser(x, sigma, torch.tensor([0])) - target).square().mean()
        with torch.autograd.graph.allow_mutation_on_saved_tensors():  # PyTorch's own, no checkpointing
            self.exact = self.gradient(lambda compute: compute().backward())

    def gradient(self, backward):
        """The gradient (float64) that backward(compute) leaves, all tensors in one; none may be missing."""
        for p in self.parameters:
            p.grad = None
        backward(self.compute)
        return torch.cat([p.grad.flatten() for p in self.parameters]).double()

    def off(self, gradient):
        """(cosine, norm ratio) of a gradient and the exact one."""
        norms = gradient.norm(), self.exact.norm()
        return float(gradient @ self.exact / (norms[0] * norms[1])), float(norms[0] / norms[1])


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(host, request):
    name, depth = request.param
    with pack(host, "nodes.comfy.session").training_session(zoo.load(name, depth)) as patcher:
        case = Case(host, name, patcher)
        yield case
        case.lora.remove()


@pytest.fixture(scope="module")
def table(pytestconfig):
    """Lines that are printed when all cases are done."""
    heads = f"{'ours (1 - cos)':>20}{'core, depth 1':>22}{'core, depth 2':>22}{'kB kept, of':>18}"
    lines = ["", f"{'cos, norm ratio':16}{heads}"]
    yield lines
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def core(case, depth):
    """The gradient with ComfyUI's own checkpointing, as TrainLoraNode sets it up."""
    from comfy_extras.nodes_train import find_modules_at_depth, patch, unpatch

    found = find_modules_at_depth(case.module, depth=depth)
    for m in found:
        patch(m)
    try:
        return case.gradient(lambda compute: compute().backward())
    finally:
        for m in found:
            unpatch(m)


def test_checkpointed_gradient_is_exact_and_smaller(case, table, request):
    assert case.exact.isfinite().all() and all(p.grad.abs().max() > 0 for p in case.parameters)
    backward = Backward(case.module, case.parameters, checkpointing=True)
    assert len(backward.blocks) >= 2
    cosine, ratio = case.off(case.gradient(backward))
    cores = [case.off(core(case, depth)) for depth in (1, 2)]
    kept, all_kept = (
        held_for(Backward(case.module, case.parameters, c), case.compute) for c in (True, False)
    )
    theirs = "".join(f"{c:>13.6f} {r:8.5f}" for c, r in cores)
    ours = f"{1 - cosine:>11.1e} {ratio:8.6f}"
    table.append(f"{request.node.callspec.id:16}{ours}{theirs}{kept / 1e3:>9.0f} {all_kept / 1e3:8.0f}")
    assert cosine >= 0.99999 and abs(ratio - 1) <= 1e-4
    assert all(cosine >= c - 1e-9 for c, _ in cores)
    assert kept < all_kept * (0.9 if len(backward.blocks) < 8 else 0.6)


def test_gradient_without_checkpointing_is_exact_and_only_writers_pay(case):
    backward = Backward(case.module, case.parameters)
    cosine, ratio = case.off(case.gradient(backward))
    assert cosine >= 0.99999 and abs(ratio - 1) <= 1e-4
    assert backward.overwrites == (case.name in OVERWRITING)


def test_slope_is_1(case):
    backward = Backward(case.module, case.parameters, checkpointing=True)
    assert abs(slope(case.compute, case.parameters, backward=backward) - 1) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["flux2", "wan21", "ltxv"])
def test_a_half_precision_model_passes_the_check_and_a_wrong_gradient_does_not(host, name, dtype):
    model = zoo.load(name, dtype=dtype)
    model.model.manual_cast_dtype = None  # or it computes in float32 on a CPU
    with pack(host, "nodes.comfy.session").training_session(model) as patcher:
        case = Case(host, name, patcher)
        assert case.module.dtype == dtype
        backward = Backward(case.module, case.parameters, checkpointing=True)
        proof = check_gradient(case.compute, case.parameters, dtype, backward, case.in_float32)
        assert proof.copies < 0.5 and proof.directions <= 1

        def wrong(compute):  # cosine 0.7, as core's of a deep Flux
            loss = backward(compute)
            for p in case.parameters:
                p.grad += (
                    p.grad.norm() / p.numel() ** 0.5 * torch.randn(p.shape, generator=zoo.generator(name))
                )
            return loss

        with pytest.raises(
            ArithmeticError, match="is off by [0-9.]+ of its size: something writes over them"
        ):
            check_gradient(case.compute, case.parameters, dtype, wrong)
        case.lora.remove()
