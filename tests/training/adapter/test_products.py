"""A LoRA's arithmetic: what it costs a layer, what is kept, and its gradients by another way."""

import warnings
from collections import Counter

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.lora import Lora
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"view", "_unsafe_view", "permute", "t", "transpose", "unsqueeze", "detach", "alias", "expand"}
LAYERS = {
    "linear": (nn.Linear(6, 5), (2, 4, 6)),
    "flat": (nn.Linear(6, 5), (3, 6)),
    "conv1d": (nn.Conv1d(6, 5, 3), (2, 6, 7)),
    "conv2d": (nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 7, 8)),
    "circular": (nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), (2, 6, 7, 8)),
    "conv3d": (nn.Conv3d(6, 5, 3, padding=1), (2, 6, 3, 4, 4)),
}


class Count(TorchDispatchMode):
    """Operations that do work, views left out."""

    def __init__(self):
        super().__init__()
        self.done = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.done[name] += 1
        return function(*args, **(kwargs or {}))


def counted(call):
    with Count() as count:
        call()
    return count.done


def made(name, dtype=torch.float32, alpha=None):
    """(the layer in a net, its adapter with random halves, an input that wants a gradient)"""
    layer, shape = LAYERS[name]
    net = nn.Sequential(layer.to(dtype)).requires_grad_(False)
    lora, g = Lora(net, 2, alpha), torch.Generator().manual_seed(1)
    lora.load([0.3 * torch.randn(p.shape, generator=g) for p in lora.parameters()])
    return net, lora, torch.randn(shape, generator=g).to(dtype).requires_grad_()


def by_hand(name, lora, x):
    """The same function of plain operations, whose gradient is autograd's."""
    layer = LAYERS[name][0]
    pair = lora.weights["0"]
    down, up = pair["down"].to(x.dtype), (pair["up"] * lora.scale).to(x.dtype)
    if down.ndim == 2:
        return layer(x) + F.linear(F.linear(x, down), up)
    inner = layer._conv_forward(x, down, None)
    return layer(x) + torch.einsum("or,br...->bo...", up, inner)


def gradients(out, leaves):
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)
    return torch.autograd.grad((out * weight).sum(), leaves)


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_plain_operations(name, alpha):
    net, lora, x = made(name, torch.float64, alpha)
    lora.remove()
    leaves = [x, *lora.parameters()]
    plain = by_hand(name, lora, x)
    wanted = gradients(plain, leaves)
    net, lora, x = made(name, torch.float64, alpha)
    out = net(x)
    assert torch.allclose(out, plain, rtol=1e-12)
    for found, exact in zip(gradients(out, [x, *lora.parameters()]), wanted):
        assert found.dtype == exact.dtype and torch.allclose(found, exact, rtol=1e-6, atol=1e-7)
    lora.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"circular"}))  # whose padding is work of its own
def test_a_layer_costs_three_operations_at_most_and_no_cast(name, dtype):
    """Six with autograd's plain operations, two of them casts; those are made once an update."""
    net, lora, x = made(name, dtype, alpha=3.0)
    with lora.off():
        plain = counted(lambda: net(x))
    first, again = (counted(lambda: net(x)) - plain for _ in range(2))
    assert 2 <= again.total() <= 3 and "_to_copy" not in again and "mul" not in again
    assert first.total() <= again.total() + 3
    with torch.no_grad():
        lora.parameters()[0].add_(1)
    assert (counted(lambda: net(x)) - plain).total() > again.total()
    lora.remove()


