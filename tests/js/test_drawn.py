"""The editor's curve and grid are Python's, it reads what Python reads, and its moves keep a curve that
Python takes.
"""

import json
import random

import pytest
import torch
from fewstep.diffusion.schedules import drawn, grids
from fewstep.tests.js.plots import node

F64 = torch.float64
TEXTS = [
    "[]",
    "[[0.5, 0.5]]",
    "[[0, 1], [0.3, 0.6], [1, 0]]",
    "[[0.1, 0.9], [0.1001, 0.8999]]",
    "[[0.1, 0.9], [0.1, 0.8]]",
    "[[0.5, 0.5], [0.6, 0.5]]",
    "[[0.5, 1]]",
    "[[1, 0.5]]",
    "[[0.5, 0]]",
    "[[-0.1, 0.5]]",
    '[["0.5", 0.5]]',
    "[[0.5]]",
    "[0.5, 0.5]",
    "[[0.5, true]]",
    "{}",
    "null",
    "",
    "[[0.5, 0.5]",
    "[[5e-1, 0.25e0]]",
    json.dumps([[i / 65, 1 - i / 65] for i in range(1, 65)]),
    json.dumps([[i / 67, 1 - i / 67] for i in range(1, 67)]),
]
SCRIPT = """
import { curve, drawnGrid, readPoints } from "./js/maths/drawn.js";
import { flowSigma } from "./js/maths/models.js";
import { addPoint, movePoint, removePoint } from "./js/plots/points.js";
const model = { path: "flow", sigmaOf: flowSigma(data.shift) };
let points = readPoints(data.start);
const edited = data.moves.map(([kind, place, share, time]) => {
  const index = Math.floor(place * points.length);
  if (kind === "add") points = addPoint(points, share, time)?.points ?? points;
  else if (!points.length) return points;
  else if (kind === "move") points = movePoint(points, index, share, time);
  else points = removePoint(points, index);
  return points;
});
answer({ read: data.texts.map(readPoints), edited,
  curves: data.curves.map((points) => data.shares.map(curve(points))),
  grids: data.curves.map((points) => data.steps.map((steps) => drawnGrid(points, steps, model, 0.8))) });
"""


def some_points(r, count):
    shares, times = (
        sorted(r.random() for _ in range(count)),
        sorted((r.random() for _ in range(count)), reverse=True),
    )
    return [list(p) for p in zip(shares, times)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    r = random.Random(0)
    moves = [
        (
            r.choice(("add", "add", "move", "move", "move", "remove")),
            r.random(),
            r.uniform(-0.2, 1.2),
            r.uniform(-0.2, 1.2),
        )
        for _ in range(600)
    ]
    asked = {
        "start": "[[0.25, 0.75], [0.5, 0.5]]",
        "shift": 3.0,
        "texts": TEXTS,
        "moves": moves,
        "steps": [1, 2, 7, 30],
        "curves": [some_points(r, n) for n in (0, 1, 2, 5, 20)],
        "shares": [i / 97 for i in range(98)],
    }
    return asked, node(tmp_path_factory.mktemp("node"), SCRIPT, asked)


def test_curve_and_grid_are_pythons(found):
    asked, told = found
    for points, curve, own in zip(asked["curves"], told["curves"], told["grids"]):
        whole = [(0.0, 1.0), *map(tuple, points), (1.0, 0.0)]
        assert curve == pytest.approx(
            drawn.curve(whole, torch.tensor(asked["shares"], dtype=F64)).tolist(), abs=1e-12
        )
        for steps, sigmas in zip(asked["steps"], own):
            assert sigmas == pytest.approx(
                drawn.grid(points, steps, grids.flow_sigma(3.0), 0.8).tolist(), rel=1e-5
            )


@pytest.mark.parametrize("i", range(len(TEXTS)))
def test_reads_what_python_reads(found, i):
    try:
        points = [list(p) for p in drawn.control_points(json.loads(TEXTS[i]))[1:-1]]
    except ValueError:
        points = None
    assert found[1]["read"][i] == points


def test_every_edit_leaves_a_curve(found):
    lengths = set()
    for points in found[1]["edited"]:
        assert drawn.control_points(points)
        lengths.add(len(points))
    assert {0, 1} < lengths and max(lengths) > 6
