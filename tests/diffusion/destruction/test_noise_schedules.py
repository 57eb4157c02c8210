"""Noise schedules, held to their SDEs, to diffusers' tables and to the paths and grids of the samplers."""

import math

import pytest
import torch
from fewstep.diffusion.destruction import noise_schedules
from fewstep.diffusion.destruction.noise_schedules import SCHEDULES
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.schedules import grids
from oracles.sde import sde, to_diffusion_view, to_flow_view

ALL = [
    *((name, {}) for name in SCHEDULES),
    ("flow", {"shift": 3.0}),
    ("flow", {"shift": 0.4}),
    ("VP linear", {"beta_min": 2.0, "beta_max": 2.0}),
    ("VE", {"sigma_min": 0.1, "sigma_max": 3.0}),
]
IDS = [name + "".join(f" {k}={v:g}" for k, v in options.items()) for name, options in ALL]
TABLES = {"VP linear discrete": "linear", "VP scaled linear": "scaled_linear"}
every = pytest.mark.parametrize("name, options", ALL, ids=IDS)


def inner_times(process, count=41):
    """Times inside (0, t_max), halfway between the entries of a table of 1000, where its slopes jump."""
    t = torch.linspace(0.002, 0.987, count, dtype=torch.float64)
    return process.t_max * ((1000 * t).floor() + 0.5) / 1000


