"""Multistep targets and their correction, against quadrature and a solver that corrects its own state."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from fewstep.diffusion import samplers
from fewstep.diffusion.multistep import correction_weights, heun_weights, target_weights
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import batch_noise, solve
from fewstep.diffusion.schedules import auto, grids
from fewstep.diffusion.step import fresh_share, weights
from oracles.mixture import line_mixture

F64 = torch.float64
LEVELS = {
    "variance exploding": [12.0, 5.0, 2.5, 1.0, 0.3, 0.0],
    "flow": [1.0, 0.85, 0.6, 0.4, 0.15, 0.0],
    "variance preserving": [0.999, 0.95, 0.8, 0.5, 0.2, 0.0],
}


def mean_of_polynomial(values, places, h):
    """Mean over (0, h), weighted by e^u, of the polynomial through (places, values), by Gauss-Legendre
    quadrature.
    """
    x, w = np.polynomial.legendre.leggauss(40)
    x, w = (x + 1) / 2 * h, w * np.exp((x + 1) / 2 * h)
    return float((np.polyval(np.polyfit(places, values, len(places) - 1), x) * w).sum() / w.sum())


@pytest.mark.parametrize("h", [0.005, 0.3, 1.6])
def test_order_3_and_corrections_are_means_of_polynomials(h):
    u, values = [1.0, 0.4, -0.9], np.array([0.7, -1.3, 2.1])
    wanted = mean_of_polynomial(values, [v - u[0] for v in u], h)
    assert np.dot(target_weights(3, u[0] + h, u), values) == pytest.approx(wanted, rel=1e-7)
    done = np.dot(target_weights(2, u[0], u[1:]), values[1:])
    line = mean_of_polynomial(values[:2], [u[0] - u[1], 0], u[0] - u[1])
    assert np.dot(correction_weights(2, u), values) == pytest.approx(line - done, rel=1e-9)
    parabola = mean_of_polynomial(values, [v - u[1] for v in u], u[0] - u[1])
    assert np.dot(correction_weights(3, [*u, -2.0]), [*values, 0.0]) == pytest.approx(
        parabola - np.dot(target_weights(3, u[0], [*u[1:], -2.0]), [*values[1:], 0.0]), rel=1e-9
    )


def test_weights_sum_to_1_and_corrections_to_0():
    u = [0.3, 0.0, -0.5, -1.5]
    for order in (1, 2, 3):
        assert sum(target_weights(order, 0.9, u)) == pytest.approx(1)
        assert sum(correction_weights(order, u)) == pytest.approx(0, abs=1e-12)
    assert sum(heun_weights(0.9, 0.3)) == pytest.approx(1)
    assert target_weights(3, math.inf, u) == [1.0] and correction_weights(2, [0.3]) == []


def test_an_order_between_two_is_their_mean():
    u = [0.3, 0.0, -0.5, -1.5]
    for weights_of in (
        lambda order: target_weights(order, 0.9, u),
        lambda order: correction_weights(order, u),
    ):
        for lower, share in ((1, 0.25), (2, 0.5)):
            below, found, above = (
                np.array([*weights_of(order), 0.0, 0.0, 0.0][:4])
                for order in (lower, lower + share, lower + 1)
            )
            assert found == pytest.approx(below + share * (above - below)) and (above != below).any()
    assert target_weights(1.5, math.inf, u) == [1.0] and correction_weights(1.5, [0.3]) == []


def test_a_level_met_again_serves_once():
    assert target_weights(3, 1.0, [0.5, 0.5, 0.1]) == [1.0] and correction_weights(2, [0.5, 0.5, 0.1]) == []
    assert len(target_weights(3, 1.0, [0.5, 0.1, 0.1])) == 2


@pytest.mark.parametrize(
    "order, corrector, most", [(2, False, 4.0), (2, True, 7.0), (3, False, 16.0), (3, True, 30.0)]
)
def test_no_setting_multiplies_the_error_of_a_prediction_beyond_bounds(order, corrector, most):
    """Sum of the absolute weights of predictions over the weight of the target, on every grid, step count,
    churn and mode.
    """
    discrete = grids.discrete_sigma(torch.linspace(-3.5, 3.7, 1000, dtype=F64).exp())
    models = [(grids.flow_sigma(), FLOW), (discrete, VARIANCE_EXPLODING)]
    worst = 0.0
    for sigma_of, path in models:
        for name in grids.NAMES:
            for steps in (2, 3, 4, 8, 20):
                sigmas = grids.grid(name, steps, sigma_of, path)
                for options in (
                    {},
                    {"mode": "raise first", "churn": 0.3},
                    {"mode": "raise first", "churn": 1.0},
                    {"mode": "raise first", "churn": 4.0},
                ):
                    moves = samplers.plan(sigmas, path, **options)
                    for found in samplers.coefficients(moves, path, order, corrector):
                        worst = max(worst, sum(abs(b) for b in found.step.predictions))
    assert worst < most


@pytest.mark.parametrize("churn", [0.0, 0.6])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", PATHS)
def test_corrector_is_a_corrected_state(name, order, churn, generator):
    """The kernel folds the correction into the next step; here the state itself is corrected before it."""
    p, sigmas = PATHS[name], torch.tensor(LEVELS[name], dtype=F64)
    model = lambda x, sigma: torch.tanh(x * (1 + sigma)) + 0.3 * sigma * x
    x = sigmas[0] * torch.randn(5, 3, generator=generator, dtype=F64)
    ours = solve(model, x, sigmas, p, order=order, corrector=True, churn=churn, noise=batch_noise(4))
    draw, held, us, before = batch_noise(4), [], [], None
    for t, s in zip(sigmas, sigmas[1:]):
        held, us = [model(x, float(t)), *held], [-math.log(p.tau(t)), *us]
        if before is not None:
            x = x + before * sum(w * v for w, v in zip(correction_weights(order, us), held))
        kappa = fresh_share(churn, p, t, s)
        a, b, k = weights(p, t, s, kappa)
        u_next = -math.log(p.tau(s)) if s > 0 else math.inf
        x = a * x + b * sum(w * v for w, v in zip(target_weights(order, u_next, us), held))
        x, before = x + k * draw(x) if k > 0 else x, b
    assert (ours - x).abs().max() < 1e-10


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_corrector_lifts_order_1_to_2_and_improves_order_2(order, name, generator):
    p, mixture = PATHS[name], line_mixture(std=0.5)
    top = {"variance exploding": 40.0}.get(name, 1.0)
    t = torch.linspace(1, 0, 801, dtype=F64)
    fine = {"variance exploding": 40 * t**4, "flow": t}.get(name, (t**2 * math.pi / 2).sin())
    x = top * torch.randn(64, 4, generator=generator, dtype=F64)
    exact = mixture.consistency(x, p, top)
    errors = [
        float(
            (
                solve(lambda x, s: mixture.denoise(x, p, s), x, g, p, order=order, corrector=True) - exact
            ).norm()
        )
        for g in (fine[::2], fine)
    ]
    if order == 1:
        assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.2
    plain = solve(lambda x, s: mixture.denoise(x, p, s), x, fine[::40], p, order=order)
    corrected = solve(lambda x, s: mixture.denoise(x, p, s), x, fine[::40], p, order=order, corrector=True)
    assert (corrected - exact).norm() < (plain - exact).norm()


def test_auto_grid_is_one_in_the_flow_time_of_every_path():
    flow = auto.sigmas(FLOW, 5, 1.0, dimension=8)
    other = auto.sigmas(VARIANCE_EXPLODING, 5, 1e9, dimension=8)
    assert torch.allclose(FLOW.log_snr(flow[1:]), VARIANCE_EXPLODING.log_snr(other[1:]), atol=1e-6)
    s = auto.shift(8)
    assert torch.allclose(flow, grids.grid("uniform", 5, grids.flow_sigma(s), FLOW)[:5])


@pytest.mark.parametrize(
    "steps, cfg, order, corrector",
    [
        (3, 1.0, 2, True),
        (4, 2.0, 2, True),
        (3, 4.0, 1, False),
        (6, 4.0, 1.75, False),
        (12, 4.0, 2 - 1 / 16, True),
    ],
)
def test_auto_lowers_the_order_where_guidance_is_strong_and_steps_are_few(steps, cfg, order, corrector):
    chosen = auto.solver(grids.grid("auto", steps, grids.flow_sigma(), FLOW), FLOW, cfg)
    assert chosen == {"order": pytest.approx(order), "corrector": corrector, "churn": 0.0}


def test_auto_counts_the_steps_that_the_whole_way_would_have_as_close_as_they_are():
    half = torch.tensor([0.5, 0.375, 0.25, 0.0])
    assert auto.solver(half, FLOW, 4.0) == auto.solver(torch.linspace(1, 0, 7), FLOW, 4.0)
    assert auto.solver(half[:-1], FLOW, 4.0)["order"] < 2
    whole = grids.grid("auto", 4, grids.flow_sigma(), FLOW)  # dense near the noise
    near, far = (auto.solver(part, FLOW, 4.0)["order"] for part in (whole[:3], whole[2:]))
    assert near > auto.solver(whole, FLOW, 4.0)["order"] > far


def test_auto_names_what_is_no_grid():
    with pytest.raises(ValueError, match="sigmas must hold at least two noise levels"):
        auto.solver(torch.ones(1), FLOW, 4.0)


def test_auto_is_nearer_than_order_2_with_strong_guidance_and_few_steps():
    """An exact model and one of its labels."""
    whole = line_mixture()
    label = dataclasses.replace(whole, positions=whole.positions[:1], weights=torch.ones(1, dtype=F64))
    x = torch.randn(64, len(whole.centre), generator=torch.Generator().manual_seed(0), dtype=F64)

    def denoise(x, sigma):
        unconditional = whole.denoise(x, FLOW, sigma)
        return unconditional + 4 * (label.denoise(x, FLOW, sigma) - unconditional)

    def along(steps):
        return grids.grid("auto", steps, grids.flow_sigma(), FLOW, dimension=4)

    exact = solve(denoise, x, along(400), FLOW, order=3)
    for steps in (3, 4):
        few = along(steps)
        own = solve(denoise, x, few, FLOW, **auto.solver(few, FLOW, 4.0))
        second = solve(denoise, x, few, FLOW, order=2, corrector=True)
        assert (own - exact).norm() < 0.5 * (second - exact).norm()


def test_auto_shift_grows_with_the_dimension_and_takes_a_larger_own():
    assert (
        auto.shift(2) < auto.shift(32) < auto.shift(3000) == auto.shift() == auto.LARGEST
        and auto.shift(own=8.0) == 8.0
    )
    few, many = (auto.sigmas(FLOW, n, 1.0, dimension=8) for n in (4, 20))
    assert few[-1] == pytest.approx(auto.shift(8) / (4 + auto.shift(8) - 1)) and many[-1] < auto.shift(8) / (
        20 + auto.shift(8) - 1
    )
    wide = grids.grid("auto", 4, grids.flow_sigma(8.0), FLOW)
    assert torch.allclose(wide, grids.grid("uniform", 4, grids.flow_sigma(8.0), FLOW))
