"""Churn conversions, held to the familiar steps written out in their own terms."""

import math

import pytest
import torch
from fewstep.diffusion.destruction.noise_schedules import vp_scaled_linear
from fewstep.diffusion.moves import raised
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.step import fresh_share, step, weights
from oracles import churn as c
from oracles.sde import sde

STEPS = {"variance exploding": (20.0, 5.0), "flow": (0.9, 0.6), "variance preserving": (0.95, 0.7)}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=str)


@pytest.fixture
def draws(generator):
    """x, the predicted x_0 and fresh noise."""
    return [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def ours(draws, path, t, s, churn):
    x, x0, z = draws
    return step(x, x0, path, t, s, fresh_share(float(churn), path, t, s), z)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.1])
def test_ddim_eta_is_that_of_diffusers(eta, draws):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(clip_sample=False, prediction_type="sample", timestep_spacing="trailing")
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.set_timesteps(8)
    t, s = int(theirs.timesteps[3]), int(theirs.timesteps[4])
    levels = [(1 - theirs.alphas_cumprod[i]).sqrt() for i in (t, s)]
    x, x0, z = draws
    wanted = theirs.step(x0, t, x, eta=eta, variance_noise=z).prev_sample
    churn = c.ddim_eta_to_churn(eta, c.lambda_step(VARIANCE_PRESERVING, *levels))
    assert torch.allclose(ours(draws, VARIANCE_PRESERVING, *levels, churn), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.02, 1.5])
def test_ancestral_eta_where_variance_explodes(eta, draws):
    """k-diffusion's ancestral Euler step, its clip included."""
    t, s = 20.0, 5.0
    x, x0, z = draws
    up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
    down = math.sqrt(s**2 - up**2)
    wanted = x + (x - x0) / t * (down - t) + up * z
    churn = c.ddim_eta_to_churn(eta, c.lambda_step(VARIANCE_EXPLODING, t, s))
    assert torch.allclose(ours(draws, VARIANCE_EXPLODING, t, s, churn), wanted, rtol=1e-12, atol=1e-12)
    assert bool(churn.isinf()) == (eta == 1.5)


@every_path
def test_eta_1_is_churn_1_on_every_path(path):
    h = c.lambda_step(path, *STEPS[path.name])
    assert math.isclose(c.ddim_eta_to_churn(1.0, h), 1.0, rel_tol=1e-12)
    assert math.isclose(c.churn_to_ddim_eta(1.0, h), 1.0, rel_tol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 2.5])
def test_flow_eta_is_the_rectified_flow_ancestral_step(eta, draws):
    """Euler to sigma_d, then scaled to the signal of sigma_s and noised back."""
    t, s = 0.9, 0.6
    x, x0, z = draws
    d = s * (1 + (s / t - 1) * eta)
    down = x * (d / t) + (1 - d / t) * x0
    back = (1 - s) / (1 - d)
    wanted = back * down + z * math.sqrt(s**2 - (d * back) ** 2)
    churn = c.flow_eta_to_churn(eta, t, s)
    assert torch.allclose(ours(draws, FLOW, t, s, churn), wanted, rtol=1e-12, atol=1e-12)
    assert math.isclose(c.churn_to_flow_eta(churn, t, s), eta, rel_tol=1e-12, abs_tol=1e-12)