@every
def test_f_is_the_slope_of_log_alpha_and_g2_of_lambda(name, options):
    """Against automatic differentiation of alpha and lambda themselves."""
    equation = sde(name, **options)
    process = equation.schedule
    t = inner_times(process).requires_grad_()
    slopes = [
        torch.autograd.grad(value(t).sum(), t, allow_unused=True)[0]
        for value in (lambda t: process.alpha(t).log() + 0 * t, process.log_snr)
    ]
    t = t.detach()
    assert torch.allclose(equation.f(t), slopes[0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(equation.g2(t), -2 * process.sigma(t).square() * slopes[1], rtol=1e-9, atol=1e-12)


@every
@pytest.mark.parametrize("variance", [0.0, 0.25, 4.0])
def test_sde_has_the_marginals(name, options, variance):
    """The variance of dx = f x dt + g dw obeys dV/dt = 2 f V + g^2; V = alpha^2 v + sigma^2 by central
    differences.
    """
    equation = sde(name, **options)
    process = equation.schedule
    t, step = inner_times(process), 1e-5 * process.t_max

    def total(t):
        return process.alpha(t).square() * variance + process.sigma(t).square()

    slope = (total(t + step) - total(t - step)) / (2 * step)
    wanted = 2 * equation.f(t) * total(t) + equation.g2(t)
    scale = (2 * equation.f(t) * total(t)).abs() + equation.g2(t)
    assert ((slope - wanted) / scale).abs().max() < 1e-5


@every
def test_time_inverts_log_snr(name, options):
    process = SCHEDULES[name](**options)
    t = process.t_max * torch.cat(
        [torch.logspace(-6, -1, 11, dtype=torch.float64), torch.linspace(0.1, 0.999, 50).double()]
    )
    assert ((process.time(process.log_snr(t)) - t) / t).abs().max() < 1e-9
    assert process.time(process.log_snr(t).reshape(1, -1)).shape == (1, len(t))
    back = process.log_snr(process.time(process.log_snr(t)))
    assert torch.allclose(back, process.log_snr(t), rtol=1e-12, atol=1e-11)


@every
def test_ends(name, options):
    equation = sde(name, **options)
    process = equation.schedule
    assert process.alpha(0.0) == 1
    assert math.isclose(
        process.sigma(0.0), options.get("sigma_min", 0.01) if name == "VE" else 0, rel_tol=1e-12
    )
    t = torch.linspace(0, process.t_max, 501, dtype=torch.float64)
    assert (process.log_snr(t).diff() < 0).all()
    for end in (0.0, process.t_max):
        assert math.isclose(process.time(process.log_snr(end)), end, abs_tol=1e-12)
    assert torch.isfinite(equation.f(t[:-1])).all() and torch.isfinite(equation.g2(t[:-1])).all()
    if name in ("flow", "VP cosine"):
        assert process.alpha(1.0) == 0 and process.sigma(1.0) == 1 and process.log_snr(1.0) == -math.inf


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_diffusers(name):
    from diffusers import DDPMScheduler

    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "VP scaled linear" else {}
    theirs = DDPMScheduler(beta_schedule=TABLES[name], **ends).alphas_cumprod.double()
    process = SCHEDULES[name]()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert (
        process.alpha(t).square() / theirs - 1
    ).abs().max() < 3e-5  # theirs is a product of 1000 in float32
    assert torch.allclose(
        process.alpha(t).square() + process.sigma(t).square(), torch.ones_like(t), rtol=1e-14
    )


def test_table_is_exact_and_interpolates_as_the_grids_do():
    betas = torch.tensor([0.1, 0.3, 0.2, 0.7], dtype=torch.float64)
    process = noise_schedules.vp_discrete(betas)
    square = (1 - betas).cumprod(0)
    t = torch.arange(1, 5, dtype=torch.float64) / 4
    assert torch.allclose(process.alpha(t), square.sqrt(), rtol=1e-14)
    fine = torch.linspace(0, 1, 97, dtype=torch.float64)
    sigma_of = grids.discrete_sigma(((1 - square) / square).sqrt())
    assert torch.allclose(process.sigma(fine) / process.alpha(fine), sigma_of(fine), rtol=1e-12)


def test_vp_sde_is_the_limit_of_the_tables():
    """alpha of the discrete process differs from the continuous one as 1/N."""
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    gaps = [
        float(
            (noise_schedules.vp_linear_discrete(n).alpha(t) / noise_schedules.vp_linear().alpha(t) - 1)
            .abs()
            .max()
        )
        for n in (1000, 2000, 4000)
    ]
    assert gaps[0] < 0.2 and all(abs(a / b - 2) < 0.15 for a, b in zip(gaps, gaps[1:]))


def test_coefficients_are_the_textbook_ones():
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    vp, sub, ve, flow = sde("VP linear"), sde("sub-VP"), sde("VE"), sde("flow")
    assert torch.allclose(vp.f(t), -beta / 2) and torch.allclose(vp.g2(t), beta, rtol=1e-14)
    assert torch.allclose(sub.g2(t), beta * (1 - torch.exp(-2 * (0.1 * t + 9.95 * t**2))), rtol=1e-12)
    assert torch.allclose(ve.g2(t).sqrt(), 0.01 * 5000**t * math.sqrt(2 * math.log(5000)), rtol=1e-12)
    assert torch.equal(sde("EDM").g2(t), 2 * t)
    abar = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)).square()
    assert torch.allclose(noise_schedules.vp_cosine().alpha(t).square(), abar, rtol=1e-12, atol=1e-15)
    inner = t[:-1]
    assert torch.allclose(flow.g2(inner), 2 * inner / (1 - inner), rtol=1e-14)
    assert torch.allclose(flow.f(inner), -1 / (1 - inner), rtol=1e-14)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_is_the_flow_path_under_the_grids_shift(shift):
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    process = noise_schedules.flow(shift)
    assert torch.allclose(process.sigma(t), grids.flow_sigma(shift)(t), rtol=1e-14)
    assert torch.allclose(process.alpha(t), FLOW.alpha(process.sigma(t)), atol=1e-15)
    lam = torch.linspace(-8, 8, 17, dtype=torch.float64)
    assert torch.allclose(process.sigma(process.time(lam)), FLOW.sigma(lam), rtol=1e-13)


@pytest.mark.parametrize(
    "name, path",
    [
        ("VP linear", VARIANCE_PRESERVING),
        ("VP cosine", VARIANCE_PRESERVING),
        ("VP scaled linear", VARIANCE_PRESERVING),
        ("VE", VARIANCE_EXPLODING),
        ("EDM", VARIANCE_EXPLODING),
    ],
)
def test_processes_stay_on_their_path(name, path):
    process = SCHEDULES[name]()
    t = inner_times(process)
    assert torch.allclose(path.alpha(process.sigma(t)), process.alpha(t), rtol=1e-8)
    assert torch.allclose(path.sigma(process.log_snr(t)), process.sigma(t), rtol=1e-12)


