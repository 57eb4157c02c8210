"""Loss weightings, held to the conversions, to change of variables of the training noise, and to the
literature's identities.
"""

import math

import pytest
import torch
from fewstep.diffusion import weightings as w
from fewstep.diffusion.destruction import noise_schedules
from fewstep.diffusion.paths import PATHS, VARIANCE_PRESERVING
from fewstep.diffusion.predictions import KINDS, from_x0

LAMBDA = torch.linspace(-6, 6, 241, dtype=torch.float64)
DENSITIES = {
    "cosine": w.cosine_density,
    "uniform flow": w.uniform_flow_density,
    "logit-normal": w.logit_normal_density,
    "EDM": w.edm_density,
}


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def normal(x, mean, std):
    return torch.distributions.Normal(number(mean), number(std)).log_prob(x).exp()


@pytest.mark.parametrize("path", PATHS.values(), ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_factor_is_the_ratio_of_the_squared_errors(path, kind, sigma_data):
    """One wrong x_0 at one x, through the conversions themselves."""
    lam = torch.linspace(-3, 3, 25, dtype=torch.float64)
    sigma = path.sigma(lam)
    alpha, x0, wrong = (
        path.alpha(sigma),
        torch.tensor(0.3, dtype=torch.float64),
        torch.tensor(1.1, dtype=torch.float64),
    )
    x = alpha * x0 - 0.7 * sigma

    def squared(kind):
        ends = [from_x0(v, kind, x, alpha, sigma, sigma_data=sigma_data) for v in (x0, wrong)]
        return (ends[0] - ends[1]).square()

    assert torch.allclose(
        w.mse_factor(kind, lam, path, sigma_data), (squared(kind) / squared("epsilon")).expand(25), rtol=1e-9
    )


def test_factors_are_accurate_where_alpha_or_sigma_underflow():
    lam = torch.tensor([-30.0, 30.0], dtype=torch.float64)
    assert torch.allclose(w.mse_factor("v", lam), torch.exp(-2 * lam) + 1, rtol=1e-12)
    assert torch.allclose(w.mse_factor("score", lam), torch.exp(2 * lam) + 1, rtol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", DENSITIES)
def test_density_is_that_of_the_noise_as_it_is_drawn(name, shift):
    """p(lambda) = p(t) |dt/dlambda|, t drawn as the paper says and turned into lambda by automatic
    differentiation.
    """
    lam = LAMBDA.clone().requires_grad_()
    before = torch.exp(-lam) / shift  # sigma/alpha before the shift
    if name == "EDM":
        t, law = before, torch.distributions.LogNormal(number(-1.2), number(1.2))
    elif name == "cosine":
        t, law = torch.atan(before) * 2 / math.pi, None
    elif name == "logit-normal":
        t = before / (1 + before)
        law = torch.distributions.TransformedDistribution(
            torch.distributions.Normal(number(0.4), number(1.5)), torch.distributions.SigmoidTransform()
        )
    else:
        t, law = before / (1 + before), None
    (slope,) = torch.autograd.grad(t.sum(), lam)
    t = t.detach()
    wanted = slope.abs() * (law.log_prob(t).exp() if law else 1)
    options = {"mean": 0.4, "std": 1.5} if name == "logit-normal" else {}
    assert torch.allclose(DENSITIES[name](LAMBDA, shift=shift, **options), wanted, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name, shift):
    lam = torch.linspace(-45, 45, 9001, dtype=torch.float64)
    assert abs(float(torch.trapezoid(DENSITIES[name](lam, shift=shift), lam)) - 1) < 1e-9


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_flow_density_is_the_time_of_the_flow_process(shift):
    process = noise_schedules.flow(shift)
    step = 1e-5
    slope = (process.time(LAMBDA - step) - process.time(LAMBDA + step)) / (2 * step)
    assert torch.allclose(w.uniform_flow_density(LAMBDA, shift), slope, rtol=1e-6)


def test_flow_matching_is_v_mse_with_cosine_noise():
    """Kingma & Gao 2023; Gao et al. 2024: both are e^-lambda, that is e^(-l/2)."""
    assert torch.allclose(w.weighting("flow matching", LAMBDA), torch.exp(-LAMBDA), rtol=1e-12)
    ratio = w.weighting("v-MSE + cosine", LAMBDA) / w.weighting("flow matching", LAMBDA)
    assert torch.allclose(ratio, torch.full_like(ratio, 2 / math.pi), rtol=1e-12)


def test_edm_is_what_kingma_and_gao_print():
    """w(l) = N(l; 2.4, 2.4^2) (e^-l + 0.25) with l = 2 lambda."""
    log_snr = 2 * LAMBDA
    ratio = w.weighting("EDM", LAMBDA) / (normal(log_snr, 2.4, 2.4) * (torch.exp(-log_snr) + 0.25))
    assert torch.allclose(ratio, torch.full_like(ratio, 8.0), rtol=1e-12)  # 2 from dl, 4 from 1/sigma_data^2


def test_edm_is_its_own_training_loss():
    """lambda(sigma) |D - x_0|^2 under log-normal sigma, weight (sigma^2 + d^2) / (sigma d)^2 (Karras et al.
    2022, table 1).
    """
    sigma = torch.exp(-LAMBDA)
    loss_weight = (sigma.square() + 0.25) / (0.5 * sigma).square()
    wanted = (
        normal(sigma.log(), -1.2, 1.2) * loss_weight * sigma.square()
    )  # |D - x_0|^2 = sigma^2 |eps error|^2
    assert torch.allclose(w.weighting("EDM", LAMBDA), wanted, rtol=1e-12)


def test_iddpm_is_sech():
    """w(l) proportional to sech(l/2) (Kingma & Gao 2023, table 1)."""
    ratio = w.weighting("eps-MSE", LAMBDA) * torch.cosh(LAMBDA)
    assert torch.allclose(ratio, torch.full_like(ratio, 1 / math.pi), rtol=1e-12)
    assert torch.allclose(
        w.weighting("x0-MSE", LAMBDA), torch.exp(-2 * LAMBDA) * w.weighting("eps-MSE", LAMBDA), rtol=1e-12
    )


@pytest.mark.parametrize("mean, std, shift", [(0.0, 1.0, 1.0), (0.5, 0.6, 1.0), (-0.5, 1.4, 3.0)])
def test_sd3_is_a_normal_over_lambda(mean, std, shift):
    wanted = normal(LAMBDA, -mean - math.log(shift), std) * (1 + torch.exp(-LAMBDA)).square()
    assert torch.allclose(
        w.WEIGHTINGS["SD3 logit-normal"](LAMBDA, mean=mean, std=std, shift=shift), wanted, rtol=1e-12
    )


def test_sigmoid_is_half_at_its_bias_and_falls_to_either_side():
    assert float(w.WEIGHTINGS["sigmoid"](1.5, bias=3.0)) == 0.5
    values = w.WEIGHTINGS["sigmoid"](LAMBDA, bias=-2.0)
    assert (
        torch.allclose(values, 1 / (1 + torch.exp(2 * LAMBDA + 2)), rtol=1e-12) and (values.diff() < 0).all()
    )


def test_min_snr_clips_the_x0_loss():
    snr = torch.exp(2 * LAMBDA)
    wanted = snr.clamp_max(5) * w.weighting("x0-MSE", LAMBDA)
    assert torch.allclose(w.weighting("min-SNR", LAMBDA), wanted, rtol=1e-12)
    assert torch.allclose(
        w.WEIGHTINGS["min-SNR"](LAMBDA, gamma=1e9), w.weighting("eps-MSE", LAMBDA), rtol=1e-12
    )


def test_weighting_does_not_depend_on_how_noise_is_drawn(generator):
    """A loss by Monte Carlo over SD3's noise, on velocities, is the integral of w times the error of eps."""
    path = VARIANCE_PRESERVING

    def eps_error(lam):
        return 1 / (1 + torch.exp(lam - 0.5)).square()

    logit_t = 0.3 + 0.8 * torch.randn(2_000_000, generator=generator, dtype=torch.float64)
    drawn = (eps_error(-logit_t) * w.mse_factor("velocity", -logit_t, path)).mean()
    lam = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    integral = torch.trapezoid(w.sd3_logit_normal(lam, 0.3, 0.8) * eps_error(lam), lam)
    assert abs(float(drawn / integral) - 1) < 0.01


@pytest.mark.parametrize("name", w.WEIGHTINGS)
def test_weightings_are_positive_float64_of_lambdas_shape(name):
    out = w.weighting(name, LAMBDA.float().reshape(1, -1))
    assert (
        out.dtype == torch.float64 and out.shape == (1, 241) and (out > 0).all() and torch.isfinite(out).all()
    )


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda: w.weighting("P2", 0.0), "weighting must be one of .*got 'P2'"),
        (lambda: w.mse_factor("flow", 0.0), "kind must be one of"),
        (lambda: w.min_snr(0.0, gamma=0), "gamma must be above 0"),
        (lambda: w.flow_matching(0.0, shift=-1), "shift must be above 0"),
        (lambda: w.sd3_logit_normal(0.0, std=0.0), "std must be above 0"),
        (lambda: w.edm(0.0, p_std=0.0), "p_std must be above 0"),
    ],
)
def test_bad_options_are_refused(call, why):
    with pytest.raises(ValueError, match=f"^{why}"):
        call()
