"""The average of an adapter that lies elsewhere: here on the CPU too, but brought as from a card."""

import pytest
import torch
from fewstep.training.run import average
from fewstep.training.run.average import Average


@pytest.mark.parametrize("group", [1, 20, 10**6])
def test_it_moves_the_same_in_groups_of_any_size(monkeypatch, group):
    monkeypatch.setattr(average, "GROUP", group)
    torch.manual_seed(0)
    parameters = [torch.randn(shape, requires_grad=True) for shape in ((3, 4), (5,), (2, 3, 2), (1,))]
    near, far = Average(parameters), Average(parameters)
    far._groups = average._groups(parameters)
    far._arrived = [torch.empty(sum(p.numel() for p in part)) for part in far._groups]
    assert sum(map(len, far._groups)) == 4 and len(far._groups) == {1: 4, 20: 2, 10**6: 1}[group]
    for weight in (0.9, 0.1, 0.015):
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn_like(p))
        for one in (near, far):
            one.follow(weight)
        assert all(torch.equal(a, b) for a, b in zip(near.values, far.values))
    assert near.values is near.values and not any(v.requires_grad for v in near.values)
    near.close(), far.close()
