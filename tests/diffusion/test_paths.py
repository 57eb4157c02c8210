"""Paths, predictions and step grids."""

import math

import pytest
import torch
from fewstep.diffusion import grids
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING, VARIANCE_PRESERVING, check_sigmas, path
from fewstep.diffusion.predictions import KINDS, expand, from_x0, to_x0

DISCRETE = grids.discrete_sigma(torch.linspace(0.03, 14.6, 1000, dtype=torch.float64))


@pytest.mark.parametrize("p", PATHS.values(), ids=str)
def test_sigma_inverts_log_snr(p):
    sigma = torch.tensor([1e-3, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    assert torch.allclose(p.sigma(p.log_snr(sigma)), sigma, rtol=1e-10)


def test_paths_are_what_their_names_say():
    sigma = torch.tensor([0.0, 0.6, 1.0], dtype=torch.float64)
    assert VARIANCE_EXPLODING.alpha(sigma).tolist() == [1, 1, 1]
    assert torch.allclose(FLOW.alpha(sigma), torch.tensor([1, 0.4, 0.0], dtype=torch.float64))
    assert torch.allclose(VARIANCE_PRESERVING.alpha(sigma), torch.tensor([1, 0.8, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="path must be one of .*got 'vp'"):
        path("vp")


@pytest.mark.parametrize("p", PATHS.values(), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_convert_there_and_back(p, kind, generator):
    x0, eps = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.01, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
    a, s = expand(p.alpha(sigma), x0), expand(sigma, x0)
    x = a * x0 + s * eps
    truth = {"x0": x0, "epsilon": eps, "v": a * eps - s * x0, "velocity": eps - x0}[kind]
    assert torch.allclose(from_x0(x0, kind, x, a, s), truth, atol=1e-12)
    assert torch.allclose(to_x0(truth, kind, x, a, s), x0, atol=1e-10)


def test_velocity_and_v_are_defined_on_pure_noise(generator):
    x0, eps = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert torch.allclose(to_x0(eps - x0, "velocity", eps, zero, one), x0)
    assert torch.allclose(to_x0(-x0, "v", eps, zero, one), x0)


@pytest.mark.parametrize("name", grids.NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50])
@pytest.mark.parametrize("model", ["flow 1", "flow 3", "discrete"])
@pytest.mark.parametrize("denoise", [1.0, 0.5, 0.01])
def test_grids_have_their_steps_and_descend_from_the_largest_level_to_0(name, steps, model, denoise):
    sigma_of, p = {"flow 1": (grids.flow_sigma(), FLOW), "flow 3": (grids.flow_sigma(3.0), FLOW),
                   "discrete": (DISCRETE, VARIANCE_EXPLODING)}[model]
    sigmas = grids.grid(name, steps, sigma_of, p, denoise)
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    assert torch.equal(sigmas, check_sigmas(sigmas.float().double() * 0 + sigmas, p))
    assert math.isclose(sigmas[0], float(sigma_of(torch.tensor([denoise], dtype=torch.float64))), rel_tol=1e-12)
    assert (sigmas.float().diff() < 0).all()


def test_uniform_grid_is_the_trailing_one():
    assert torch.allclose(grids.grid("uniform", 4, grids.flow_sigma(), FLOW), torch.tensor([1, 0.75, 0.5, 0.25, 0.0]).double())
    shifted = grids.grid("uniform", 4, grids.flow_sigma(3.0), FLOW)
    assert torch.allclose(shifted[1], torch.tensor(3 * 0.75 / (1 + 2 * 0.75)).double())


def test_karras_grid_is_karras():
    from diffusers import EulerDiscreteScheduler

    sigmas = grids.grid("karras", 8, DISCRETE, VARIANCE_EXPLODING)
    theirs = EulerDiscreteScheduler()._convert_to_karras(in_sigmas=torch.tensor([sigmas[0], sigmas[-2]]), num_inference_steps=8)
    assert torch.allclose(sigmas[:-1], torch.as_tensor(theirs).double(), rtol=1e-5)


@pytest.mark.parametrize("steps, denoise, name", [(0, 1, "uniform"), (-1, 1, "uniform"), (2.5, 1, "uniform"), (4, 0, "uniform"),
                                                  (4, 1.5, "uniform"), (4, 1, "nope")])
def test_bad_grids_are_refused_by_name(steps, denoise, name):
    wrong = "schedule" if name == "nope" else "denoise" if denoise not in (1,) else "steps"
    with pytest.raises(ValueError, match=f"^{wrong} must"):
        grids.grid(name, steps, DISCRETE, VARIANCE_EXPLODING, denoise)


@pytest.mark.parametrize("bad, why", [
    ([1.0], "two"), ([], "two"), ([1.0, float("nan"), 0.0], "finite"), ([0.5, 0.8, 0.0], "descend"), ([0.5, 0.5, 0.0], "descend"),
    ([0.5, -0.1], "negative"), ([2.0, 0.0], "start at 1 or below"), ([[1.0, 0.0]], "one row")])
def test_sigmas_that_are_no_grid_are_refused(bad, why):
    with pytest.raises(ValueError, match=f"sigmas must .*{why}"):
        check_sigmas(bad, FLOW)


def test_shifted_time_is_the_flow_models_shift():
    plain = grids.grid("uniform", 4, grids.shifted(grids.flow_sigma(), 3.0), FLOW)
    assert torch.equal(plain, grids.grid("uniform", 4, grids.flow_sigma(3.0), FLOW))
    assert torch.allclose(plain, torch.tensor([1, 0.9, 0.75, 0.5, 0]).double())
