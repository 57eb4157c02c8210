"""The one place where a field of a frozen dataclass may be set."""

import dataclasses

import pytest
from fewstep.diffusion.frozen import normalise


def test_a_frozen_dataclass_is_normalised_while_it_is_made():
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        parts: tuple

        def __post_init__(self):
            normalise(self, parts=tuple(self.parts))

    assert Frozen([1, 2]).parts == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Frozen([1]).parts = ()
