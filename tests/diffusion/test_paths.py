"""Paths and predictions."""

import pytest
import torch
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING, VARIANCE_PRESERVING, check_sigmas, path
from fewstep.diffusion.predictions import KINDS, expand, from_x0, to_x0
from fewstep.diffusion.schedules import grids

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
    edm = (x0 - 0.25 / ((s / a) ** 2 + 0.25) * x / a) / (0.5 * s / a / ((s / a) ** 2 + 0.25).sqrt())
    truth = {
        "x0": x0,
        "epsilon": eps,
        "v": a * eps - s * x0,
        "velocity": eps - x0,
        "score": -eps / s,
        "edm": edm,
    }[kind]
    assert torch.allclose(from_x0(x0, kind, x, a, s), truth, atol=1e-12)
    assert torch.allclose(to_x0(truth, kind, x, a, s), x0, atol=1e-10)


def test_velocity_and_v_are_defined_on_pure_noise(generator):
    x0, eps = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert torch.allclose(to_x0(eps - x0, "velocity", eps, zero, one), x0)
    assert torch.allclose(to_x0(-x0, "v", eps, zero, one), x0)


def test_edm_is_that_of_diffusers_and_finite_on_pure_noise(generator):
    from diffusers import EDMEulerScheduler

    x, output = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    one = torch.ones((), dtype=torch.float64)
    for sigma in (0.01, 1.0, 80.0):
        theirs = EDMEulerScheduler(sigma_data=0.3).precondition_outputs(
            x, output, torch.tensor(sigma, dtype=torch.float64)
        )
        ours = to_x0(output, "edm", x, one, sigma * one, sigma_data=0.3)
        assert torch.allclose(ours, theirs, rtol=1e-12)
        assert torch.allclose(from_x0(ours, "edm", x, one, sigma * one, sigma_data=0.3), output, atol=1e-9)
    assert torch.equal(to_x0(output, "edm", x, 0 * one, one), 0.5 * output)


def test_edm_with_unit_data_is_minus_v_where_variance_is_preserved(generator):
    x, v = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a, s = torch.tensor([0.8, 0.6], dtype=torch.float64)
    assert torch.allclose(to_x0(-v, "edm", x, a, s, sigma_data=1.0), to_x0(v, "v", x, a, s), rtol=1e-12)


@pytest.mark.parametrize("p", PATHS.values(), ids=str)
def test_score_is_the_gradient_of_the_log_density(p, generator):
    x0, x = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    s = torch.tensor(0.4, dtype=torch.float64)
    x.requires_grad_()
    log = torch.distributions.Normal(p.alpha(s) * x0, s).log_prob(x)
    (score,) = torch.autograd.grad(log.sum(), x)
    assert torch.allclose(from_x0(x0, "score", x, p.alpha(s), s), score, rtol=1e-12)
    assert torch.allclose(to_x0(score, "score", x, p.alpha(s), s), x0, rtol=1e-10)


def test_unknown_kinds_are_refused():
    for convert in (to_x0, from_x0):
        with pytest.raises(ValueError, match="kind must be one of x0, .*edm, got 'flow'"):
            convert(torch.zeros(1), "flow", torch.zeros(1), torch.ones(()), torch.ones(()))


@pytest.mark.parametrize(
    "bad, why",
    [
        ([1.0], "two"),
        ([], "two"),
        ([1.0, float("nan"), 0.0], "finite"),
        ([0.5, 0.8, 0.0], "descend"),
        ([0.5, 0.5, 0.0], "descend"),
        ([0.5, -0.1], "negative"),
        ([2.0, 0.0], "start at 1 or below"),
        ([[1.0, 0.0]], "one row"),
    ],
)
def test_sigmas_that_are_no_grid_are_refused(bad, why):
    with pytest.raises(ValueError, match=f"sigmas must .*{why}"):
        check_sigmas(bad, FLOW)
