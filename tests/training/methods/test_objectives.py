"""The analytic gate of consistency training, of the objectives on pairs and windows, of the solver's
substeps, and of the draws.
"""

import math

import pytest
import torch
from analytic import MIXTURE, MODELS, as_model, levels, numbers
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_PRESERVING
from fewstep.diffusion.predictions import expand
from fewstep.diffusion.weightings import mse_factor, weighting
from fewstep.training.methods.consistency_loss import consistency, noised
from fewstep.training.methods.consistency_training import consistency_training
from fewstep.training.methods.distances import squared_error
from fewstep.training.methods.reflow import pairs
from fewstep.training.methods.teacher_step import solver_step
from fewstep.training.methods.times import BINS, Times, Weighting, levels_at
from fewstep.training.methods.windowed_reflow import windows


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn(name, count, generator, least=0.05):
    """Levels (count,) uniform in flow time down to `least`, the largest among them."""
    path, top = MODELS[name][0], levels(name)[0]
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    share[:3] = 1.0
    return path.at_flow_time(least + share * (path.flow_time(top) - least)).clamp_max(top)


# ---- consistency training ------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_training_on_one_point_has_no_loss_at_that_point(name, end, generator):
    path, kind = MODELS[name]
    point, t = random(generator, 4), drawn(name, 200, generator, 0.5)
    x0, s, e = (
        point.expand(200, 4),
        path.at_flow_time(path.flow_time(t) * 0.9),
        path.at_flow_time(0 * t + end),
    )
    right = as_model(lambda x, sigma: point.expand(len(x), 4), path, kind)
    wrong = as_model(lambda x, sigma: point + path.flow_time(sigma)[:, None], path, kind)
    losses = [
        consistency_training(f, f, path, x0, random(generator, 200, 4), t, s, e, numbers(x0))
        for f in (right, wrong)
    ]
    assert losses[0].max() < 1e-12 < 1e-3 < losses[1].mean()


