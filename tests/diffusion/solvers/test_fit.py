"""Linear solvers and their fit: rows equal the kernel, derivatives equal automatic ones, fits gain on unseen
noise or say so.
"""

import dataclasses
import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import sample, solve
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.solvers import linear, tangents
from fewstep.diffusion.solvers.fit import Fitted, fit, starting
from fewstep.diffusion.solvers.linear import LinearSolver, classical, lengthened
from fewstep.diffusion.solvers.refine import moved, parameters
from fewstep.diffusion.solvers.trajectories import Trajectories, by_dynamic_programming
from oracles.mixture import line_mixture

RANGES = {
    "flow": (FLOW, grids.flow_sigma()),
    "variance exploding": (
        VARIANCE_EXPLODING,
        grids.discrete_sigma(torch.logspace(-2, 1.3, 500, dtype=torch.float64)),
    ),
}


@pytest.fixture(params=RANGES)
def case(request):
    """(path, sigma_of, denoiser of a mixture)."""
    path, sigma_of = RANGES[request.param]
    mixture = line_mixture(4)
    return path, sigma_of, lambda x, sigma: mixture.denoise(x, path, sigma)


def trajectories(case, count, generator, steps=60):
    path, sigma_of, denoiser = case
    levels = grids.grid("auto", steps, sigma_of, path, dimension=4)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64) * float(
        (levels[0] ** 2 + path.alpha(levels[0]) ** 2).sqrt()
    )
    states, predictions = [x], []
    for state in sample(denoiser, x, levels, path, order=3):
        states.append(state.x)
        predictions.append(state.x0)
    return Trajectories(
        path, levels, torch.stack(states, 1), torch.stack(predictions, 1), lambda x, s, which: denoiser(x, s)
    )


def rmse(a, b):
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("order, corrector", [(1, False), (2, False), (2, True), (3, True)])
def test_classical_rows_are_the_kernel(case, generator, order, corrector):
    path, sigma_of, denoiser = case
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    levels = grids.grid("auto", 6, sigma_of, path)
    ours = linear.solve(classical(levels, path, order, corrector), denoiser, x)
    assert rmse(ours, solve(denoiser, x, levels, path, order=order, corrector=corrector)) < 1e-13


@pytest.mark.parametrize(
    "change, word",
    [
        ({"sigmas": (1.0, 0.5, 0.1)}, "end at 0"),
        ({"sigmas": (1.0, 0.5, 0.6)}, "descend"),
        ({"sigmas": (1.0, math.nan, 0.0)}, "finite"),
        ({"rows": ((0.5, 0.5),)}, "row for each"),
        ({"rows": ((0.5, 0.5, 0.1), (0.0, 1.0))}, "step 1"),
        ({"rows": ((0.5, math.inf), (0.0, 1.0))}, "finite"),
    ],
)
def test_a_solver_that_is_none_is_refused(change, word):
    good = {"sigmas": (1.0, 0.5, 0.0), "rows": ((0.5, 0.5), (0.0, 1.0))}
    assert LinearSolver(**good).steps == 2
    with pytest.raises(ValueError, match=word):
        LinearSolver(**{**good, **change})


def test_a_lengthened_solver_gives_the_same(case, generator):
    path, sigma_of, denoiser = case
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    solver = classical(grids.grid("uniform", 3, sigma_of, path), path, 3)
    longer = lengthened(lengthened(lengthened(solver, path), path), path)
    assert longer.steps == 6 and set(solver.sigmas) < set(longer.sigmas)
    assert torch.allclose(linear.solve(longer, denoiser, x), linear.solve(solver, denoiser, x), atol=1e-12)


