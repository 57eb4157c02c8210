"""Each process's step has the law of F_s(x0, eps) where the mathematics says so, and the check finds steps
that have not.

The data is a mixture of three atoms (images), so that p(x0 | x_t) is known: weights times the density of x_t
around each.
"""

import math

import pytest
import torch
from fewstep.diffusion.destruction.degradations import (
    Blur,
    DrawnFade,
    DrawnMask,
    Fade,
    Mask,
    Pixelate,
    hot_blur,
    hot_pixelate,
)
from fewstep.diffusion.destruction.forward import Chain, gaussian
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.samplers import plan, sample
from fewstep.diffusion.step import weights
from oracles.marginals import check_marginals, compare, energy_distance

F64 = torch.float64
SIZE = (4, 5)
ORDER = torch.linspace(0, 0.9, 20, dtype=F64).reshape(SIZE)
OTHER = torch.linspace(-1, 1, 20, dtype=F64).reshape(1, 1, *SIZE)
ATOMS = 0.5 * torch.randn(3, 1, *SIZE, generator=torch.Generator().manual_seed(5), dtype=F64)
POOL = torch.randn(6, 1, *SIZE, generator=torch.Generator().manual_seed(6), dtype=F64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
GAUSSIAN = {
    "flow": gaussian(),
    "VP cosine": gaussian("VP cosine"),
    "EDM": gaussian("EDM", sigma_max=2.0),
    "hot blur": hot_blur(2.0),
    "hot blur, little noise": hot_blur(2.0, "EDM", sigma_max=0.5),
    "pixelate + noise": hot_pixelate(4),
    "mask + noise": Chain(Mask(order=ORDER), gaussian()),
    "fade + noise": Chain(Fade(other=OTHER), gaussian()),
    "blur + pixelate + noise": Chain(Blur(width=1.0), Pixelate(largest=2), gaussian()),
}
COLD = {
    "blur": Blur(width=2.0),
    "pixelate": Pixelate(largest=4),
    "mask": Mask(order=ORDER),
    "fade": Fade(other=OTHER),
}
DRAWN = {"drawn mask": DrawnMask(), "drawn fade": DrawnFade()}
EVERY = GAUSSIAN | COLD | DRAWN
KAPPAS = [0.0, 0.3, 1.0]
T, S, COUNT = 0.6, 0.35, 600


def noise_of(name, generator):
    """Draws from the process's law of noise."""
    if name == "drawn fade":
        return lambda x: POOL[torch.randint(len(POOL), (len(x),), generator=generator)]
    return lambda x: torch.randn(x.shape, generator=generator, dtype=F64)


def data(count, generator):
    return ATOMS[torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)]


def posterior(name, process, x, t):
    """p(x0 = atom | x_t), (B, atoms)."""
    fits = []
    for atom in ATOMS:
        x0 = atom.expand_as(x)
        if name == "drawn mask":  # every mask is as likely: what is seen must agree
            wrong = (~process.masked(x) & (x != x0)).flatten(1).any(1)
        elif name == "drawn fade":  # the other image must be one of the pool
            wrong = (
                torch.cdist(process.solve_noise(x0, x, t).flatten(1), POOL.flatten(1)).min(1).values > 1e-6
            )
        elif name in COLD:
            wrong = (process.corrupt(x0, None, t) - x).flatten(1).norm(dim=1) > 1e-6
        else:
            fits.append(-process.solve_noise(x0, x, t).square().flatten(1).sum(1) / 2)
            continue
        fits.append(torch.where(wrong, -math.inf, 0.0).double())
    return (torch.stack(fits, 1) + WEIGHTS.log()).softmax(1)


def drawn(p, generator):
    return ATOMS[torch.multinomial(p, 1, generator=generator)[:, 0]]


def mean(p):
    return (p @ ATOMS.flatten(1)).reshape(-1, 1, *SIZE)


