"""What is told of a solver's error holds on new noise, and what is chosen is not the luckiest of many."""

import dataclasses

import pytest
import torch
from fewstep.diffusion.solvers.accuracy import accuracy, share_interval, student, times_nearer
from fewstep.diffusion.solvers.choice import Candidate, chosen, is_nearer
from fewstep.diffusion.solvers.linear import LinearSolver

BETWEEN = 1.4  # of two pictures whose numbers have nothing to do with one another


@pytest.mark.parametrize(
    "probability, freedom, value",
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 5, 2.571), (0.975, 23, 2.069), (0.9995, 10, 4.587)],
)
def test_students_quantiles_are_the_tables(probability, freedom, value):
    assert student(probability, freedom) == pytest.approx(value, rel=0.01)


def test_the_share_of_nothing_seen_has_an_upper_limit():
    low, high = share_interval(0, 24)
    assert low == 0 and 0.1 < high < 0.15  # z^2 / (n + z^2)
    assert share_interval(24, 24) == (pytest.approx(1 - high), 1.0)


def distances(count, away, spread, generator):
    """Lognormal, a share of them at another picture."""
    near = 0.02 * (spread * torch.randn(count, generator=generator)).exp()
    elsewhere = torch.rand(count, generator=generator) < away
    return torch.where(elsewhere, BETWEEN * (0.8 + 0.4 * torch.rand(count, generator=generator)), near)


@pytest.mark.parametrize(
    "away, spread", [(0.0, 0.3), (0.0, 1.2), (0.02, 0.7), (0.1, 0.7), (0.3, 1.0), (0.9, 0.7), (1.0, 0.7)]
)
def test_the_interval_holds_the_mean_on_new_noise(away, spread, generator):
    """In at least nine of ten draws of 24 held-out noises, the mean over 256 others."""
    held = 0
    for _ in range(200):
        told = accuracy(distances(24, away, spread, generator), BETWEEN)
        held += told.low <= float(distances(256, away, spread, generator).mean()) <= told.high
    assert held >= 180


def test_the_interval_takes_in_what_was_chosen_too(generator):
    """Solvers chosen by half of the samples may all be worse than what all of them chose."""
    own = distances(24, 0.0, 0.3, generator)
    worse = accuracy(2 * own, BETWEEN)
    told = accuracy(2 * own, BETWEEN, own)
    assert (told.mean, told.median, told.high) == (worse.mean, worse.median, worse.high)
    assert told.low == accuracy(own, BETWEEN).low < worse.low
    assert accuracy(own, BETWEEN, 2 * own).high == worse.high


def test_intervals_end_where_pictures_do():
    """Two samples of twenty-four at other pictures do not make the mean endless."""
    told = accuracy(torch.tensor([0.02] * 22 + [0.8, 1.6]), 1.4)
    print(told)
    assert told.low < told.mean < told.high < 1.4
    assert accuracy(torch.tensor([0.02, 0.2]), 1.4).high < 2 * 1.4
    assert accuracy(torch.tensor([0.02] * 22 + [40.0, 50.0]), 1.4).high > 4  # where a solver runs away


@pytest.mark.parametrize("away", range(5))
def test_every_interval_is_finite(away):
    """One near sample tells no spread, and is still known to be near."""
    told = accuracy(torch.tensor([BETWEEN] * away + [0.1 * BETWEEN] * (4 - away)), BETWEEN)
    assert 0 <= told.low <= told.mean + 1e-6 and told.mean <= told.high < 2 * BETWEEN


def test_a_solver_that_is_far_off_now_and_then_is_no_nearer(generator):
    """How far does not count in the test, but no solver is handed on that is farther in the mean."""
    auto = distances(24, 0, 0.3, generator) + 1.2
    own = torch.full((24,), 0.5)
    assert is_nearer(own, auto)
    own[:4] = 50.0
    assert not is_nearer(own, auto)