@pytest.mark.parametrize("end", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_training_is_stationary_at_the_exact_function_only(name, end, generator):
    """With neighbouring levels the loss has no slope there, within 4 standard errors, though it is not 0."""
    path, kind = MODELS[name]
    count, gap = 6000, 1e-4
    t = drawn(name, count, generator, end + 0.1)
    s, e = path.at_flow_time(path.flow_time(t) - gap), path.at_flow_time(0 * t + end)
    x0, noise = MIXTURE.sample(count, generator), random(generator, count, 4)
    x_t = noised(x0, noise, path, t)
    scaled, time = x_t / expand(path.alpha(t).hypot(t), x_t), path.flow_time(t)[:, None]
    changes = [scaled, torch.sin(2 * scaled + time), time * MIXTURE.direction.expand(count, 4)]

    def exact(x, sigma, rows=None):
        goal, a = MIXTURE.flow(x, path, sigma, e), expand(e / sigma, x)
        return (goal - a * x) / (expand(path.alpha(e), x) - a * expand(path.alpha(sigma), x))

    def teacher(x, sigma, rows=None):
        return MIXTURE.denoise(x, path, sigma)

    def slopes(function):
        """Means of directional derivatives in standard errors; the loss is quadratic, so that differences are
        exact.
        """
        here, target = function(x_t, t), as_model(function, path, kind)
        for change in changes:
            up, down = (
                consistency_training(
                    lambda x, sigma, condition, move=move: here + move,
                    target,
                    path,
                    x0,
                    noise,
                    t,
                    s,
                    e,
                    numbers(x0),
                )
                for move in (change, -change)
            )
            slope = (up - down) / (2 * gap)
            yield abs(float(slope.mean() / slope.std())) * count**0.5

    assert max(slopes(exact)) < 4
    assert max(slopes(teacher)) > 10


@pytest.mark.parametrize("name", MODELS)
def test_training_is_distillation_by_euler_steps_with_the_samples_own_velocity(name, generator):
    path = MODELS[name][0]
    t = drawn(name, 200, generator, 0.3)
    s, e = path.at_flow_time(path.flow_time(t) * 0.9), path.at_flow_time(0 * t + 0.2)
    x0, noise = MIXTURE.sample(200, generator), random(generator, 200, 4)

    def student(x, sigma, condition):
        return MIXTURE.denoise(x, path, sigma)

    x_t = noised(x0, noise, path, t)
    own = [solver_step(lambda x, sigma, condition: x0, x_t, path, t, s, numbers(x_t), solver="euler")]
    if path is FLOW:
        own.append(x_t - (t - s)[:, None] * (noise - x0))
    trained = consistency_training(student, student, path, x0, noise, t, s, e, numbers(x0))
    for x_s in own:
        assert torch.allclose(
            trained,
            consistency(student, student, path, x_t, x_s, t, s, e, numbers(x_t)),
            rtol=1e-9,
            atol=1e-12,
        )


# ---- pairs and windows ---------------------------------------------------------------------------


def on_lines(w, share, end):
    """The start of the straight line w = (1 - share) start + share end(start) through w (B, D), share (B,).

    `end` is monotone along the mixture's line, so that lines do not cross: bisection; across it is affine:
    closed form.
    """
    d, k = MIXTURE.direction, share[:, None]
    q = torch.linalg.svd(d[None]).Vh[1].expand_as(w)
    base = end(torch.zeros_like(w))
    factor = ((end(q) - base) * q).sum(1, keepdim=True)
    across = (w - k * base) / (1 - k + k * factor)
    place, low, high = w @ d, w.new_full((len(w),), -9.0), w.new_full((len(w),), 9.0)
    for _ in range(50):
        middle = (low + high) / 2
        over = (1 - share) * middle + share * (end(middle[:, None] * d) @ d) > place
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return across + (middle - across @ d)[:, None] * d


@pytest.mark.parametrize("name", MODELS)
def test_pairs_have_no_loss_at_the_straight_flow_only(name, generator):
    path, kind = MODELS[name]
    top, sigma = levels(name)[0], drawn(name, 100, generator)
    noise = random(generator, 100, 4)
    x0 = MIXTURE.flow(top * noise, path, top, 0.0)

    def straight(x, sigma):
        time = path.flow_time(sigma)
        w = x / expand(path.alpha(sigma) + sigma, x)
        return MIXTURE.flow(
            top * on_lines(w, 1 - time, lambda n: MIXTURE.flow(top * n, path, top, 0.0)), path, top, 0.0
        )

    exact, teacher = (
        as_model(f, path, kind) for f in (straight, lambda x, sigma: MIXTURE.denoise(x, path, sigma))
    )
    right = exact(noised(x0, noise, path, sigma), sigma, None)
    for own in {"velocity", kind}:
        assert (
            pairs(lambda x, sigma, condition: right, path, x0, noise, sigma, numbers(x0), own).mean()
            < 1e-10 * MIXTURE.variance
        )
        assert pairs(teacher, path, x0, noise, sigma, numbers(x0), own).mean() > 1e-2 * MIXTURE.variance


@pytest.mark.parametrize("name", MODELS)
def test_windows_have_no_loss_at_their_chords_only(name, generator):
    path, kind = MODELS[name]
    edges = torch.cat(
        [
            path.at_flow_time(path.flow_time(levels(name)[0]) * torch.tensor([1, 0.75, 0.5, 0.25])),
            torch.zeros(1),
        ]
    )
    i = torch.randint(4, (100,), generator=generator)
    a, b, share = edges[i], edges[i + 1], 0.98 * torch.rand(100, generator=generator, dtype=torch.float64)
    x_a = MIXTURE.flow(edges[0] * random(generator, 100, 4), path, edges[0], a)
    x_b = MIXTURE.flow(x_a, path, a, b)
    tau_a, tau_b = path.flow_time(a), path.flow_time(b)

    def end(w):
        return MIXTURE.flow(w * (path.alpha(a) + a)[:, None], path, a, b) / (path.alpha(b) + b)[:, None]

    def chords(x, sigma):
        time, w = path.flow_time(sigma), x / expand(path.alpha(sigma) + sigma, x)
        first = on_lines(w, (tau_a - time) / (tau_a - tau_b), end)
        return w - (time / (tau_a - tau_b))[:, None] * (first - end(first))

    exact, teacher = (
        as_model(f, path, kind) for f in (chords, lambda x, sigma: MIXTURE.denoise(x, path, sigma))
    )
    assert windows(exact, path, x_a, x_b, a, b, share, numbers(x_a)).mean() < 1e-10 * MIXTURE.variance
    assert windows(teacher, path, x_a, x_b, a, b, share, numbers(x_a)).mean() > 1e-2 * MIXTURE.variance


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_pairs_differ_by_a_weight_on_the_error_of_x0(path, generator):
    x0, noise, wrong = (random(generator, 50, 4) for _ in range(3))
    time = 0.02 + 0.96 * torch.rand(50, generator=generator, dtype=torch.float64)
    sigma, error = path.at_flow_time(time), squared_error(wrong, x0)
    alpha = path.alpha(sigma)
    expected = {
        "x0": 1,
        "velocity": 1 / time**2,
        "epsilon": (alpha / sigma) ** 2,
        "v": 1 + (alpha / sigma) ** 2,
    }
    for kind, factor in expected.items():
        assert torch.allclose(
            pairs(lambda x, sigma, condition: wrong, path, x0, noise, sigma, numbers(x0), kind),
            factor * error,
            rtol=1e-9,
        )


def test_every_path_has_the_same_loss_at_the_same_flow_time(generator):
    x0, noise, other = (random(generator, 50, 4) for _ in range(3))
    share, found = torch.rand(50, generator=generator, dtype=torch.float64), []
    tau_a, tau_b = torch.full_like(share, 0.9), torch.full_like(share, 0.4)
    for path in PATHS.values():

        def student(x, sigma, condition, path=path):
            return torch.sin(3 * x / expand(path.alpha(sigma) + sigma, x)) + path.flow_time(sigma)[:, None]

        a, b = path.at_flow_time(tau_a), path.at_flow_time(tau_b)
        x_a, x_b = noised(x0, noise, path, a), noised(other, noise, path, b)
        found.append(
            torch.stack(
                [
                    pairs(
                        student,
                        path,
                        x0,
                        noise,
                        path.at_flow_time(0.1 + 0.8 * share),
                        numbers(x0),
                        "velocity",
                    ),
                    windows(student, path, x_a, x_b, a, b, share, numbers(x_a)),
                ]
            )
        )
    assert torch.allclose(found[0], found[1], rtol=1e-9) and torch.allclose(found[0], found[2], rtol=1e-9)
    assert found[0].min() > 1e-3


# ---- the gradient --------------------------------------------------------------------------------

OBJECTIVES = {
    "consistency": lambda student, target, x, y, t, s, e: consistency(
        student, target, FLOW, x, y, t, s, e, numbers(x)
    ),
    "training": lambda student, target, x, y, t, s, e: consistency_training(
        student, target, FLOW, x, y, t, s, e, numbers(x)
    ),
    "pairs": lambda student, target, x, y, t, s, e: pairs(student, FLOW, x, y, t, numbers(x), "velocity"),
    "windows": lambda student, target, x, y, t, s, e: windows(student, FLOW, x, y, t, s, e, numbers(x)),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_reaches_the_student_only(objective, generator):
    """Not its EMA where that is the target, nor itself a second time where it is its own."""
    student, average = (torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
    x, y, t = (
        random(generator, 20, 4),
        random(generator, 20, 4),
        torch.linspace(0.5, 1, 20, dtype=torch.float64),
    )
    s, e = 0.8 * t, torch.tensor([0.0, 0.4]).double().repeat(10)
    found = []
    for target in (average, student):
        average.load_state_dict(student.state_dict())
        student.zero_grad()
        asked = [lambda x, sigma, condition, f=f: f(x) for f in (student, target)]
        OBJECTIVES[objective](*asked, x, y, t, s, e).mean().backward()
        found.append(student.weight.grad)
    assert found[0].isfinite().all() and found[0].abs().sum() > 0
    assert average.weight.grad is None and torch.equal(*found)


# ---- the solver ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("2m", 2)])
@pytest.mark.parametrize("name", MODELS)
def test_substeps_have_the_solvers_order(name, solver, order, generator):
    """Global error, from the largest level on: twice the substeps divide it by 2^order."""
    path, kind = MODELS[name]
    teacher = as_model(lambda x, sigma: MIXTURE.denoise(x, path, sigma), path, kind)
    t = levels(name)[0].expand(32)
    s = path.at_flow_time(0 * t + 0.4)
    x = t[:, None] * random(generator, 32, 4)
    errors = [
        float(
            (
                solver_step(teacher, x, path, t, s, numbers(x), solver=solver, substeps=n)
                - MIXTURE.flow(x, path, t, s)
            ).norm()
        )
        for n in (32, 64)
    ]
    assert 2 ** (order - 0.3) < errors[0] / errors[1] < 2 ** (order + 1)


def test_an_unknown_solver_is_refused_by_name():
    with pytest.raises(ValueError, match="solver must be one of euler, heun, 2m, got 'dpm'"):
        solver_step(
            None, torch.zeros(1, 4), FLOW, torch.ones(1), torch.zeros(1), torch.zeros(1).long(), solver="dpm"
        )


# ---- draws ---------------------------------------------------------------------------------------


def uneven(u):
    """A loss that lives in two of the bins."""
    return 0.02 + ((u > 3 / BINS) & (u < 5 / BINS)).double()


def learnt(generator):
    """Adaptive times that know `uneven`."""
    times = Times("adaptive")
    u, weight = times.draw(2000, generator)
    assert (weight == 1).all()  # nothing is known yet
    times.learn(u, uneven(u))
    return times


def test_adaptive_draws_are_unbiased_with_less_variance(generator):
    times, count = learnt(generator), 20_000
    u, weight = times.draw(count, generator)
    assert u.min() >= 0 and u.max() <= 1
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for function in (uneven, lambda u: torch.cos(3 * u.double())):
        values = weight * function(u)
        assert abs(values.mean() - function(grid).mean()) < 4 * values.std() / count**0.5
    assert (weight * uneven(u)).var() < 0.3 * uneven(grid).var()


def test_logit_normal_draws_have_their_density(generator):
    times, count, bins = Times("logit-normal"), 100_000, 25
    u, weight = times.draw(count, generator)
    middle = (torch.arange(bins * 200, dtype=torch.float64) + 0.5) / (bins * 200)
    share = times.density(middle).reshape(bins, 200).mean(1) / bins
    found = torch.histc(u.double(), bins, 0, 1) / count
    assert ((found - share).abs() < 5 * (share / count).sqrt() + 1e-6).all() and (weight == 1).all()
    assert abs(share.sum() - 1) < 1e-3 and share.max() > 2 * share[2]


@pytest.mark.parametrize("most", [40, 50, 1280])
def test_levels_double_as_in_equation_14(most):
    updates = 800
    stage = int(updates / (math.log2(most // 10) + 1))
    found = [levels_at(k, updates, most) for k in range(updates)]
    assert found == [min(10 * 2 ** (k // stage), most) for k in range(updates)]
    assert found[0] == 10 and found[-1] == most and levels_at(0, updates, 8) == 8


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal", "adaptive"])
@pytest.mark.parametrize(
    "name, kind, path",
    [("eps-MSE", "velocity", FLOW), ("min-SNR", "v", VARIANCE_PRESERVING), ("sigmoid", "x0", FLOW)],
)
def test_the_whole_run_follows_the_named_weighting(name, kind, path, distribution, generator):
    """What the draws lay on two intervals of lambda, in units of the error of eps, is the integral of w over
    them.
    """
    times, count = learnt(generator) if distribution == "adaptive" else Times(distribution), 100_000
    sigma_at = (lambda u: 1 - u) if path is FLOW else (lambda u: torch.cos(u * math.pi / 2))
    weigh = Weighting(name, kind, path, sigma_at, times)
    u, weight = times.draw(count, generator)
    lam = path.log_snr(sigma_at(u.double()))
    laid = weight * weigh(u) * mse_factor(kind, lam)
    found, wanted, spread = [], [], 0.0
    for low, high in ((-2.0, -0.5), (0.0, 2.0)):
        inside = torch.where((lam > low) & (lam < high), laid, 0.0)
        found.append(inside.mean())
        spread += (inside.std() / inside.mean()) ** 2 / count
        wanted.append(weighting(name, torch.linspace(low, high, 1001)).mean() * (high - low))
    assert abs(found[0] / found[1] / (wanted[0] / wanted[1]) - 1) < 4 * spread**0.5 < 0.1
    assert (Weighting("none", kind, path, sigma_at, times)(u) == 1).all()
