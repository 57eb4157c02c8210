"""Distances of distributions and diversity: unbiased, with intervals that hold what they promise."""

import math

import pytest
import torch
from fewstep.training.reports.distances import (
    UNKNOWN,
    Estimate,
    distance,
    diversity,
    energy_pairs,
    known_pairs,
    rmse,
    scale_of,
    share,
)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_pairs_are_the_energy_distance_written_out(generator):
    x, y = normal(generator, 7, 3), normal(generator, 7, 3) + 1

    def mean(values):
        return sum(values) / len(values)

    places = [(i, j) for i in range(7) for j in range(7) if i != j]
    across, of_x, of_y = (
        mean([math.dist(a[i].tolist(), b[j].tolist()) for i, j in places])
        for a, b in ((x, y), (x, x), (y, y))
    )
    wanted = (2 * across - of_x - of_y) / of_y
    assert abs(distance(x, y).value - wanted) < 1e-12


def prompted(generator, sets, rows, prompts=4):
    """Sets of pictures (sets, rows, 2) for prompts that come round in turn and differ much."""
    centres = 6 * torch.eye(prompts, dtype=torch.float64)[:, :2]
    return centres[torch.arange(rows) % prompts] + normal(generator, sets, rows, 2)


def test_two_sets_of_one_distribution_are_nothing_apart_in_the_mean(generator):
    """Also where prompts come round in turn, which all pairs of the two sets would make a bias of."""
    found, usual = [], []
    for x, y in zip(prompted(generator, 400, 8), prompted(generator, 400, 8)):
        found.append(distance(x, y).value)
        within = [torch.pdist(part).mean() for part in (x, y)]
        usual.append(float((2 * torch.cdist(x, y).mean() - sum(within)) / within[1]))
    found, usual = torch.tensor(found), torch.tensor(usual)
    error = float(found.std()) / 20
    assert abs(float(found.mean())) < 3 * error < 0.03
    assert float(usual.mean()) < -10 * error  # what the pairs with i = j would have been needed for


@pytest.mark.parametrize("shift, spread", [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.0, 0.7)])
@pytest.mark.parametrize("same_noise", [True, False])
def test_intervals_hold_the_true_distance_nearly_always(generator, shift, spread, same_noise):
    """95 % is what they promise; 200 trials of 16 rows know it to 3 %."""

    def drawn(rows):
        y = normal(generator, rows, 3)
        other = y if same_noise else normal(generator, rows, 3)
        x = other + 0.3 * normal(generator, rows, 3)
        return spread * x / math.sqrt(1.09) + shift, y

    truth = distance(*drawn(2000)).value if (shift, spread) != (0.0, 1.0) else 0.0
    found = [distance(*drawn(16)) for _ in range(200)]
    assert sum(e.low <= truth <= e.high for e in found) >= 180


def test_the_same_noise_makes_the_interval_several_times_shorter(generator):
    y, other = normal(generator, 64, 8), normal(generator, 64, 8)
    near = 0.95 * y + 0.1 * normal(generator, 64, 8)
    far = 0.95 * other + 0.1 * normal(generator, 64, 8)
    short, long = (distance(x, y) for x in (near, far))
    assert (long.high - long.low) > 3 * (short.high - short.low)


def test_a_known_distribution_gives_what_endless_draws_from_it_would(generator):
    known, of = normal(generator, 9, 2), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    prompts = torch.arange(6) % 2
    x = normal(generator, 6, 2) + 1
    exact, within = known_pairs(x, prompts, known, of)
    draws = []
    for _ in range(2000):
        chance = torch.rand(6, generator=generator)
        y = known[torch.where(prompts == 0, 4 * chance, 4 + 5 * chance).long()]
        draws.append(torch.stack([energy_pairs(x, y), torch.cdist(y, y)]))
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(2000)
    off = ~torch.eye(6, dtype=torch.bool)
    assert ((draws.mean(0) - torch.stack([exact, within])).abs() < 5 * error)[:, off].all()


def test_a_prompt_without_a_known_picture_is_named(generator):
    x, known = normal(generator, 6, 2), normal(generator, 4, 2)
    with pytest.raises(ValueError, match=r"these have none: 2"):
        known_pairs(x, torch.arange(6) % 3, known, torch.tensor([0, 0, 1, 1]))


def test_which_of_two_is_nearer_is_known_better_than_how_near_each_is(generator):
    y = normal(generator, 32, 4)
    a, b = 0.9 * y + 0.3, 0.9 * y + 0.4
    within = torch.cdist(y, y)
    nearer = share(energy_pairs(b, y) - energy_pairs(a, y), within)
    each = [distance(x, y) for x in (a, b)]
    assert abs(nearer.value - (each[1].value - each[0].value)) < 1e-12
    assert nearer.low > 0 and nearer.high - nearer.low < each[0].high - each[0].low


def test_diversity_is_the_share_of_the_distance_between_pictures_of_one_prompt(generator):
    y, prompts = normal(generator, 12, 5), torch.arange(12) % 3
    centres = normal(generator, 3, 5)[prompts]
    found = diversity(10 * centres + 0.5 * y, centres + y, prompts)
    assert abs(found.value - 0.5) < 1e-9 and found.high - found.low < 1e-6
    assert diversity(y, y, torch.arange(12)) == UNKNOWN  # no two of one prompt


def test_the_scale_is_the_references_and_heavy_tails_count_little(generator):
    reference = normal(generator, 50, 3) * torch.tensor([1.0, 1e-3, 0.0]) + 5
    scaled = scale_of(reference)
    assert scaled(reference).shape == (50, 2)  # what does not vary is left out
    moved = reference.clone()
    moved[0] += 1000.0
    assert torch.equal(scaled(moved)[1:], scaled(reference)[1:])  # the set judged changes no scale
    assert 6 < float(scaled(moved)[0, 0]) < 8  # log(1 + 1000)


def test_rmse_has_an_interval_and_few_rows_have_none(generator):
    a = normal(generator, 40, 3, 2, 2)
    found = rmse(a, a + 2)
    assert abs(found.value - 2) < 1e-12 and found.high - found.low < 1e-9
    few = rmse(a[:3], a[:3] + 2)
    assert abs(few.value - 2) < 1e-12 and not few.known
    assert share(torch.ones(3, 3), torch.ones(3, 3)) == UNKNOWN and not UNKNOWN.known


def test_intervals_that_touch_are_not_apart():
    assert Estimate(1, 0, 2).apart(Estimate(4, 3, 5)) and Estimate(4, 3, 5).apart(Estimate(1, 0, 2))
    assert not Estimate(1, 0, 2).apart(Estimate(2.5, 2, 3)) and not UNKNOWN.apart(Estimate(1, 0, 2))


@pytest.mark.parametrize("freedom, quantile", [(3, 3.18245), (5, 2.57058), (15, 2.13145), (255, 1.96931)])
def test_an_interval_is_students(freedom, quantile, generator):
    a, b = normal(generator, freedom + 1, 5), normal(generator, freedom + 1, 5)
    without = [float((a[keep] - b[keep]).square().mean().sqrt()) for keep in _each_left_out(freedom + 1)]
    middle = sum(without) / len(without)
    error = math.sqrt(freedom / (freedom + 1) * sum((value - middle) ** 2 for value in without))
    found = rmse(a, b)
    assert (found.high - found.low) / (2 * error) == pytest.approx(quantile, rel=2e-3)


def _each_left_out(rows):
    return [[n for n in range(rows) if n != left] for left in range(rows)]
