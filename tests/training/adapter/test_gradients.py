"""Gradients against the same function written without writes in place, their proof, and the memory that they
hold.
"""

import contextlib
import logging

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.exact_graph import exact_graph
from fewstep.training.adapter.lora import Lora
from fewstep.training.adapter.proof import check_gradient, slope
from overwriting import case, gradient, reference
from saved_bytes import held_for, saved_bytes
from torch import nn


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_equals_the_one_of_the_same_function_without_writes(overwrite, checkpointing):
    """Dicts, dataclasses, keywords, views and a mask go in and out of the blocks."""
    loss, grad = gradient(*case(overwrite), checkpointing=checkpointing)
    wanted_loss, wanted = reference()
    assert torch.allclose(loss, wanted_loss, rtol=1e-6) and not loss.requires_grad
    assert (grad - wanted).norm() / wanted.norm() < 1e-6


def test_the_case_is_one_that_plain_autograd_refuses_and_pytorchs_remedy_gets_wrong():
    net, parameters, compute = case(overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        compute().backward()
    for p in parameters:
        p.grad = None
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        compute().backward()
    wanted = reference()[1]
    assert (torch.cat([p.grad.flatten() for p in parameters]) - wanted).norm() / wanted.norm() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_two_calls_add_up_and_the_second_knows_the_model(checkpointing):
    net, parameters, compute = case(overwrite=True)
    backward, calls, first = Backward(net, parameters, checkpointing), [], torch.ones_like(parameters[0])
    parameters[0].grad = first

    def counted():
        calls.append(1)
        return compute()

    backward(counted)
    assert len(calls) == 1 and backward.overwrites
    backward(counted)
    assert len(calls) == 2 and parameters[0].grad is first
    parameters[0].grad = first - 1
    grad, wanted = torch.cat([p.grad.flatten() for p in parameters]), reference()[1]
    assert (grad - 2 * wanted).norm() / wanted.norm() < 1e-6


def test_a_failure_leaves_the_gradients_as_they_were():
    net, parameters, compute = case(overwrite=False)
    kept = parameters[-1].grad = torch.full_like(parameters[-1], 3.0)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise MemoryError("in the middle")

    def failing():
        return compute() + Fails.apply(parameters[0]).sum()

    with pytest.raises(MemoryError, match="in the middle"):
        Backward(net, parameters)(failing)
    assert parameters[-1].grad is kept and kept.eq(3).all() and all(p.grad is None for p in parameters[:-1])


def test_exact_graph_nests_and_survives_lists_and_out():
    w = torch.linspace(0.1, 1, 6, requires_grad=True)

    def f(overwrite):
        x, y = w * 2, w * 3
        z = x.sin() + y.exp()
        if overwrite:
            torch._foreach_mul_([x, y], 2.0)
            torch.add(x.detach(), 1, out=y.detach()[:])
        else:
            x, y = x * 2, y * 2
            y = y + (x + 1 - y).detach()
        return (z * x.square() + y).sum()

    wanted = torch.autograd.grad(f(False), w)[0]
    with exact_graph():
        outer = f(True)
        with exact_graph():
            inner = torch.autograd.grad(f(True), w)[0]
        assert torch.equal(inner, torch.autograd.grad(outer, w)[0])
    assert torch.allclose(inner, wanted)


def test_exact_graph_makes_of_other_kinds_of_tensors_what_is_made_without_it():
    class Named(torch.Tensor):
        def __new__(cls, *args, name):
            return super().__new__(cls, *args)

        def __init__(self, *args, name):
            super().__init__()

    one = Named(torch.ones(2), name="one")
    assert type(torch.Tensor(2 * one)) is torch.Tensor
    with exact_graph():
        assert type(torch.Tensor(2 * one)) is torch.Tensor


def test_a_write_that_no_operation_shows_is_refused():
    w = torch.ones(3, requires_grad=True)
    with exact_graph():
        x = w * 2
        y = x.square().sum()
        with torch.utils._python_dispatch._disable_current_modes():
            x.detach().zero_()
        with pytest.raises(RuntimeError, match="written over where PyTorch shows no operation"):
            y.backward()


# ---- proof -------------------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    """Nothing, with a gradient that is too large by `factor`."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.parametrize("overwrite", [False, True])
def test_slope_of_a_right_gradient_is_1_and_nothing_is_changed(overwrite):
    net, parameters, compute = case(overwrite)
    parameters[0].grad = kept = torch.randn_like(parameters[0])
    before = [p.detach().clone() for p in parameters], kept.clone()
    backward = Backward(net, parameters, checkpointing=True)
    assert abs(slope(compute, parameters, backward=backward) - 1) < 1e-3
    proof = check_gradient(compute, parameters, backward=backward)
    assert proof.copies < 0.1 and proof.directions < 0.5
    assert all(torch.equal(p, w) for p, w in zip(parameters, before[0]))
    assert parameters[0].grad is kept and torch.equal(kept, before[1])
    assert all(p.grad is None for p in parameters[1:])


@pytest.mark.parametrize("factor", [1.01, 0.9, -1.0])
def test_a_wrong_gradient_is_found(factor):
    _, parameters, compute = case(False)

    def wrong():
        return Scaled.apply(compute(), factor)

    assert abs(slope(wrong, parameters) - 1 / factor) < 1e-3
    with pytest.raises(
        ArithmeticError, match="must be the slope of the loss in every direction, and is off by"
    ):
        check_gradient(wrong, parameters)


def test_a_gradient_that_lives_in_one_half_of_a_lora_is_proved():
    net, _, compute = case(True)
    lora = Lora(net.requires_grad_(False), 2)
    backward = Backward(net, lora.parameters(), checkpointing=True)
    before = [p.detach().clone() for p in lora.parameters()]
    proof = check_gradient(compute, lora.parameters(), backward=backward)
    assert proof.copies < 0.1 and proof.directions < 0.5
    assert all(torch.equal(p, w) for p, w in zip(lora.parameters(), before))


def test_what_passes_no_gradient_on_is_found_though_the_slope_along_it_is_right():
    """Of what stands before the cut all is missing, and the slope asks for nothing of it."""
    g = torch.Generator().manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(3, 6, generator=g)
    net[2].register_forward_pre_hook(lambda _, args: args[0].detach())
    parameters = list(net.parameters())
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=g))

    def compute():
        return net(x).square().mean()

    assert abs(slope(compute, parameters) - 1) < 1e-4
    with pytest.raises(ArithmeticError, match="a part of the model cuts it off"):
        check_gradient(compute, parameters, backward=Backward(net, parameters))


