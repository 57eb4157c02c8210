"""Layers that borrow their weights for the length of a call."""

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.lora import Lora
from fewstep.training.adapter.proof import slope
from saved_bytes import held_for
from torch import nn
from torch.nn import functional as F

WIDTH = 8


class Borrowing(nn.Linear):
    """A layer whose weight is fetched into memory that is given back, and spoilt, when it has answered."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        memory = torch.empty(self.weight.numel(), dtype=self.weight.dtype).numpy()
        weight = torch.from_numpy(memory).view(self.weight.shape).copy_(self.weight.detach())
        out = F.linear(x, weight, self.bias)
        torch.from_numpy(memory).fill_(float("nan"))  # another version counter: autograd can't notice
        return out


class Net(nn.Module):
    """Blocks of two layers each, after a layer that no gradient goes through."""

    def __init__(self, kind):
        super().__init__()
        self.first = kind(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(kind(WIDTH, WIDTH), nn.GELU(), kind(WIDTH, WIDTH)) for _ in range(3)
        )
        self.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def trained(kind):
    """(net, its adapter on the blocks, its loss), the same for each kind of layer."""
    torch.manual_seed(0)
    net = Net(kind)
    lora = Lora(net, 2, include=["blocks.*"])
    with torch.no_grad():
        for pair in lora.weights.values():
            pair["up"].normal_()
    x = torch.randn(4, WIDTH)
    return net, lora, lambda: net(x).square().mean()


def layers(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


def none(net):
    return []


def gradient(kind, checkpointing, streamed=none):
    net, lora, compute = trained(kind)
    Backward(net, lora.parameters(), checkpointing, lambda: streamed(net))(compute)
    return torch.cat([p.grad.flatten() for p in lora.parameters()])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_weights_that_stay(checkpointing):
    exact = gradient(nn.Linear, False)
    assert torch.allclose(gradient(Borrowing, checkpointing, layers), exact, rtol=1e-6, atol=1e-7)
    net, lora, compute = trained(Borrowing)
    backward = Backward(net, lora.parameters(), checkpointing, lambda: layers(net))
    assert abs(slope(compute, lora.parameters(), backward=backward) - 1) < 2e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_fetching_again_it_is_wrong(checkpointing):
    assert not gradient(Borrowing, checkpointing).isfinite().all()


def test_a_layer_without_a_gradient_is_called_once():
    net, lora, compute = trained(Borrowing)
    Backward(net, lora.parameters(), streamed=lambda: layers(net))(compute)
    first, *others = layers(net)
    # blocks.0.0 has an input that wants no gradient: only its adapter does
    assert [layer.calls for layer in (first, *others)] == [1, 1, 2, 2, 2, 2, 2]


def test_borrowed_weights_are_no_activations():
    """A graph of streamed layers holds inputs, and one layer's weights at a time."""
    stay, kept, streamed = held(nn.Linear, none), held(Borrowing, none), held(Borrowing, layers)
    one = 4 * WIDTH * WIDTH  # bytes of a weight
    assert kept >= stay + 5 * one
    assert streamed <= stay + one


def held(kind, streamed):
    net, lora, compute = trained(kind)
    return held_for(Backward(net, lora.parameters(), streamed=lambda: streamed(net)), compute)
