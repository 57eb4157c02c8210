"""What a model writes over is seen in one call, and copied from then on where it was seen, nowhere else."""

import gc

import pytest
import torch
from fewstep.training.adapter import overwrites
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.exact_graph import _CopyOnWrite
from fewstep.training.adapter.live_bytes import LiveBytes
from overwriting import Net as Flux
from overwriting import case, reference
from torch import nn

WIDTH = 4


class Branching(nn.Module):
    """Layers that write over their input or not, as it is asked of them at each call; the loss is the same.

    ways: of writing, by name, to sin(x) that autograd has saved
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.way = None
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.part = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x):
        x = self.first(x)
        y = self.part(x.sin()) + x.square()  # both save x
        if self.way is None:
            x = x + 1
        else:
            x = WAYS[self.way](x)
        return self.last(y + x).square().mean()


@torch.library.custom_op("fewstep_test::add_one", mutates_args={"x"})
def add_one(x: torch.Tensor) -> None:
    x.add_(1)


def without_gradient(x):
    with torch.no_grad():
        return x.add_(1)


def clamped(x):  # as the host's fp8 product does to its input
    with torch.no_grad():
        torch.add(x, 1, out=x)
    return x


def behind(x):
    x.data.add_(1)  # which no version counter sees
    return x


def inference(x):
    with torch.inference_mode():
        x.add_(1)
    return x


def custom(x):
    with torch.no_grad():
        add_one(x)
    return x


def sliced(x):
    x[:, 1:] += 1
    x[:, :1] += 1
    return x


WAYS = {
    "in place": lambda x: x.add_(1),
    "slices": sliced,
    "no_grad": without_gradient,
    "out=": clamped,
    "data": behind,
    "inference": inference,
    "custom operation": custom,
    "list": lambda x: (torch._foreach_add_([x.detach()], 1), x)[1],
}


def branching(checkpointing=False):
    net = Branching()
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    backward = Backward(net, net.parameters(), checkpointing)

    def call(way, count=3):
        net.way = way
        for p in net.parameters():
            p.grad = None
        backward(lambda: net(x[:count]))
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    return backward, call


@pytest.fixture
def looked(monkeypatch):
    """How many operations an `exact_graph` looked at, and how many saved tensors the hooks of places did."""
    count = {"operations": 0, "saves": 0}
    usual, save = _CopyOnWrite.__torch_dispatch__, overwrites._Checked.__init__

    def dispatch(self, *args, **kwargs):
        count["operations"] += 1
        return usual(self, *args, **kwargs)

    def init(self, *args, **kwargs):
        count["saves"] += 1
        save(self, *args, **kwargs)

    monkeypatch.setattr(_CopyOnWrite, "__torch_dispatch__", dispatch)
    monkeypatch.setattr(overwrites._Checked, "__init__", init)
    return count


def fresh(count):
    found = dict(count)
    count.update(operations=0, saves=0)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_is_seen_once_and_exact_ever_after(way, checkpointing, looked):
    wanted = branching()[1](None)
    backward, call = branching(checkpointing)
    for number in range(3):
        assert torch.allclose(call(way), wanted, rtol=1e-6, atol=1e-8), number
        found = fresh(looked)
        assert (found["operations"] > 0) == (number == 0)
        assert 0 < found["saves"] < 40 or number == 0
    assert backward.overwrites


def test_a_model_that_writes_over_nothing_is_left_alone_after_one_call(looked):
    backward, call = branching()
    wanted = call(None)
    assert fresh(looked)["operations"] > 0 and not backward.overwrites
    assert torch.equal(call(None), wanted) and fresh(looked) == {"operations": 0, "saves": 0}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_later_call_may_take_another_way(checkpointing, looked):
    """What was not seen before is noticed, seen, and known from then on; back and forth costs nothing."""
    plain, (backward, call) = branching()[1], branching(checkpointing)
    ways = [None, "in place", "slices", None, "out=", "in place", "slices", "no_grad", None, "list"]
    costs = []
    for way in ways + ways:
        for count in (3, 2):
            assert torch.allclose(call(way, count), plain(None, count), rtol=1e-6, atol=1e-8), way
        costs.append(fresh(looked)["operations"])
    assert costs[0] > 0 and costs[1] > 0 and not any(costs[len(ways) :]) and not backward.always


@pytest.mark.parametrize("checkpointing", [False, True])
def test_places_of_a_flux_are_exact_and_few(checkpointing, looked):
    net, parameters, compute = case(overwrite=True)
    backward, wanted = Backward(net, parameters, checkpointing), reference()[1]
    for number in range(3):
        for p in parameters:
            p.grad = None
        backward(compute)
        grad = torch.cat([p.grad.flatten() for p in parameters])
        assert (grad - wanted).norm() / wanted.norm() < 1e-6
        found = fresh(looked)
        assert number == 0 or not found["operations"]
    assert {type(m) for m in backward.places.found} <= {Flux, *map(type, net.modules()), type(None)}
    assert not any("forward" in m.__dict__ for m in net.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_call_that_fails_leaves_no_graph_behind(checkpointing):
    """As where memory runs out; without the collector of cycles, which does not see PyTorch's own."""
    _, parameters, compute = made = case(overwrite=True)
    backward = Backward(made[0], parameters, checkpointing)

    def failing():
        loss = compute()
        assert loss.requires_grad
        raise MemoryError

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):  # before anything was seen to be written over, and afterwards
            with LiveBytes() as live, pytest.raises(MemoryError):
                backward(failing)
            assert live.now == 0 < live.most
            backward(compute)
    finally:
        gc.enable()


def test_writes_outside_of_every_module_are_seen_too():
    line = nn.Linear(WIDTH, WIDTH)
    x = torch.randn(3, WIDTH)

    def compute(overwrite=True):
        y = line(x).exp()
        z = y.square()
        y = y.mul_(2) if overwrite else y * 2
        return (line(z) + y).mean()

    wanted = torch.autograd.grad(compute(False), line.weight)[0]
    backward = Backward(line, line.parameters())
    for _ in range(3):
        line.weight.grad = None
        backward(compute)
        assert torch.allclose(line.weight.grad, wanted, rtol=1e-6)
    assert set(backward.places.found) == {None}


def test_what_no_place_can_tell_is_looked_at_every_time(looked):
    """A model that writes elsewhere at every call."""

    class Wandering(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.calls = nn.Linear(WIDTH, WIDTH), 0

        def forward(self, x):
            self.calls += 1
            for _ in range(self.calls):  # the numbers of what is saved move on
                x = x * 1.01
            y = self.line(x)
            z = y.sin()
            y += 1
            return (z + y.square() * z).sum()

    net = Wandering()
    backward, x = Backward(net, net.parameters()), torch.randn(3, WIDTH)
    for number in range(6):
        copy, net.line.weight.grad = Wandering(), None
        copy.load_state_dict(net.state_dict())
        copy.calls = net.calls
        backward(lambda: net(x))
        count, net.calls = net.calls, copy.calls + 1
        inner = copy.line(x * 1.01**count)
        wanted = torch.autograd.grad(
            (inner.sin() + (inner + 1).square() * inner.sin()).sum(), copy.line.weight
        )
        assert torch.allclose(net.line.weight.grad, wanted[0], rtol=1e-4), number
