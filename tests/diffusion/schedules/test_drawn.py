"""Drawn schedules: the curve goes through its points and never rises, and what is no curve is refused by
name.
"""

import math
import random

import pytest
import torch
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.schedules import drawn, grids

F64 = torch.float64


def curve(points, count=1001):
    return drawn.curve(drawn.control_points(points), torch.linspace(0, 1, count, dtype=F64))


@pytest.mark.parametrize("points", [[], [[0.25, 0.75], [0.5, 0.5]], [[0, 1], [0.3, 0.7], [1, 0]]])
def test_points_on_the_diagonal_are_the_uniform_grid(points):
    for steps, denoise in ((1, 1.0), (4, 1.0), (7, 0.4)):
        ours = drawn.grid(points, steps, grids.flow_sigma(3.0), denoise)
        assert torch.allclose(
            ours, grids.grid("uniform", steps, grids.flow_sigma(3.0), FLOW, denoise), atol=1e-12
        )


def test_the_curve_is_the_monotone_interpolation_of_scipy():
    interpolate = pytest.importorskip("scipy.interpolate")
    r = random.Random(0)
    for count in (1, 2, 5, 12):
        shares, times = (
            sorted(r.random() for _ in range(count)),
            sorted((r.random() for _ in range(count)), reverse=True),
        )
        points = list(zip(shares, times))
        known = interpolate.PchipInterpolator([0.0, *shares, 1.0], [1.0, *times, 0.0])
        assert torch.allclose(
            curve(points), torch.as_tensor(known(torch.linspace(0, 1, 1001, dtype=F64).numpy())), atol=1e-12
        )


def test_the_curve_falls_through_its_points():
    r = random.Random(1)
    for _ in range(50):
        shares = sorted(r.uniform(0.01, 0.99) for _ in range(6))
        times = sorted((r.uniform(0.01, 0.99) for _ in range(6)), reverse=True)
        points = [(0.0, 1.0)]
        for share, time in zip(shares, times):
            if share - points[-1][0] > 1e-3 and points[-1][1] - time > 1e-3:
                points.append((share, time))
        assert len(points) > 3
        line = curve(points)
        assert line[0] == 1 and line[-1] == 0 and (line.diff() <= 0).all()
        at = drawn.curve(drawn.control_points(points), torch.tensor([s for s, _ in points], dtype=F64))
        assert torch.allclose(at, torch.tensor([t for _, t in points], dtype=F64))
        for steps in (1, 2, 30, 400):
            sigmas = drawn.grid(points, steps, grids.flow_sigma(), 1.0)
            assert (
                sigmas.shape == (steps + 1,)
                and (sigmas.diff() < 0).all()
                and sigmas[0] == 1
                and sigmas[-1] == 0
            )


def test_steps_crowd_where_the_curve_is_flat():
    late = drawn.grid([[0.2, 0.2]], 10, grids.flow_sigma())
    assert int((late < 0.3).sum()) > int((late > 0.3).sum())


@pytest.mark.parametrize(
    "points, words",
    [
        ("text", "list of"),
        ({"a": 1}, "list of"),
        ([1, 2], "list of"),
        ([[0.5]], "list of"),
        ([[0.5, "0.5"]], "list of"),
        ([[0.5, True]], "list of"),
        ([[math.nan, 0.5]], "list of"),
        ([[0.5, math.inf]], "list of"),
        (None, "list of"),
        ([[0.5, 0.5], [0.4, 0.4]], r"\[0.5, 0.5\] and then \[0.4, 0.4\]"),
        ([[0.5, 0.5], [0.6, 0.5]], r"\[0.6, 0.5\]"),
        ([[0.5, 0.5], [0.6, 0.7]], r"\[0.6, 0.7\]"),
        ([[0.0, 0.5]], r"\[0, 1\] and then \[0, 0.5\]"),
        ([[0.5, 1.2]], r"\[0.5, 1.2\]"),
        ([[0.5, -0.1]], r"the end"),
        ([[1.5, 0.5]], "the end"),
        ([[i / 100, 1 - i / 100] for i in range(1, 90)], "at most 64, got 89"),
    ],
    ids=str,
)
def test_what_is_no_curve_is_refused_by_name(points, words):
    with pytest.raises(ValueError, match="^points must.*" + words):
        drawn.grid(points, 4, grids.flow_sigma())


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="steps"):
        drawn.grid([], 0, grids.flow_sigma())
    with pytest.raises(ValueError, match="denoise"):
        drawn.grid([], 4, grids.flow_sigma(), 0.0)
