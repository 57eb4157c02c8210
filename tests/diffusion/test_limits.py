"""The kernel against algorithms written out from their papers, at its limits, across paths, and its measured
order.
"""

import math

import numpy as np
import pytest
import torch
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.samplers import sample, solve
from fewstep.diffusion.step import fresh_share
from oracles.mixture import line_mixture

SHAPE = (2, 3, 4, 4)
TIGHT = 1e-10
LAMBDA = torch.tensor([-2.6, -2.0, -1.1, -0.4, 0.1, 1.0, 1.8, 2.9], dtype=torch.float64)  # uneven steps
START = {"variance exploding": 40.0, "flow": 1.0, "variance preserving": 1.0}


def smooth(x, sigma):
    """A model: bounded, and depends on every entry of x and on sigma."""
    return (2 * x.roll(1, -1) / (1 + float(sigma))).sin() + 0.3 * math.cos(3 * float(sigma)) + 0.1 * x.mean()


def start(sigma=1.0):
    return float(sigma) * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def drawing(seed=3):
    """Fresh noise, the same sequence each time it is made."""
    g = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def never(x):
    raise AssertionError("noise was drawn")


def uneven(p, zero=True):
    sigmas = p.sigma(LAMBDA)
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if zero else sigmas


def states(p, sigmas, model=smooth, x=None, seed=3, **options):
    x = start(sigmas[0]) if x is None else x
    return [s.x for s in sample(model, x, sigmas, p, noise=drawing(seed), **options)]


def difference(a, b):
    """The largest difference of two runs, over all states."""
    assert len(a) == len(b) > 2
    return max(float((p - q).abs().max()) for p, q in zip(a, b))


def edm(x, sigmas, gammas, s_noise, noise, heun=True):
    """EDM algorithm 2 (Karras et al. 2022, arXiv:2206.00364), in its letters; the states after every step."""
    out = []
    for t, after, gamma in zip(sigmas, sigmas[1:], gammas):
        t_hat = t + gamma * t  # line 5
        if gamma > 0:
            x = x + (t_hat**2 - t**2).sqrt() * s_noise * noise(x)  # 4, 6
        d = (x - smooth(x, t_hat)) / t_hat  # 7
        ahead = x + (after - t_hat) * d  # 8
        if heun and after != 0:  # 9
            d_ahead = (ahead - smooth(ahead, after)) / after  # 10
            ahead = x + (after - t_hat) * (d / 2 + d_ahead / 2)  # 11
        x = ahead
        out.append(x)
    return out


@pytest.mark.parametrize("order", [1, "heun"])
@pytest.mark.parametrize("s_churn, s_noise", [(0.0, 1.0), (0.8, 1.0), (2.4, 1.003), (40.0, 1.007)])
def test_raise_first_is_edm_algorithm_2(s_churn, s_noise, order):
    """A constant gamma on a grid equally spaced in lambda.

    EDM would raise above sigmas[0] and before the last step; ours does not, so both are outside [S_tmin,
    S_tmax] here.
    """
    steps, h = 8, 0.8
    sigmas = 20 * torch.exp(-h * torch.arange(steps, dtype=torch.float64))
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    gammas = [gamma if 0 < i < steps - 1 else 0.0 for i in range(steps)]
    wanted = edm(start(20.0), sigmas, gammas, s_noise, drawing(), heun=order == "heun")
    found = states(
        VARIANCE_EXPLODING,
        sigmas,
        order=order,
        mode="raise first",
        churn=math.log1p(gamma) / h,
        s_noise=s_noise,
        start=1 / steps,
        end=(steps - 1) / steps,
    )
    assert difference(found, wanted) < TIGHT


@pytest.mark.parametrize("churn", [0.2, 0.6])
def test_raise_first_on_an_uneven_grid_is_edm_with_a_gamma_of_each_step(churn):
    sigmas = uneven(VARIANCE_EXPLODING)
    gammas = [
        min(math.expm1(churn * float(a.log() - b.log())), float(sigmas[0] / a) - 1)
        for a, b in zip(sigmas, sigmas[1:-1])
    ]
    assert gammas[0] == 0 < min(gammas[1:])
    wanted = edm(start(sigmas[0]), sigmas, [*gammas, 0.0], 1.0, drawing())
    assert (
        difference(states(VARIANCE_EXPLODING, sigmas, order="heun", mode="raise first", churn=churn), wanted)
        < TIGHT
    )


