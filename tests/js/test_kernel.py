"""The kernel in js/maths weighs predictions as `diffusion.probe` finds them in Python's sampler, in every
mode.
"""

import itertools
import math

import pytest
import torch
from fewstep.diffusion import probe, samplers
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.step import share_of
from fewstep.tests.js.plots import node

F64 = torch.float64
MODELS = {
    "flow": (grids.flow_sigma(3.0), FLOW),
    "exploding": (lambda t: (10 ** (1 / 7) * t + (1 - t) * 0.03 ** (1 / 7)) ** 7, VARIANCE_EXPLODING),
    "preserving": (lambda t: (t * math.pi / 2).sin(), VARIANCE_PRESERVING),
}
OPTIONS = [{"churn": c} for c in (0.0, 0.2, 1.0, 7.0, math.inf)] + [
    {"kappa": 0.5},
    {"kappa": 1.0},
    {"churn": 1.0, "start": 0.3, "end": 0.8},
    {"churn": 0.7, "mode": "raise first"},
    {"churn": 30.0, "mode": "raise first", "start": 0.2},
    {"churn": 2.0, "mode": "restart", "end": 0.7},
    {"churn": 1.0, "mode": "restart"},
]
SCRIPT = """
import { flowSigma } from "./js/maths/models.js";
import { noising, weights } from "./js/maths/probe.js";
import { plan, tcdShare } from "./js/maths/samplers.js";
const options = ({ churn = 0, ...others }) => ({ churn: churn === "inf" ? Infinity : churn, ...others });
answer({
  runs: data.cases.map(([sigmas, path, given]) => {
    const moves = plan(sigmas, path, options(given));
    return { moves, ...weights(moves, path), noising: noising(moves, path) };
  }),
  tcd: data.gammas.map((gamma) => tcdShare(gamma, { path: "flow", sigmaOf: flowSigma(3) })(0.9, 0.5)),
});
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    cases = [
        (sigmas(model, steps), model, options)
        for steps, model, options in itertools.product((2, 3, 6, 20), MODELS, OPTIONS)
    ]
    told = [
        (s.tolist(), MODELS[m][1].name, {k: "inf" if v == math.inf else v for k, v in o.items()})
        for s, m, o in cases
    ]
    found = node(tmp_path_factory.mktemp("node"), SCRIPT, {"cases": told, "gammas": [0.0, 0.3, 1.0]})
    return [(*case, run) for case, run in zip(cases, found["runs"])], found["tcd"]


def sigmas(model, steps):
    return grids.grid("uniform", steps, *MODELS[model])


def test_weights_and_survival_are_what_the_probe_finds(runs):
    for grid, model, options, found in runs[0]:
        path = MODELS[model][1]
        moves = samplers.plan(grid, path, **options)

        def run(respond, noise, latent, grid=grid, path=path, moves=moves):
            x = path.alpha(grid[0]) * latent + grid[0] * noise
            for state in samplers.follow(respond, x, moves, path, noise=samplers.batch_noise(3)):
                x = state.x
            return x

        assert len(found["moves"]) == len(moves)
        for ours, theirs in zip(moves, found["moves"]):
            assert tuple(theirs.values()) == pytest.approx(
                (ours.sigma_from, ours.sigma, ours.sigma_next, ours.kappa), abs=1e-12
            )
        known = probe.prediction_weights(run, path, (1, 4, 8, 8))
        assert found["weights"] == pytest.approx(known.predictions, abs=1e-9), (model, options)
        assert found["survival"] == pytest.approx(known.survival, abs=1e-9), (model, options)


def test_fresh_shares_are_the_ones_of_the_plan_and_churn_is_read_back(runs):
    for _, model, options, found in runs[0]:
        path, fresh = MODELS[model][1], [row["fresh"] for row in found["noising"]]
        if options.get("mode", "each step") == "each step":
            assert fresh == pytest.approx([m["kappa"] for m in found["moves"]], abs=1e-9)
        else:  # added before the step: as much as noising from one level to the other takes
            levels = torch.tensor([[m["from"], m["sigma"]] for m in found["moves"]], dtype=F64)
            assert fresh == pytest.approx(
                [share_of(path, a, b) if a < b else 0.0 for a, b in levels], abs=1e-7
            )
        left = torch.tensor([1 - f * f for f in fresh], dtype=F64).cumprod(0).sqrt()
        assert [row["left"] for row in found["noising"]] == pytest.approx(left.tolist(), abs=1e-7)


def test_tcd_share(runs):
    reached = grids.flow_sigma(3.0)(0.7 * grids.time_of(grids.flow_sigma(3.0), [0.5]))
    assert runs[1] == pytest.approx([0.0, share_of(FLOW, reached, 0.5), 1.0], abs=1e-9)