@pytest.mark.parametrize("rank, within", [(4, 1e-3), (2, 0.7)])
def test_tangents_are_the_derivatives(case, generator, monkeypatch, rank, within):
    """Of every weight and level, against automatic differentiation of the same run: with as many copies as
    samples have numbers exactly, with fewer nearly, for the median parameter.
    """
    monkeypatch.setattr(tangents, "LEVEL_STEP", 1e-5)
    path, sigma_of, denoiser = case
    solver = classical(grids.grid("auto", 4, sigma_of, path, dimension=4), path)
    x, asked = 2 * torch.randn(16, 4, generator=generator, dtype=torch.float64), 0

    def ask(x, sigma, kinds):
        nonlocal asked
        asked += len(x) // 16
        return [denoiser(x, sigma)]

    trace = list(linear.follow(solver, ask, x))
    asked = 0
    found = tangents.tangents(solver, path, ask, x, trace, 1e-5, rank)
    assert asked <= 3 * (rank + 1)  # the first step has no state that changes
    names, start = found.parameters, parameters(solver, found.parameters, path)

    def of(values):
        x_now, held, at, states = x, [], dict(zip(names, values)), []
        for i in range(4):
            sigma = path.sigma(at[i, None]) if i else torch.tensor(solver.sigmas[0], dtype=torch.float64)
            held.insert(0, denoiser(x_now, sigma))
            x_now = sum(at[i, place] * term for place, term in enumerate([x_now, *held]))
            states.append(x_now)
        return torch.stack(states)

    exact = torch.autograd.functional.jacobian(of, start).movedim(-1, 0)  # (P, steps, B, D)
    assert torch.allclose(of(start)[-1], trace[-1].x, atol=1e-12)
    off = []
    for number, theirs in enumerate(exact):
        one = torch.zeros(len(names), dtype=torch.float64)
        one[number] = 1
        ours = torch.stack(found.moved(one))
        off.append(float((ours - theirs).norm() / theirs.norm().clamp_min(1e-9)))
    assert sorted(off)[len(off) // 2] < within and (rank < 4 or max(off) < within), dict(zip(names, off))


def test_moves_keep_the_levels_descending(case):
    path, sigma_of, _ = case
    solver = classical(grids.grid("auto", 4, sigma_of, path), path)
    names = [(2, None), (3, 1)]
    far = moved(solver, names, torch.tensor([50.0, 0.25]), path)
    assert far.sigmas[1] > far.sigmas[2] > far.sigmas[3] and far.sigmas[2] < solver.sigmas[2]
    assert far.rows[3][1] == pytest.approx(solver.rows[3][1] + 0.25)
    assert moved(solver, names, torch.tensor([0.0, math.nan]), path) is None


def test_dynamic_programming_finds_the_best_of_all_grids(case, generator):
    """Against every choice of two levels between the ends, by first-order steps from the trajectory."""
    data = trajectories(case, 8, generator, 12)
    found = by_dynamic_programming(data, 3, torch.arange(len(data.states)))
    path, levels = data.path, data.sigmas

    def cost(places):
        total = 0.0
        for i, j in zip(places, places[1:]):
            ends = [float(levels[i]), float(levels[j]), 0.0] if levels[j] > 0 else [float(levels[i]), 0.0]
            step = classical(ends, path, 1).rows[0]
            off = step[0] * data.states[:, i] + step[1] * data.predictions[:, i] - data.states[:, j]
            total += float(off.square().mean(1).sqrt().mean() / (path.alpha(levels[j]) + levels[j]))
        return total

    every = [[0, i, j, 12] for i in range(1, 12) for j in range(i + 1, 12)]
    assert found[0] == 0 and found[-1] == 12
    assert cost(found) == pytest.approx(min(map(cost, every)), rel=1e-5)
    with pytest.raises(ValueError, match="from 1 to 12"):
        by_dynamic_programming(data, 13, torch.arange(4))


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_a_fit_gains_on_noise_it_has_not_seen(case, generator, steps):
    """At least a third of the error of the automatic choice is gone (in one step, which has two weights, a
    quarter).
    """
    path, sigma_of, denoiser = case
    data, unseen = trajectories(case, 64, generator), trajectories(case, 128, generator)
    starts = [grids.grid(name, steps, sigma_of, path) for name in ("auto", "uniform", "cosine")]
    found = list(fit(data, starting(data, starts), 4000))
    assert found[0].stage == "classical" and found[0].solver == found[0].auto
    best = found[-1]
    reached = linear.solve(best.solver, denoiser, unseen.states[:, 0])
    auto = linear.solve(best.auto, denoiser, unseen.states[:, 0])
    assert best.auto == classical(starts[0], path)
    left = rmse(reached, unseen.states[:, -1]) / rmse(auto, unseen.states[:, -1])
    assert left < (0.75 if steps == 1 else 0.67)


def test_a_fit_asks_no_more_than_it_may(case, generator):
    data, asked = trajectories(case, 32, generator), 0
    path, sigma_of, denoiser = case

    def counted(x, sigma, which):
        nonlocal asked
        asked += len(x)
        return denoiser(x, sigma)

    data = Trajectories(data.path, data.sigmas, data.states, data.predictions, counted)
    for limit in (600, 2000):
        asked = 0
        *_, last = fit(data, [classical(grids.grid("auto", 4, sigma_of, path), path)], limit)
        assert last.evaluations <= asked <= limit


def test_without_a_gain_the_fit_says_so(generator):
    """A model whose answer never changes is sampled exactly by every classical solver: nothing is left to
    gain.
    """
    point = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    path, sigma_of = RANGES["flow"]
    data = trajectories((path, sigma_of, lambda x, sigma: point.expand_as(x) + 0 * x), 16, generator)
    data.states[:, -1] += 1e-3 * torch.randn(
        16, 4, generator=generator, dtype=torch.float64
    )  # ends that no solver can reach
    *_, last = fit(data, [classical(grids.grid("auto", 4, sigma_of, path), path)])
    assert last.solver == last.auto


def found_before(solver, auto, own, told=None):
    """What a fit for fewer calls came to."""
    told = own if told is None else told
    return Fitted(
        solver, auto, own, chosen=own / 2, base=2 * own, evaluations=0, stage="", tried=1, told=told
    )


def test_what_was_found_for_fewer_calls_is_told_by_others_than_chose_it(case, generator):
    path, sigma_of, _ = case
    data = trajectories(case, 16, generator)
    auto, known = (classical(grids.grid("auto", steps, sigma_of, path), path) for steps in (2, 12))
    own = torch.linspace(0.1, 0.2, len(data.split()[1]), dtype=torch.float64)
    found = next(fit(data, [auto], 0.0, shorter=[found_before(known, auto, own)]))
    assert found.solver == known and torch.equal(found.own, own)
    assert not torch.equal(found.chosen, own)


def test_what_was_left_for_auto_of_as_many_calls_is_not_counted_against_more(case, generator):
    """In some folds the automatic solver would have been chosen in its place: with more calls that is another
    one, and those folds tell nothing of the solver that was found.
    """
    path, sigma_of, _ = case
    data = trajectories(case, 16, generator)
    auto, known = (classical(grids.grid("auto", steps, sigma_of, path), path) for steps in (3, 2))
    base = next(fit(data, [auto], 0.0)).base
    for told, handed_on in ((0.9, known), (1.1, auto)):
        earlier = found_before(known, known, 1.05 * base, told * base)
        found = next(fit(data, [auto], 0.0, shorter=[earlier]))
        assert found.solver == handed_on
        assert torch.equal(found.own, earlier.own if handed_on == known else base)
        assert torch.equal(found.told, earlier.told if handed_on == known else base)


def test_folds_that_would_have_chosen_auto_are_told_by_the_solver_itself(case, generator):
    data = trajectories(case, 32, generator)
    path, sigma_of, _ = case
    *_, found = fit(data, [classical(grids.grid("auto", 3, sigma_of, path), path)], 32 * 60)
    left = found.own == found.base
    assert torch.equal(found.told[~left], found.own[~left])
    assert torch.equal(found.told[left], found.chosen[left])


def test_a_solver_of_fewer_calls_that_is_handed_on_has_the_errors_that_were_told_of_it(case, generator):
    """Although, without the trajectories where it is best, another would have been chosen."""
    path, sigma_of, _ = case
    data = trajectories(case, 32, generator)
    auto, known = (classical(grids.grid("auto", steps, sigma_of, path), path) for steps in (3, 2))

    def fitted(told):
        *_, last = fit(data, [auto], 32 * 60, shorter=[found_before(known, auto, told)])
        return last

    far = torch.ones(len(data.split()[1]), dtype=torch.float64)
    longer = fitted(far)
    fold = torch.arange(len(far)) % 8
    best = max(range(8), key=lambda k: float(longer.chosen[fold == k].sum()))
    told = torch.where(fold == best, 0.0, 1.02 * longer.chosen.double())
    found = fitted(told)
    assert longer.stage == "refined" and (found.stage, found.solver) == ("shorter", known)
    assert found.tried == longer.tried and torch.equal(found.own, told)


@pytest.mark.parametrize("lost", [5, 1], ids=["a fifth", "all"])
def test_predictions_that_are_not_finite_are_left_out(generator, lost):
    path, sigma_of = RANGES["flow"]
    mixture = line_mixture(4)
    data = trajectories((path, sigma_of, lambda x, sigma: mixture.denoise(x, path, sigma)), 64, generator)

    def denoise(x, sigma, which):
        out = mixture.denoise(x, path, sigma)
        return torch.where(((which % lost == 0) & (sigma < 0.6))[:, None], torch.nan, out)

    levels = [grids.grid("auto", 3, sigma_of, path, dimension=4)]
    data = dataclasses.replace(data, denoise=denoise)
    *_, last = fit(data, starting(data, levels), 64 * 200)
    if lost == 1:
        assert last.solver == last.auto and last.evaluations < 64 * 20
        return
    ok = torch.tensor([number % lost != 0 for number in data.split()[1].tolist()])
    assert last.stage == "refined" and last.own[ok].mean() < 0.8 * last.base[ok].mean()


def test_too_few_trajectories_are_refused(case, generator):
    with pytest.raises(ValueError, match="trajectories must be 4 or more"):
        next(fit(trajectories(case, 3, generator), [classical([1.0, 0.5, 0.0], case[0])]))
