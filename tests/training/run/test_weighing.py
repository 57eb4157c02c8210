"""What a pass takes for any number of samples, told from one, two and three."""

from types import SimpleNamespace

import pytest
import torch
from fewstep.training.adapter.backward import Backward
from fewstep.training.run.weighing import NEVER, Pass, asked, held, passed, taken


def test_without_moments_every_sample_takes_what_the_second_did():
    assert [Pass(10, 14).bytes(n) for n in (1, 2, 3, 6)] == [10, 14, 18, 30]
    assert [Pass(100, 130).bytes(n) for n in (1, 2, 5)] == [100, 130, 220]
    assert Pass(100, 90).bytes(3) == 100  # no less for more


def way(moments, most=NEVER):
    """A pass of those moments, functions of the number of samples, that finds memory for `most`."""

    def run(samples):
        if samples > most:
            raise torch.OutOfMemoryError("Allocation on device ")
        values = [moment(samples) for moment in moments]
        return SimpleNamespace(moments=values, most=max(values))

    return run


MOMENTS = [lambda n: 1000, lambda n: 300 + 100 * n, lambda n: 250 * n, lambda n: 90 * n - 60]


def test_the_worst_moment_of_many_samples_is_found_among_those_of_few():
    found = passed(way(MOMENTS), lambda samples: samples, 3)
    for n in range(1, 65):
        assert found.bytes(n) == max(moment(n) for moment in MOMENTS)
    assert len(found.moments) == 2  # of the others none is ever the worst


def test_passes_that_went_different_ways_are_told_by_their_peaks():
    def run(samples):
        return way(MOMENTS[: 5 - samples])(samples)

    found = passed(run, lambda samples: samples, 3)
    assert [found.bytes(n) for n in (1, 2, 3, 4)] == [1000, 1000, 1000, 1000]


@pytest.mark.parametrize("room, most", [(1, 8), (2, 8), (8, 1), (8, 2)])
def test_more_than_found_memory_or_were_asked_for_are_never_wanted(room, most):
    found = passed(way(MOMENTS, room), lambda samples: samples, most)
    known = min(room, most)
    assert [found.bytes(n) < NEVER for n in (1, 2, 3, 4)] == [True, known > 1, False, False]


def test_other_errors_are_no_lack_of_memory():
    def run(samples):
        if samples > 1:
            raise ValueError("shapes differ")
        return way(MOMENTS)(samples)

    with pytest.raises(ValueError, match="shapes differ"):
        passed(run, lambda samples: samples, 2)


class Modulated(torch.nn.Module):
    """A large weight, cast at each call, on few numbers; a small one on many. The first is the worst of few
    samples, the second of many.
    """

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(64, 4096, dtype=torch.bfloat16)
        self.layer = torch.nn.Linear(64, 64)
        self.requires_grad_(False)

    def forward(self, x):
        few = x.detach().mean(1, keepdim=True)
        gate = torch.nn.functional.linear(few, self.wide.weight.float())[..., :64].clone()
        return self.layer(torch.cat([x * gate] * 4, 1).tanh())


@pytest.mark.parametrize("name", ["taken", "held", "asked"])
def test_what_a_pass_of_many_takes_is_told_from_three(name):
    net, bias = Modulated(), torch.zeros(64, requires_grad=True)
    backward = Backward(net, [bias])

    def loss(samples):
        x = torch.ones(samples, 64, 64)
        return lambda: net(x + bias).square().mean()

    def way(compute):
        return asked(compute) if name == "asked" else {"taken": taken, "held": held}[name](compute, backward)

    found = passed(way, loss, 3)
    assert [found.bytes(n) for n in (1, 2, 3, 9, 40)] == [way(loss(n)).most for n in (1, 2, 3, 9, 40)]
    assert Pass(found.one, found.two).bytes(40) < 0.8 * found.bytes(40)  # a line would say too little