def test_the_best_of_several_lengths_is_the_nearest(generator):
    """Losses of longer runs weigh the way more, so that they say nothing of shorter ones."""
    base = distances(24, 0, 0.3, generator)

    def of(steps, distance, loss):
        grid = tuple(1 - k / steps for k in range(steps)) + (0.0,)
        rows = tuple((0.0,) * (k + 1) + (1.0,) for k in range(steps))
        return Candidate(LinearSolver(grid, rows), distance * base, loss * base)

    auto, short, long, worse = of(4, 1, 1), of(4, 0.4, 0.5), of(6, 0.2, 0.7), of(6, 0.1, 0.8)
    assert chosen([auto], [short, long, worse]) is long


def test_a_typical_gain_holds_its_ratio(generator):
    held = 0
    for _ in range(200):
        base = distances(24, 0.05, 0.7, generator)
        own = base * 0.5 * (0.4 * torch.randn(24, generator=generator)).exp()
        _, low, high = times_nearer(own, base)
        held += low <= 2 <= high
    assert held >= 180


def candidate(distances):
    return Candidate(LinearSolver((1.0, 0.0), ((0.0, 1.0),)), distances, distances)


def test_the_luckiest_of_many_is_not_chosen(generator):
    """Of 20 that are as near as auto one is always nearer on 24 noises; auto is left for it in one of ten
    draws at most. One that is twice as near is found.
    """
    wrong = 0
    for _ in range(60):
        auto = candidate(distances(24, 0, 0.7, generator))
        lucky = [
            candidate(auto.distances * (0.3 * torch.randn(24, generator=generator)).exp()) for _ in range(20)
        ]
        wrong += chosen([auto], lucky) is not auto
        better = candidate(auto.distances * 0.5 * (0.3 * torch.randn(24, generator=generator)).exp())
        assert chosen([auto], [*lucky, better]) is better
    assert wrong <= 6


def test_many_alike_give_luck_few_chances(generator):
    """A gain that is beyond chance for one solver mostly is so among twenty that are nearly the same, and
    mostly is not among twenty that differ from each other.
    """
    alone = alike = apart = 0
    for _ in range(60):
        auto = distances(20, 0, 0.7, generator)
        own = auto * (0.55 * torch.randn(20, generator=generator) - 0.3).exp()
        same = [own * (0.01 * torch.randn(20, generator=generator)).exp() for _ in range(20)]
        other = [auto * (0.55 * torch.randn(20, generator=generator)).exp() for _ in range(20)]
        alone += is_nearer(own, auto)
        alike += is_nearer(own, auto, [own, *same])
        apart += is_nearer(own, auto, [own, *other])
    print(alone, alike, apart)
    assert alike >= 0.8 * alone > 0 and apart <= 0.5 * alone


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 24])
def test_chance_is_what_the_test_says(count):
    """Of solvers that are no nearer, some alike and some not, one is chosen in no more than 5 % of cases
    (here 7, for chance), also of few samples.
    """
    generator = torch.Generator().manual_seed(count)
    wrong, runs = 0, 400
    for _ in range(runs):
        auto = distances(count, 0, 0.7, generator)
        shared = torch.randn(count, generator=generator)
        tried = [
            auto * (0.3 * (r * shared + (1 - r**2) ** 0.5 * torch.randn(count, generator=generator))).exp()
            for r in (0.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.99, 0.99, 0.99)
        ]
        wrong += any(is_nearer(own, auto, tried) for own in tried)
    print(count, wrong / runs)
    assert wrong <= 0.07 * runs


def test_no_gain_is_claimed_of_what_chose_it(generator):
    """The solver of fewer calls goes by what others told of it, not by the noises that chose it."""
    auto = candidate(distances(24, 0, 0.3, generator))
    lucky = candidate(0.9 * auto.distances)
    told = dataclasses.replace(lucky, distances=1.1 * auto.distances)
    assert chosen([auto, lucky], []) is lucky and chosen([auto, told], []) is auto


def test_nothing_farther_than_fewer_calls_is_chosen(generator):
    """What is nearer than auto and not than the solver of fewer calls is left for that."""
    auto, shorter, found = (
        candidate(scale * distances(24, 0, 0.3, generator).sort()[0]) for scale in (1, 0.5, 0.7)
    )
    assert is_nearer(found.distances, auto.distances)
    assert chosen([auto, shorter], [found]) is shorter
    assert not is_nearer(torch.tensor([0.1]), torch.tensor([0.2]))  # one noise tells nothing
