"""Two or three processes give the run that one gives: adapter, losses, loss-dependent state, data."""

import pytest
import torch
from fewstep.training import methods
from safetensors.torch import load_file

VARIED = {
    "adaptive": {"method": "consistency", "times": "adaptive", "updates": 60},
    "one-step": {"method": "phased", "one_step": 0.4, "between": 2},
    "ema-target": {"method": "consistency", "target": "ema", "solver": "2m", "substeps": 2},
    "rounds": {"method": "reflow", "rounds": 2},
    "skipped": {"method": "phased", "overflows": True},
    "micro": {"method": "consistency", "micros": [2, 1, 3]},
    "pieces": {"method": "consistency", "in_pieces": True, "batch": 7, "micros": [3, 1, 2], "updates": 4},
    "pieces-phased": {"method": "phased", "in_pieces": True, "between": 2, "rounds": 1, "updates": 4},
    # of shares of 2 and 1, whose calls are as many
    "pieces-matching": {"method": "matching", "in_pieces": True, "batch": 3, "chunk": 1, "updates": 2},
    "fisher": {"method": "matching", "divergence": "fisher", "real": "blended", "updates": 4},
    "pieces-fisher": {
        "method": "matching",
        "divergence": "fisher",
        "in_pieces": True,
        "batch": 4,
        "updates": 2,
    },
    "uneven": {"method": "phased", "batch": 7, "micros": [3, 1, 2]},
}
RUNS = {name: {"method": name} for name in methods.names(task=None)} | VARIED
OF_THREE = {name: RUNS[name] for name in (*methods.names(task=None), "uneven", "pieces", "fisher")}
ROUNDED = {"rounded": {"method": "phased", "dtype": "float32"}}


@pytest.fixture(scope="module")
def results(started, tmp_path_factory):
    """(name, world, rank) -> what a run gave."""
    folder = tmp_path_factory.mktemp("runs")
    for world, runs in ((1, RUNS), (2, RUNS), (3, OF_THREE)):
        codes = started("methods", world, folder, runs=runs | ROUNDED)
        assert codes == [0] * world, (folder / "said.0").read_text()
    return lambda *place: load_file(folder / (".".join(map(str, place)) + ".safetensors"))


def _off(one, other):
    assert one.keys() == other.keys()
    found = [(one[name].double() - other[name].double()).abs().nan_to_num().max() for name in one]
    return float(max(found))


@pytest.mark.parametrize("name", RUNS)
def test_many_processes_give_the_run_of_one_in_float64(results, name):
    alone = results(name, 1, 0)
    assert any(t.any() for n, t in alone.items() if n.startswith("adapter"))
    for world in (2, 3) if name in OF_THREE else (2,):
        for rank in range(world):
            assert _off(alone, results(name, world, rank)) < 1e-10


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_of_a_run_agree_bit_for_bit(results, world):
    for name in OF_THREE if world == 3 else RUNS:
        first = results(name, world, 0)
        for rank in range(1, world):
            other = results(name, world, rank)
            assert all(torch.equal(first[n].nan_to_num(), other[n].nan_to_num()) for n in first), name


def test_float32_differs_by_rounding(results):
    alone = results("rounded", 1, 0)
    for world in (2, 3):
        assert _off(alone, results("rounded", world, world - 1)) < 2e-4


def test_updates_that_are_not_finite_for_one_are_left_out_by_all(results):
    scale, skipped, done = results("skipped", 2, 1)["state"].tolist()
    assert 0 < skipped < done and scale < results("phased", 1, 0)["state"][0]


@pytest.mark.parametrize(
    "in_pieces, batch, rows",
    [(False, 5, [3, 2]), (False, 5, [2, 2, 1]), (True, 4, [2, 2]), (True, 5, [5, 5])],
)
def test_each_process_pulls_through_the_scores_for_its_share(started, tmp_path, in_pieces, batch, rows):
    """Of a model in pieces, whose passes all make together, for shares that are equal, or for the batch."""
    codes = started("pulls", len(rows), tmp_path, in_pieces=in_pieces, batch=batch, rows=rows)
    assert codes == [0] * len(rows), (tmp_path / "said.0").read_text()