def test_what_is_written_over_unseen_is_found_and_named():
    """By saved-tensor hooks, which PyTorch's own check of versions does not look behind."""
    net, parameters, compute = case(overwrite=True)

    def unseen(compute):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            loss = compute()
        loss.backward()
        return loss

    unseen.module = net
    with pytest.raises(ArithmeticError, match="something writes over them before the backward pass"):
        check_gradient(compute, parameters, backward=unseen)


class Halving(nn.Module):
    """Two layers; what came in is halved afterwards, which others see."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, shared, x):
        out = self.b(torch.tanh(self.a(x) + shared))
        shared.mul_(0.5)
        return out


def test_blocks_that_others_see_writing_are_not_called_wrong():
    """On copies of what it gets such a block would do something else."""
    g = torch.Generator().manual_seed(0)
    net, x = nn.ModuleList(Halving() for _ in range(3)), torch.randn(3, 6, generator=g)
    lift = nn.Linear(6, 6)

    def compute():
        shared, y = lift(x), x
        for block in net:
            y = block(shared, y)
        return y.square().mean()

    whole = nn.ModuleDict({"lift": lift, "blocks": net})
    parameters = list(whole.parameters())
    proof = check_gradient(compute, parameters, backward=Backward(whole, parameters))
    assert proof.copies < 0.1 and proof.directions < 0.5


def test_a_proof_that_finds_no_memory_or_no_float32_is_logged_and_the_run_goes_on(caplog):
    net, parameters, compute = case(False)
    calls = []

    def short():
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("Allocation on device ")
        return compute()

    with caplog.at_level(logging.WARNING):
        assert check_gradient(short, parameters).copies is None
    assert "couldn't be proved in full" in caplog.text

    @contextlib.contextmanager
    def refusing():
        raise TypeError("no float32 here")
        yield

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        proof = check_gradient(compute, parameters, torch.bfloat16, in_float32=refusing)
    assert proof.copies < 0.1 and proof.directions is None and "no float32 here" in caplog.text
    assert check_gradient(compute, parameters, torch.bfloat16).directions is None


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_no_gradient_is_an_error_with_a_remedy(value):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ArithmeticError, match="must be finite and not 0, its norm is .*Check that"):
        slope(lambda: (w * value).sum(), [w])
    with pytest.raises(ArithmeticError, match="must be finite and not 0, its norm is .*Check that"):
        check_gradient(lambda: (w * value).sum(), [w])
    assert torch.equal(w, torch.ones(2)) and w.grad is None


# ---- memory ------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.down(self.up(x).tanh())


def chain(depth, batch=5):
    """Linear 4 -> 7 -> 4 with tanh between, `depth` times."""
    net = nn.Sequential(*[Pair() for _ in range(depth)])
    x = torch.randn(batch, 4)
    return net, lambda: net(x).sum()


def test_saved_bytes_of_a_linear_chain_by_hand():
    net, compute = chain(30)
    # float32: a pair's input, and tanh's output (saved twice, held once)
    inputs, inside = 5 * 4 * 4, 5 * 7 * 4
    loss, held = saved_bytes(compute)
    assert held == 30 * (inputs + inside) and torch.equal(loss, compute().detach())
    held = held_for(Backward(net, net.parameters(), checkpointing=True), compute)
    # the inputs of all blocks, and one block's inside on its copies
    assert held == 30 * inputs + (inputs + inside)
    assert all(p.grad is None for p in net.parameters())


def test_saved_bytes_leaves_out_weights_that_are_no_parameters_and_counts_copies():
    w, x = torch.randn(4, 4, requires_grad=True), torch.randn(2, 4)
    assert saved_bytes(lambda: (x @ w).sum(), [w])[1] == x.nbytes
    # w is needed for the gradient of x alone, which nobody wants
    assert saved_bytes(lambda: (x @ w).sum())[1] == x.nbytes

    def overwriting():
        y = x @ w
        z = y.sin()
        y += 1
        return (z + y.square()).sum()

    assert saved_bytes(overwriting, [w])[1] == x.nbytes + 2 * x.nbytes