def pairs():
    return [(name, kappa) for name in EVERY for kappa in KAPPAS if (name, kappa) != ("drawn fade", 0.3)]


@pytest.mark.parametrize("name, kappa", pairs())
def test_step_of_a_mixture_with_x0_from_the_posterior_has_the_marginal(name, kappa, generator):
    """p(x_s) of the mixture at the floor of two exact samples, for every process and share of fresh noise."""
    process, noise = EVERY[name], noise_of(name, generator)
    x = process.corrupt(first := data(COUNT, generator), noise(first), T)
    reached = process.transition(x, drawn(posterior(name, process, x, T), generator), T, S, kappa, noise)
    exact = process.corrupt(again := data(COUNT, generator), noise(again), S)
    found = compare(reached, exact, generator)
    assert found.respected, found


@pytest.mark.parametrize("name, kappa", pairs())
def test_check_passes_every_process(name, kappa, generator):
    found = check_marginals(
        EVERY[name], ATOMS[:1], T, S, kappa, generator=generator, noise=noise_of(name, generator)
    )
    assert found.respected, found


@pytest.mark.parametrize("name", [*GAUSSIAN, "drawn mask"])
def test_check_finds_kernels_that_are_wrong(name, generator):
    """Fresh noise that is only added; the cold step, which keeps the noise of t; steps that forget to mix."""
    process, noise = EVERY[name], noise_of(name, generator)
    wrong = {
        "added": lambda x, x0, t, s: process.corrupt(
            x0, process.solve_noise(x0, x, t, noise) + 0.6 * noise(x), s
        ),
        "weighed": lambda x, x0, t, s: process.corrupt(
            x0, 0.5 * process.solve_noise(x0, x, t, noise) + 0.5 * noise(x), s
        ),
        "late": lambda x, x0, t, s: process.transition(x, x0, t, s + 0.12, 0.0, noise),
        "cold": lambda x, x0, t, s: (
            x + process.corrupt(x0, noise(x) * 0, s) - process.corrupt(x0, noise(x) * 0, t)
        ),
    }
    for kind in wrong if name in GAUSSIAN else ("late",):
        found = check_marginals(process, ATOMS[:1], T, S, generator=generator, kernel=wrong[kind])
        assert not found.respected and found.distance > 2 * found.floor, (kind, found)


def test_check_finds_deterministic_kernels_that_are_wrong(generator):
    for process in COLD.values():
        late = lambda x, x0, t, s, process=process: process.corrupt(x0, None, s + 0.1)
        assert not check_marginals(
            process, ATOMS[:1], T, S, generator=generator, count=50, kernel=late
        ).respected


@pytest.mark.parametrize(
    "name, s, kappa, holds",
    [
        ("hot blur", 0.58, 0.0, True),
        ("flow", 0.58, 0.0, True),
        ("pixelate + noise", 0.58, 0.0, True),  # Euler's error
        ("hot blur", 0.2, 0.0, False),
        ("hot blur", 0.2, 1.0, False),
        ("flow", 0.2, 1.0, False),
    ],
)  # all but the mean
def test_posterior_mean_keeps_the_marginal_in_short_steps_without_fresh_noise_alone(
    name, s, kappa, holds, generator
):
    process, noise, count, t = EVERY[name], noise_of(name, generator), 1000, 0.6 + (0.2 if s == 0.2 else 0)
    x = process.corrupt(first := data(count, generator), noise(first), t)
    reached = process.transition(x, mean(posterior(name, process, x, t)), t, s, kappa, noise)
    exact = process.corrupt(again := data(count, generator), noise(again), s)
    assert compare(reached, exact, generator).respected == holds


