"""The shift of the training grid, which README and a tooltip name: 3 in all, a flow model's own included."""

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.schedules.grids import discrete_sigma, flow_sigma
from fewstep.training.methods.phases import usual_shift


@pytest.mark.parametrize("own, added", [(1.0, 3.0), (1.5, 2.0), (3.0, 1.0), (8.0, 1.0)])
def test_a_flow_models_own_shift_is_part_of_it(own, added):
    assert usual_shift(FLOW, flow_sigma(own)) == pytest.approx(added)


def test_an_epsilon_model_has_none_of_its_own():
    assert usual_shift(VARIANCE_EXPLODING, discrete_sigma(torch.linspace(0.03, 14.6, 1000))) == 3.0