@pytest.mark.parametrize("order", [1, "heun"])
@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_restart_is_its_algorithm_1(repeats, order):
    """Xu et al. 2023, arXiv:2306.14878, algorithm 1: ODE to t_min; K times noise to t_max and ODE back; ODE
    to 0.
    """
    sigmas, noise = uneven(VARIANCE_EXPLODING), drawing()
    high, low = 2, 5
    t_max, t_min = sigmas[high], sigmas[low]

    def ode(x, levels):
        return edm(x, levels, [0.0] * len(levels), 1.0, never, heun=order == "heun")

    wanted = ode(start(sigmas[0]), sigmas[: low + 1])
    for _ in range(repeats):
        up = wanted[-1] + (t_max**2 - t_min**2).sqrt() * noise(wanted[-1])
        wanted += ode(up, sigmas[high : low + 1])
    wanted += ode(wanted[-1], sigmas[low:])
    found = states(
        VARIANCE_EXPLODING, sigmas, order=order, mode="restart", churn=repeats, start=high / 8, end=low / 8
    )
    assert len(found) == 8 + repeats * 3 and difference(found, wanted) < TIGHT


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order", [2, 3])
def test_restart_forgets_earlier_predictions(order, name):
    """From the restart on, the run is a new one from the noised state."""
    p = PATHS[name]
    sigmas, high, low = uneven(p), 2, 5
    found = states(p, sigmas, order=order, mode="restart", churn=1, start=high / 8, end=low / 8)
    scale = p.alpha(sigmas[high]) / p.alpha(sigmas[low])
    fresh = (sigmas[high] ** 2 - (scale * sigmas[low]) ** 2).sqrt()
    up = scale * found[low - 1] + fresh * drawing()(found[0])
    assert difference(found[low:], [s.x for s in sample(smooth, up, sigmas[high:], p, order=order)]) < TIGHT


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order", [1, 2, 3, "heun"])
@pytest.mark.parametrize("mode", ["each step", "raise first", "restart"])
def test_churn_0_draws_no_noise_and_every_mode_is_the_ode(mode, order, name):
    p = PATHS[name]
    x = start(uneven(p)[0])
    found = [s.x for s in sample(smooth, x, uneven(p), p, order=order, mode=mode, noise=never)]
    assert difference(found, [s.x for s in sample(smooth, x, uneven(p), p, order=order)]) == 0


@pytest.mark.parametrize("name", PATHS)
def test_churn_1_is_the_gaussian_posterior(name):
    """q(x_s | x_t, x_0) of any path (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7, in alpha and sigma)."""
    p, noise = PATHS[name], drawing()
    sigmas = uneven(p)
    wanted, x = [], start(sigmas[0])
    for t, s in zip(sigmas, sigmas[1:]):
        x0, ratio = smooth(x, t), p.alpha(t) / p.alpha(s)
        between = t**2 - (ratio * s) ** 2
        x = ratio * s**2 / t**2 * x + p.alpha(s) * between / t**2 * x0
        if s > 0:
            x = x + (between * s**2 / t**2).sqrt() * noise(x)
        wanted.append(x)
    assert difference(states(p, sigmas, churn=1.0), wanted) < TIGHT


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("options", [{"churn": math.inf}, {"kappa": 1.0}])
def test_churn_inf_is_the_consistency_sampler(options, name):
    """Song et al. 2023, arXiv:2303.01469, algorithm 1."""
    p, noise = PATHS[name], drawing()
    sigmas = uneven(p)
    wanted, x = [], start(sigmas[0])
    for t, s in zip(sigmas, sigmas[1:]):
        x0 = smooth(x, t)
        x = p.alpha(s) * x0 + s * noise(x0) if s > 0 else x0
        wanted.append(x)
    assert difference(states(p, sigmas, **options), wanted) < TIGHT
    assert difference(states(p, sigmas, churn=400.0), wanted) < TIGHT


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order", [1, 2, 3, "heun"])
def test_states_stay_bounded_at_any_churn(order, name):
    """What churn does to errors of the predictions saturates: the largest state at c = 50 is that at c = 8
    within 2 %.
    """
    p = PATHS[name]
    sigmas = uneven(p)
    much, more = (max(float(x.std()) for x in states(p, sigmas, order=order, churn=c)) for c in (8.0, 50.0))
    assert abs(more / much - 1) < 0.02


@pytest.mark.parametrize("name", PATHS)
def test_churn_over_shoots_and_is_noised_back(name):
    """A step with churn c is the ODE step to the level d with lambda_d = lambda_s + c h, then noise from d to
    s.
    """
    p, noise, churn = PATHS[name], drawing(), 0.4
    sigmas = uneven(p)
    wanted, x = [], start(sigmas[0])
    for t, s in zip(sigmas, sigmas[1:-1]):
        d = p.sigma(p.log_snr(s) + churn * (p.log_snr(s) - p.log_snr(t)))
        x = solve(smooth, x, [t, d], p)
        scale = p.alpha(s) / p.alpha(d)
        x = scale * x + (s**2 - (scale * d) ** 2).sqrt() * noise(x)
        wanted.append(x)
    assert difference(states(p, sigmas, churn=churn)[:-1], wanted) < TIGHT