def test_flow_eta_1_is_not_churn_1():
    """Median c of about 0.75 over 8 uniform steps, against exactly 1 of the DDPM step."""
    levels = torch.linspace(1, 0, 9, dtype=torch.float64)[1:-1]
    churn = c.flow_eta_to_churn(1.0, levels[:-1], levels[1:])
    assert (churn < 0.95).all() and abs(float(churn.median()) - 0.75) < 0.05
    assert c.flow_eta_to_churn(3.0, 0.9, 0.6).isinf() and math.isclose(
        c.churn_to_flow_eta(math.inf, 0.9, 0.6), 3, rel_tol=1e-12
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_tcd_gamma_is_that_of_diffusers(gamma, draws):
    """Its table and its rounded times; gamma = 1 goes down to entry 0, not to data."""
    from diffusers import TCDScheduler

    theirs = TCDScheduler(prediction_type="sample")
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.set_timesteps(4)
    t, s = int(theirs.timesteps[1]), int(theirs.timesteps[2])
    table = (1 - theirs.alphas_cumprod).sqrt()
    x, x0, z = draws
    down = table[math.floor((1 - gamma) * s)]
    churn = c.overshoot_to_churn(VARIANCE_PRESERVING, table[t], table[s], down)
    by_gamma = c.tcd_gamma_to_churn(
        VARIANCE_PRESERVING,
        table[t],
        table[s],
        gamma,
        lambda sigma: (table - sigma).abs().argmin(),
        lambda time: table[int(time.floor())],
    )
    assert churn == by_gamma
    theirs._init_step_index(theirs.timesteps[1])
    rng = torch.Generator().manual_seed(3)
    wanted = theirs.step(x0, t, x, eta=gamma, generator=rng).prev_sample
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    assert torch.allclose(
        ours((x, x0, z), VARIANCE_PRESERVING, table[t], table[s], churn), wanted, rtol=1e-10, atol=1e-10
    )


@every_path
@pytest.mark.parametrize("churn", [0.3, 1.0, 4.0])
def test_overshoot_is_a_plain_step_and_noise(path, churn, draws):
    t, s = (number(v) for v in STEPS[path.name])
    x, x0, z = draws
    d = c.churn_to_overshoot(path, t, s, churn)
    back = path.alpha(s) / path.alpha(d)
    wanted = back * step(x, x0, path, t, d) + (s.square() - (back * d).square()).clamp_min(0).sqrt() * z
    assert torch.allclose(ours(draws, path, t, s, churn), wanted, rtol=1e-10, atol=1e-10)
    assert math.isclose(c.overshoot_to_churn(path, t, s, d), churn, rel_tol=1e-9)
    assert (
        torch.allclose(c.churn_to_overshoot(path, t, s, 0.0), s, rtol=1e-14)
        and c.overshoot_to_churn(path, t, s, s) == 0
    )


@every_path
@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_edm_gamma_raises_the_noise_as_the_sampler_does(path, churn):
    t, s = STEPS[path.name]
    gamma = c.churn_to_edm_gamma(churn, c.lambda_step(path, t, s))
    up = number(raised(path, t, s, churn, math.inf))
    assert torch.allclose(up / path.alpha(up), (1 + gamma) * number(t) / path.alpha(number(t)), rtol=1e-12)


@every_path
def test_kappa_is_the_steps_share_of_fresh_noise(path):
    t, s = STEPS[path.name]
    h = c.lambda_step(path, t, s)
    for churn in (0.0, 0.2, 1.0, 3.0, math.inf):
        kappa = c.churn_to_kappa(churn, h)
        assert math.isclose(kappa, fresh_share(churn, path, t, s), rel_tol=1e-12)
        assert math.isclose(weights(path, t, s, kappa)[2], s * kappa, rel_tol=1e-12)
    assert c.kappa_to_churn(1.0, h).isinf() and c.kappa_to_churn(0.0, h) == 0


@pytest.mark.parametrize(
    "there, back",
    [
        (c.kappa_to_churn, c.churn_to_kappa),
        (c.ddim_eta_to_churn, c.churn_to_ddim_eta),
        (c.edm_gamma_to_churn, c.churn_to_edm_gamma),
    ],
)
@pytest.mark.parametrize("h", [0.05, 0.7, 3.0])
def test_knobs_convert_there_and_back(there, back, h):
    knob = torch.tensor([0.0, 0.1, 0.5, 0.99], dtype=torch.float64)
    assert torch.allclose(back(there(knob, h), h), knob, rtol=1e-10, atol=1e-15)
    churn = torch.tensor([0.0, 0.2, 1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(there(back(churn, h), h), churn, rtol=1e-9, atol=1e-15)


def test_tcd_gamma_converts_there_and_back_on_a_time_that_is_not_rounded():
    process = vp_scaled_linear()
    time_of = lambda sigma: process.time(VARIANCE_PRESERVING.log_snr(sigma))
    gamma = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    churn = c.tcd_gamma_to_churn(VARIANCE_PRESERVING, 0.95, 0.7, gamma, time_of, process.sigma)
    assert torch.allclose(
        c.churn_to_tcd_gamma(VARIANCE_PRESERVING, 0.95, 0.7, churn, time_of), gamma, rtol=1e-9, atol=1e-9
    )
    assert churn[0] < 1e-9 and (churn.diff() > 0).all()
    quarters = process.sigma([1.0, 0.75, 0.5, 0.25])  # 4 steps of Stable Diffusion: 0.66, 0.53, 0.36
    steps = c.tcd_gamma_to_churn(
        VARIANCE_PRESERVING, quarters[:-1], quarters[1:], 0.3, time_of, process.sigma
    )
    assert torch.allclose(steps, torch.tensor([0.66, 0.53, 0.36], dtype=torch.float64), rtol=0, atol=0.005)
    assert c.tcd_gamma_to_churn(VARIANCE_PRESERVING, 0.95, 0.7, 1.0, time_of, process.sigma).isinf()


def test_continuous_eta_squared_is_churn():
    """g^2 eta^2 dt of the reverse SDE is kappa^2 sigma^2 of a short step with c = eta^2."""
    equation, eta, t, dt = sde("flow"), 0.6, 0.5, 1e-6
    sigma_t, sigma_s = equation.schedule.sigma(t), equation.schedule.sigma(t - dt)
    kappa = c.churn_to_kappa(eta**2, c.lambda_step(FLOW, sigma_t, sigma_s))
    assert math.isclose((kappa * sigma_s) ** 2, eta**2 * equation.g2(torch.tensor(t)) * dt, rel_tol=1e-5)


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda: c.lambda_step(FLOW, 1.0, 0.5), "h must be above 0 and finite, got inf"),
        (lambda: c.lambda_step(FLOW, 0.5, 0.0), "h must be above 0 and finite"),
        (lambda: c.flow_eta_to_churn(1.0, 0.5, 0.7), "h must be above 0"),
        (lambda: c.flow_eta_to_churn(3.1, 0.9, 0.6), "eta must be between 0 and 3, got 3.1"),
        (lambda: c.kappa_to_churn(1.2, 1.0), "kappa must be between 0 and 1, got 1.2"),
        (lambda: c.churn_to_kappa(-1.0, 1.0), "churn must be 0 or more"),
        (lambda: c.churn_to_kappa(math.nan, 1.0), "churn must be"),
        (lambda: c.ddim_eta_to_churn(-0.1, 1.0), "eta must be 0 or more"),
        (lambda: c.edm_gamma_to_churn(-0.1, 1.0), "gamma must be 0"),
        (lambda: c.tcd_gamma_to_churn(FLOW, 0.9, 0.6, 1.5, None, None), "gamma must be between 0 and 1"),
        (
            lambda: c.overshoot_to_churn(FLOW, 0.9, 0.6, 0.7),
            "sigma_d must be between 0 and sigma_s = 0.6, got 0.7",
        ),
    ],
)
def test_what_has_no_churn_is_refused(call, why):
    with pytest.raises(ValueError, match=f"^{why}"):
        call()
