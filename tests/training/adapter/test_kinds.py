"""Weights of a kind of tensor that gives itself as what it detaches and clones, as ComfyUI-GGUF's do."""

import gc
import weakref

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.kinds import copied, detached, plain
from fewstep.training.adapter.lora import Lora
from torch import nn

WIDTH = 8


class Own(torch.Tensor):
    """Its methods lie; and what meets it in an operation becomes one of its kind."""

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self


class Block(nn.Module):
    """Two layers and a norm, which write over what they were given, and over what autograd saved."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.norm(x)
        kept = x * x
        x += self.one(x).tanh()
        x[:, 1:] *= 1.5
        x += self.two(torch.nn.functional.gelu(x)) * kept
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.requires_grad_(False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def measured(kind, checkpointing, streamed):
    """(loss, gradient of an adapter on every layer, twice: looked at and learnt)"""
    torch.manual_seed(0)
    net = Net().double()
    if kind is Own:
        for part in net.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = torch.Tensor._make_subclass(Own, p.detach())
    lora = Lora(net, 2)
    with torch.no_grad():
        for pair in lora.weights.values():
            pair["up"].normal_()
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.RMSNorm))]
    backward = Backward(net, lora.parameters(), checkpointing, lambda: layers if streamed else [])
    out = []
    for _ in range(2):
        for p in lora.parameters():
            p.grad = None
        loss = backward(lambda: net(x.clone()).square().mean())
        out.append((float(loss), torch.cat([p.grad.flatten() for p in lora.parameters()])))
    return out


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "recomputed"])
def test_the_gradient_is_that_of_plain_weights(checkpointing, streamed):
    for right, found in zip(
        measured(torch.Tensor, False, False), measured(Own, checkpointing, streamed), strict=True
    ):
        assert found[0] == pytest.approx(right[0], rel=1e-12)
        torch.testing.assert_close(plain(found[1]), right[1], rtol=1e-6, atol=1e-9)


def test_what_it_holds_is_taken_whatever_its_methods_say():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    tensor = x * torch.Tensor._make_subclass(Own, torch.full((3,), 2.0))
    assert type(tensor) is Own and tensor.clone() is tensor
    other, apart, same = copied(tensor), detached(tensor), plain(tensor)
    assert [type(t) for t in (other, apart, same)] == [torch.Tensor] * 3
    assert other.data_ptr() != tensor.data_ptr() == apart.data_ptr() == same.data_ptr()
    assert not apart.requires_grad and apart._version == tensor._version
    (other.sum() + same.sum()).backward()
    assert x.grad.tolist() == [4.0, 4.0, 4.0]
    untouched = torch.ones(2)
    assert plain(untouched) is untouched


def test_a_call_that_fails_leaves_none_of_them_behind():
    """What is saved has no history, whatever the tensor gives as detached."""
    gc.collect()
    held = []

    def fail():
        x = torch.ones(3, requires_grad=True) * torch.Tensor._make_subclass(Own, torch.full((3,), 2.0))
        y = x.square()
        held.append(weakref.ref(x.untyped_storage()))
        x += y
        raise ArithmeticError

    gc.disable()
    try:
        with pytest.raises(ArithmeticError):
            Backward(nn.Identity(), [])(fail)
        assert held[0]() is None
    finally:
        gc.enable()