def scaled(model, p, other):
    """The model of path `p` in the coordinates of `other`: x / alpha is the same at one lambda."""

    def model_there(x, sigma):
        sigma = torch.tensor(sigma, dtype=torch.float64)
        back = p.sigma(other.log_snr(sigma))
        return model(x * p.alpha(back) / other.alpha(sigma), back)

    return model_there


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"churn": 0.5},
        {"churn": 1.0},
        {"churn": math.inf},
        {"kappa": 0.3},
        {"churn": 0.5, "mode": "raise first"},
        {"churn": 2, "mode": "restart", "start": 0.25},
    ],
)
@pytest.mark.parametrize("other", [FLOW, VARIANCE_PRESERVING], ids=lambda p: p.name)
def test_scaling_a_schedule_leaves_order_1_as_it_is(other, options):
    """x' = s x with any s(t): the same lambdas, predictions and noise give the same x / alpha."""
    p = VARIANCE_EXPLODING
    here, there = uneven(p), uneven(other)
    x = start(here[0])
    found = states(other, there, scaled(smooth, p, other), x * other.alpha(there[0]), **options)
    scale = {float(s): float(other.alpha(s)) for s in there}
    ends = [m.sigma_next for m in sample(smooth, x, there, other, noise=drawing(), **options)]
    found = [f / scale[e] for f, e in zip(found, ends)]
    assert difference(found, states(p, here, x=x, **options)) < TIGHT


@pytest.mark.parametrize("order", [1, 2, 3, "heun"])
@pytest.mark.parametrize("churn", [0.0, 0.7])
def test_variance_preserving_and_flow_agree_at_every_order(order, churn):
    """Both work in tau, the flow time of their lambda: x_vp = (alpha + sigma) x_flow."""
    vp, flow = uneven(VARIANCE_PRESERVING), uneven(FLOW)
    grow = VARIANCE_PRESERVING.alpha(vp) + vp
    x = start(flow[0])
    found = states(
        VARIANCE_PRESERVING,
        vp,
        scaled(smooth, FLOW, VARIANCE_PRESERVING),
        x * grow[0],
        order=order,
        churn=churn,
    )
    found = [f / g for f, g in zip(found, grow[1:])]
    assert difference(found, states(FLOW, flow, x=x, order=order, churn=churn)) < TIGHT


def test_order_3_is_the_integral_of_the_parabola():
    """x_s / sigma_s = x_t / sigma_t + integral of p(u) e^u du, u = -log sigma, by numpy's Gauss-Legendre and
    polynomial fit.
    """
    sigmas = uneven(VARIANCE_EXPLODING, zero=False)
    u = (-sigmas.log()).numpy()
    nodes, shares = np.polynomial.legendre.leggauss(20)
    wanted, predictions, x = [], [], start(sigmas[0])
    for i in range(len(u) - 1):
        predictions = [*predictions, smooth(x, sigmas[i]).numpy().ravel()][-3:]
        used = len(predictions)
        if used == 2:  # DPM-Solver++ 2M: the line's value in the middle
            line = np.polynomial.Polynomial.fit(u[i - 1 : i + 1], [0, 1], 1)((u[i] + u[i + 1]) / 2)
            mean = predictions[0] * (1 - line) + predictions[1] * line
            integral = mean * (np.exp(u[i + 1]) - np.exp(u[i]))
        else:
            at = u[i] + (u[i + 1] - u[i]) * (nodes + 1) / 2
            parabola = np.vander(at, used) @ np.linalg.solve(
                np.vander(u[i + 1 - used : i + 1], used), np.stack(predictions)
            )
            integral = (shares * np.exp(at)) @ parabola * (u[i + 1] - u[i]) / 2
        x = sigmas[i + 1] * (x / sigmas[i] + torch.from_numpy(integral).view(SHAPE))
        wanted.append(x)
    assert difference(states(VARIANCE_EXPLODING, sigmas, order=3), wanted) < TIGHT


def grid_for(p, steps):
    """A grid that is smooth in the path's own coordinates, with short first and last steps.

    A multistep run of order 3 makes its first step with order 1, and the last step takes the prediction
    alone: both have an error of second order in their own length, here of order steps^-2.
    """
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if p is VARIANCE_EXPLODING:
        return START[p.name] * t**4
    flow = t**2 * (3 - 2 * t)
    return flow if p is FLOW else p.sigma(FLOW.log_snr(flow))


@pytest.mark.parametrize("order, wanted", [(1, 1.0), (2, 2.0), (3, 3.0), ("heun", 2.0)])
@pytest.mark.parametrize("name", PATHS)
def test_measured_order(order, wanted, name, generator):
    p, mixture = PATHS[name], line_mixture(std=0.5)
    x = START[name] * torch.randn(16, 4, generator=generator, dtype=torch.float64)
    exact = mixture.consistency(x, p, START[name])
    errors = [
        float(
            (solve(lambda x, s: mixture.denoise(x, p, s), x, grid_for(p, n), p, order=order) - exact).norm()
        )
        for n in (300, 600)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - wanted) < 0.2


@pytest.mark.parametrize("name", PATHS)
def test_kappa_as_a_function_is_the_share_of_a_churn(name):
    p = PATHS[name]
    sigmas = uneven(p)
    share = lambda t, s: float(fresh_share(0.6, p, t, s))
    assert difference(states(p, sigmas, kappa=share), states(p, sigmas, churn=0.6)) == 0
