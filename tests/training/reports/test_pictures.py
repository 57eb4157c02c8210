"""The pictures of a fit and a run: what they must draw whatever the numbers are."""

import math

import numpy as np
import pytest
import torch
from fewstep.training.reports import pictures


def row(steps, fitted, auto, median, gained=True):
    distances = {"fitted": fitted, "auto": auto, "median": median}
    return {"count": steps, "auto_at": steps, **distances, "gained": gained}


def drawn(picture, colour):
    """How many pixels of the plot, beside the names at its right edge, have that colour."""
    return int((np.asarray(picture)[34:, 62:500] == colour).all(-1).sum())


def test_three_lines_and_rings_where_there_was_no_gain():
    rows = [row(2, 0.4, 0.5, 0.4, False), row(4, 0.1, 0.3, 0.2)]
    picture = pictures.fit_report(rows)
    assert all(drawn(picture, colour) > 50 for colour in pictures.COLOURS[:3])
    assert drawn(picture, pictures.MUTED) > drawn(
        pictures.fit_report([rows[0] | {"gained": True}, rows[1]]), pictures.MUTED
    )


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(4, 0.0, 0.0, 0.0)],
        [row(4, math.nan, math.inf, 0.2)],
        [row(1, 0.2, 0.2, 0.2, False)],
        [row(2, 0.0, math.nan, math.inf, False), row(4, 0.1, 0.2, 0.3)],
    ],
)
def test_zeros_and_what_is_not_finite_do_not_break_it(rows):
    assert pictures.fit_report(rows).size == (760, 340)


def test_a_single_step_count_is_in_the_middle():
    blue = (np.asarray(pictures.fit_report([row(4, 0.1, 0.3, 0.2)]))[60:] == pictures.COLOURS[0]).all(-1)
    assert abs(np.nonzero(blue)[1].mean() - (62 + 744) / 2) < 3


def test_a_run_s_report_puts_the_curves_where_there_is_room():
    history = [(1, 0.5), (2, 0.25)], [(0, 1.0), (2, 0.5)]
    for side, beside in ((128, True), (512, False)):
        tiles = pictures.grid(
            {head: torch.zeros(4, 3, side, side) for head in ("teacher", "before", "now")},
            ["1", "2", "3", "4"],
        )
        report = pictures.run_report(tiles, *history)
        assert (report.width > tiles.width and report.height == tiles.height) == beside
        assert (report.height > tiles.height and report.width == tiles.width) != beside
        corner = report.crop((tiles.width, 0, *report.size) if beside else (0, tiles.height, *report.size))
        assert set(pictures.COLOURS[:2]) <= {colour for _, colour in corner.getcolors(10**6)}
