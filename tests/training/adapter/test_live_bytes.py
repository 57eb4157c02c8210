"""Bytes that operations take, followed storage by storage: by hand, beside PyTorch's own count at the CPU's
allocator, and without numbers.
"""

import copy

import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.adapter.live_bytes import LiveBytes
from fewstep.training.run.weighing import held, taken
from torch.profiler import ProfilerActivity, profile


def test_a_storage_counts_from_where_it_is_made_to_where_nothing_needs_it():
    w = torch.randn(100)
    with LiveBytes() as live:
        a = w * 2
        view = a[10:]
        assert live.now == 400
        b = view + 1
        assert live.now == 400 + 360
        del a, view
        assert live.now == 360
        w.add_(1)  # was there before
        b.mul_(2)  # writes where it is
        assert live.now == 360
        del b
    assert (live.now, live.most) == (0, 760)


def test_what_is_kept_counts_to_the_end_and_once_more_where_it_is_written_over():
    x = torch.randn(10)
    with LiveBytes() as live:
        a = x * 2
        live.keep(a)
        live.keep(a.view(2, 5)[:1])  # another part of the same storage
        del a
        assert live.now == 40
        b = x + 1
        live.keep(b)
        live.keep(b[:5])
        b.add_(1)  # copies of what was kept: the whole, and the part
        assert live.now == 40 + 40 + 60
        live.keep(x)  # was there before
        del b
    assert live.now == 40 + 60


def network(device="cpu"):
    """Layers that save their inputs, in blocks that can be recomputed."""
    with torch.device(device):
        blocks = [
            torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64))
            for _ in range(3)
        ]
        return torch.nn.Sequential(torch.nn.ModuleList(blocks)[0], *blocks[1:])


def ways(net, device="cpu"):
    """{(checkpointing, whether it was run): bytes} of a pass."""
    x = torch.ones(8, 64, device=device)

    def compute():
        return net(x).square().mean()

    parameters = list(net.parameters())
    out = {(c, True): taken(compute, Backward(net, parameters, c)).most for c in (False, True)}
    return {**out, (False, False): held(compute, Backward(net, parameters)).most}


def allocated(net, checkpointing):
    """The worst moment of a pass as PyTorch's profiler counts it."""
    x, backward = torch.ones(8, 64), Backward(net, net.parameters(), checkpointing)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        backward(lambda: net(x).square().mean())
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    for p in net.parameters():
        p.grad = None
    return most


def test_a_pass_takes_what_the_allocator_gives_and_the_same_without_numbers():
    net = network()
    found = ways(net)
    assert found[False, True] == allocated(net, False)
    states = 2 * torch.get_rng_state().nbytes  # of the dice, which no operation makes
    assert found[True, True] <= allocated(net, True) <= found[True, True] + states
    gradient = sum(p.nbytes for p in net.parameters())  # which a forward pass alone does not show
    assert found[False, False] <= found[False, True] <= found[False, False] + gradient
    assert ways(network("meta"), "meta") == found
    assert all(p.grad is None for p in net.parameters())


def test_a_pass_leaves_gradients_as_they_were():
    net = network()
    before = [torch.full_like(p, 3.0) for p in net.parameters()]
    for p, grad in zip(net.parameters(), copy.deepcopy(before)):
        p.grad = grad
    ways(net)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), before))


def test_a_convolution_holds_what_goes_into_it_once_more():
    net = torch.nn.Conv2d(64, 64, 3).requires_grad_(False)
    x = torch.ones(2, 64, 8, 8, requires_grad=True)
    found = taken(lambda: net(x).square().mean(), Backward(net, [x])).most
    weight = net.weight.nbytes
    assert weight < found < weight + 6 * x.nbytes