@every
def test_quadrature_of_f_and_g2_is_alpha_and_sigma(name, options):
    """With the factor alpha in sigma; the error falls with the spacing's square, with the spacing for tables'
    slopes that jump.
    """
    equation = sde(name, **options)
    process = equation.schedule
    errors = []
    for count in (2000, 4000):
        t = torch.linspace(0, 0.9 * process.t_max, count * 9 // 10 + 1, dtype=torch.float64)
        alpha, sigma, eps = to_flow_view(
            equation.f(t), equation.g2(t), 0.7, t, sigma_0=float(process.sigma(0.0))
        )
        late = slice(count // 10, None)  # sigma is compared as a ratio, which is 0/0 at 0
        errors.append(
            max(
                float((alpha / process.alpha(t) - 1).abs().max()),
                float((sigma / process.sigma(t) - 1)[late].abs().max()),
            )
        )
        assert torch.equal(eps, 0.7 * equation.g2(t).sqrt())
    assert errors[1] < (5e-3 if name in TABLES else 1e-5)
    assert errors[1] < 1e-12 or abs(math.log2(errors[0] / errors[1]) - (1 if name in TABLES else 2)) < 0.1


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n not in TABLES])
@pytest.mark.parametrize("eta", [0.0, 0.7, 2.0])
def test_views_convert_there_and_back(name, eta):
    equation = sde(name)
    process = equation.schedule
    errors = []
    for count in (1000, 2000):
        t = torch.linspace(0, 0.9 * process.t_max, count + 1, dtype=torch.float64)
        f, g2, back = to_diffusion_view(process.alpha(t), process.sigma(t), eta * equation.g2(t).sqrt(), t)
        late = slice(count // 10, None)
        errors.append(
            [float(e[late].abs().max()) for e in (f - equation.f(t), g2 / equation.g2(t) - 1, back - eta)]
        )
    for coarse, fine in zip(*errors):
        assert fine < 1e-11 or (fine < 1e-3 and abs(math.log2(coarse / fine) - 2) < 0.2)
    assert (g2 >= 0).all() and torch.isfinite(back).all()


def test_reverse_sde_and_interpolant_sde_are_one():
    """f z - (1 + eta^2)/2 g^2 score against u - eps^2/2 score, u = alpha' x_0 + sigma' eps the path's own
    velocity.
    """
    equation = sde("flow")
    process = equation.schedule
    t, x0, noise = torch.tensor(0.3), torch.tensor(1.3).double(), torch.tensor(-0.4).double()
    z, score = process.alpha(t) * x0 + process.sigma(t) * noise, -noise / process.sigma(t)
    eta = 0.6
    eps = eta * equation.g2(t).sqrt()
    reverse = equation.f(t) * z - (1 + eta**2) / 2 * equation.g2(t) * score
    assert torch.allclose(reverse, noise - x0 - eps.square() / 2 * score, rtol=1e-12)


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda: noise_schedules.flow().alpha(1.2), "t must be between 0 and 1 on the process flow, got 1.2"),
        (lambda: noise_schedules.edm().sigma([3.0, -1.0]), "t must be between 0 and 80 .*got -1"),
        (lambda: noise_schedules.edm().sigma(math.nan), "t must be .*got nan"),
        (
            lambda: noise_schedules.vp_scaled_linear().time(-5.0),
            "log_snr must be between -2.68.* and inf .*got -5",
        ),
        (lambda: noise_schedules.ve().time(9.0), "log_snr must be between -3.9.* and 4.6.*got 9"),
        (lambda: noise_schedules.flow(0.0), "shift must be above 0"),
        (lambda: noise_schedules.vp_linear(3.0, 1.0), "beta_min must be above 0 and at most beta_max = 1"),
        (lambda: noise_schedules.ve(2.0, 1.0), "sigma_min must be above 0 and below"),
        (lambda: noise_schedules.vp_cosine(0.0), "offset must be above 0"),
        (lambda: noise_schedules.vp_discrete([0.1, 1.0]), "betas must be .*between 0 and 1"),
        (lambda: to_flow_view(0.0, 1.0, 0.0, [0.1, 0.2, 0.3]), "t must start at 0"),
        (
            lambda: to_flow_view(0.0, 1.0, 0.0, [0.0, 0.2, 0.2]),
            "t must be one row of three or more rising times",
        ),
        (lambda: to_flow_view([0.0, 1.0, -math.inf], 1.0, 0.0, [0.0, 0.5, 1.0]), "f must be finite"),
        (
            lambda: to_diffusion_view([1.0, 0.5, 0.0], [0.0, 0.5, 1.0], 0.0, [0.0, 0.5, 1.0]),
            "alpha must be above 0",
        ),
        (
            lambda: to_diffusion_view(1.0, [0.0, 2.0, 1.0], 0.0, [0.0, 0.5, 1.0]),
            "sigma / alpha must be rising",
        ),
    ],
)
def test_what_is_no_process_is_refused(call, why):
    with pytest.raises(ValueError, match=why):
        call()