def test_what_is_kept_follows_every_way_of_writing():
    net, lora, x = made("linear", torch.bfloat16)
    out, (down, up) = net(x), lora.parameters()
    optimiser = torch.optim.AdamW([down, up], lr=0.1)

    def changed(write):
        nonlocal out
        before, write = out, write()
        out = net(x)
        return not torch.equal(before, out)

    def stepped():
        down.grad, up.grad = torch.ones_like(down), torch.ones_like(up)
        optimiser.step()

    def behind_the_counters():
        up.data.view(-1).numpy()[:] += 1
        lora.written()

    with torch.no_grad():
        assert not changed(lambda: None)
        assert changed(stepped)
        assert changed(lambda: up.mul_(2))
        assert changed(lambda: lora.load([down + 1, up]))
        assert changed(lambda: lora.load_state_dict({k: 2 * v for k, v in lora.state_dict().items()}))
        assert changed(behind_the_counters)
    other = [torch.zeros_like(down), torch.zeros_like(up)]
    with lora.using(other, keep=True):
        assert torch.equal(net(x), LAYERS["linear"][0](x) - 0 * out)
        other[0].add_(1), other[1].add_(1)
        assert changed(lambda: None)
    with lora.using(other, keep=True):
        assert not changed(lambda: None)
    lora.remove()


def test_a_loan_leaves_the_weights_and_gives_them_no_gradient():
    net, lora, x = made("linear")
    before, versions = net(x), [p._version for p in lora.parameters()]
    lent = [p.detach() + 1 for p in lora.parameters()]
    with lora.using(lent):
        net(x).sum().backward()
    assert all(p.grad is None for p in lora.parameters()) and x.grad is not None
    assert [p._version for p in lora.parameters()] == versions and torch.equal(net(x), before)
    with pytest.raises(AssertionError, match="other layers"), lora.using(lent[:1]):
        pass
    lora.remove()


def test_many_calls_of_one_layer_add_up_in_float32():
    """As a batch of several prompts makes them; beside 256 of them the next is lost in bfloat16."""
    net, lora, x = made("flat", torch.bfloat16)
    with torch.no_grad():
        lora.weights["0"]["up"].fill_(1)
    sum(net(torch.full_like(x, 1 + i / 999)).float().sum() for i in range(600)).backward()
    one = lora.weights["0"]["down"].grad / 600
    assert torch.allclose(one, torch.full_like(one, 15 * 1.3), rtol=0.01)
    lora.remove()


def test_whatever_goes_in():
    """No rows, no batch, another order in memory, and by name."""
    net, lora, x = made("linear")
    layer, rows = LAYERS["linear"][0], net(x)
    assert net(x[:0]).shape == (0, 4, 5) and net(x[0, 0]).shape == (5,)
    assert torch.allclose(net(x[0, 0]), rows[0, 0]) and torch.allclose(layer(input=x), rows)
    turned = net(x.transpose(0, 1).contiguous().transpose(0, 1))
    assert torch.allclose(turned, rows) and (layer.forward(x) - rows).abs().max() > 0.1
    lora.remove()


def test_inference_mode_and_autocast_do_not_spoil_what_is_kept():
    net, lora, x = made("conv2d")
    with torch.inference_mode():
        net(x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
        net(x).float().sum().backward()
    found = lora.parameters()[1].grad.clone()
    lora.parameters()[1].grad = None
    net(x).sum().backward()
    wanted = lora.parameters()[1].grad
    assert found.dtype == torch.float32 and torch.cosine_similarity(found, wanted).min() > 0.999
    lora.remove()


def test_a_model_may_write_over_what_a_layer_answers():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            for line in self.lines:
                x = line(x)
                x[:, 1:] *= 2
                x += 1
            return x

    torch.manual_seed(0)
    net = Writes().requires_grad_(False)
    lora = Lora(net, 2)
    lora.load([torch.randn_like(p) for p in lora.parameters()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Backward(net, lora.parameters())(lambda: net(torch.ones(2, 3, 4)).square().mean())
    assert all(p.grad.abs().max() > 0 for p in lora.parameters())


def test_scale_of_a_file_is_kept():
    lora = made("linear", alpha=3.0)[1]
    tensors = lora.state_dict()
    key = "diffusion_model.0"
    tensors[f"{key}.lora_up.weight"] /= 4
    tensors[f"{key}.alpha"] *= 4
    other = made("linear", alpha=3.0)[1]
    other.load_state_dict(tensors)
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), other.parameters()))