@pytest.mark.parametrize("options", [{}, {"churn": 1.0}], ids=str)
@pytest.mark.parametrize("name", ["flow", "hot blur", "pixelate + noise"])
def test_runs_with_the_posterior_mean_reach_the_marginal_as_steps_shorten(name, options, generator):
    """kappa = 0, and kappa^2 in proportion to the step (churn): the distance falls to the floor of exact
    samples.
    """
    process, noise, count = EVERY[name], noise_of(name, generator), 800
    exact = process.corrupt(first := data(count, generator), noise(first), 0.15)
    found = []
    for steps in (3, 64):
        times, x = torch.linspace(1, 0.15, steps + 1, dtype=F64), noise(torch.empty(count, 1, *SIZE))
        for state in sample(
            lambda x, t: mean(posterior(name, process, x, t)), x, times, process, noise=noise, **options
        ):
            x = state.x
        found.append(compare(x, exact, generator))
    assert found[1].respected and not found[0].respected and found[0].distance > 3 * found[1].distance


@pytest.mark.parametrize(
    "options, vanishes",
    [
        ({}, True),
        ({"churn": 1.0}, True),
        ({"churn": 4.0}, True),
        ({"kappa": 0.6}, False),
        ({"kappa": 1.0}, False),
    ],
    ids=str,
)
def test_error_of_the_posterior_mean_vanishes_with_the_step_unless_kappa_is_fixed(options, vanishes):
    """For normal data N(0, 4) each step is a number times x plus noise: the variance of a run is known
    without drawing.
    """
    errors = []
    for steps in (20, 200, 2000):
        variance = torch.ones(())
        for move in plan(torch.linspace(1, 0.3, steps + 1, dtype=F64), FLOW, **options):
            a, b, k = weights(FLOW, move.sigma, move.sigma_next, move.kappa)
            alpha = 1 - move.sigma
            variance = (a + b * 4 * alpha / (4 * alpha**2 + move.sigma**2)) ** 2 * variance + k**2
        errors.append(abs(float(variance) / (4 * 0.7**2 + 0.3**2) - 1))
    assert errors[2] < 1e-2 if vanishes else errors[2] > 0.05
    assert not vanishes or errors[0] > 4 * errors[1] > 16 * errors[2]


def test_cold_run_with_the_posterior_mean_is_exact(generator):
    """Each x_t tells its atom, so the mean is that atom."""
    for name, process in COLD.items():
        x = process.corrupt(x0 := data(40, generator), None, 0.9)
        for state in sample(
            lambda x, t, n=name, p=process: mean(posterior(n, p, x, t)),
            x,
            torch.linspace(0.9, 0, 6, dtype=F64),
            process,
        ):
            assert torch.allclose(state.x, process.corrupt(x0, None, state.sigma_next), atol=1e-9)


def test_energy_distance_is_that_of_its_definition(generator):
    a, b = (
        torch.randn(30, 4, generator=generator, dtype=F64),
        torch.randn(40, 4, generator=generator, dtype=F64) + 0.5,
    )
    mean_of = lambda u, v: sum(float((x - y).norm()) for x in u for y in v) / len(u) / len(v)
    wanted = 2 * mean_of(a, b) - mean_of(a, a) - mean_of(b, b)
    assert energy_distance(a, b) == pytest.approx(wanted, rel=1e-5)
    assert compare(a, b, generator).distance == pytest.approx(wanted, rel=1e-9)


def test_floor_is_that_of_equal_laws(generator):
    """Of many comparisons of equal laws hardly any is refused, and the floor is their mean."""
    found = [compare(*torch.randn(2, 100, 5, generator=generator, dtype=F64), generator) for _ in range(40)]
    assert sum(not f.respected for f in found) <= 2
    assert sum(f.distance for f in found) == pytest.approx(sum(f.floor for f in found), rel=0.1)


@pytest.mark.parametrize(
    "change, why", [({"x0": ATOMS}, "x0 must be a single image.*got 3"), ({"s": 0.7}, "s must be below t")]
)
def test_what_cannot_be_checked_is_refused(change, why, generator):
    given = {"x0": ATOMS[:1], "t": 0.6, "s": 0.3} | change
    with pytest.raises(ValueError, match=why):
        check_marginals(gaussian(), **given, generator=generator)
