"""The grid formulas' port in js/maths is equal to Python's to 1e-5, for every name, model and option."""

import itertools
import math

import pytest
import torch
from fewstep.diffusion import paths
from fewstep.diffusion.schedules import grids
from fewstep.tests.js.plots import node
from fewstep.training.models.demo import net

F64 = torch.float64
STEPS, TAKEN = range(1, 31), 9  # every combination gets each ninth number of steps, from another first one
OPTIONS = {
    "karras": [{}, {"rho": 3.0}, {"rho": 20.0}, {"rho": 0.1}],
    "polyexponential": [{}, {"rho": 0.5}, {"rho": 2.0}],
    "beta": [{}, {"alpha": 0.1, "beta": 3.0}, {"alpha": 2.0, "beta": 1.0}, {"alpha": 0.05, "beta": 20.0}],
    "trailing anchors": [{}, {"anchors": 7}, {"anchors": 1}],
    "phase edges": [{}, {"phases": 2}, {"phases": 5}],
    "auto": [{}, {"dimension": 64}],
}


def stable_diffusion():
    """sigma/alpha of Stable Diffusion's 1000 steps (scaled linear betas)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
    bar = (1 - betas).cumprod(0)
    return ((1 - bar) / bar).sqrt()


def between(low, high):
    """Equal steps of log sigma."""
    return torch.linspace(math.log(low), math.log(high), 1000, dtype=F64).exp()


MODELS = {  # {name: (spec for js/maths/models.js, sigma_of, path)}
    **{f"flow {s}": ({"flow": s}, grids.flow_sigma(s), paths.FLOW) for s in (1.0, 3.0, 6.0)},
    "stable diffusion": (
        {"discrete": "given"},
        grids.discrete_sigma(stable_diffusion()),
        paths.VARIANCE_EXPLODING,
    ),
    "edm": ({"low": 0.002, "high": 80}, grids.discrete_sigma(between(0.002, 80)), paths.VARIANCE_EXPLODING),
    "preserving": ({"angle": True}, lambda t: (t * math.pi / 2).sin(), paths.VARIANCE_PRESERVING),
}
SCRIPT = """
import { grid, NAMES, OPTIONS } from "./js/maths/grids.js";
import { continuous, discreteSigma, flowSigma } from "./js/maths/models.js";
const models = Object.fromEntries(Object.entries(data.models).map(([name, spec]) => [name, spec.flow ?
  { path: "flow", sigmaOf: flowSigma(spec.flow) } : spec.angle ?
  { path: "variance preserving", sigmaOf: (t) => Math.sin(t * Math.PI / 2) } : spec.low ?
  { path: "variance exploding", sigmaOf: discreteSigma(continuous(spec.low, spec.high)) } :
  { path: "variance exploding", sigmaOf: discreteSigma(data.table) }]));
answer({ names: NAMES, options: OPTIONS, grids: data.cases.map(([name, steps, model, options]) =>
  grid(name, steps, models[model], options)) });
"""


def test_every_grid_is_pythons(tmp_path):
    combinations = [
        (name, model, {"denoise": denoise, "shift": shift, **options})
        for name, model in itertools.product(grids.NAMES, MODELS)
        for denoise, shift, options in itertools.product(
            (1.0, 0.6, 0.01), (1.0, 3.0, 0.1), OPTIONS.get(name, [{}])
        )
    ]
    cases = [
        (name, steps, model, options)
        for i, (name, model, options) in enumerate(combinations)
        for steps in [*STEPS[i % TAKEN :: TAKEN], *([50] if name == "trailing anchors" else [])]
    ]
    found = node(
        tmp_path,
        SCRIPT,
        {
            "models": {k: v[0] for k, v in MODELS.items()},
            "table": stable_diffusion().tolist(),
            "cases": cases,
        },
    )
    assert tuple(found["names"]) == grids.NAMES and found["options"] == grids.OPTIONS
    worst = 0.0
    for (name, steps, model, options), theirs in zip(cases, found["grids"]):
        _, sigma_of, path = MODELS[model]
        ours = grids.grid(name, steps, sigma_of, path, **options)
        theirs = torch.tensor(theirs, dtype=F64)
        assert theirs.shape == ours.shape and theirs[-1] == 0 and (theirs.diff() < 0).all(), (
            name,
            steps,
            model,
            options,
        )
        error = float(((theirs - ours).abs() / ours.clamp_min(1e-12))[:-1].max())
        assert error < 1e-5, (name, steps, model, options, error)
        worst = max(worst, error)
    assert len(cases) > 3000 and {steps for _, steps, *_ in cases} == {*STEPS, 50} and worst > 0


def test_what_is_too_near_or_vanished_is_spread_as_pythons_is(tmp_path):
    asked = [
        [1.0, 0.5, 0.0, 0.0, 0.0],
        [1.0, 0.5, -0.1, 0.3, 0.0],
        [1.0, 1e-40, 1e-50, 0.0],
        [1.0, 0.99999, 0.99998, 0.9999],
        [1.0, 0.999999, 0.999998, 0.999997, 0.999996],
        [1.0, 1.0, 1.0, 0.0],
        [2.0, 3.0, 1.0, 0.5],
    ]
    script = """
import { descending } from "./js/maths/grids.js";
answer(data.map(descending));
"""
    for theirs, sigmas in zip(node(tmp_path, script, asked), asked):
        ours = grids.descending(torch.tensor(sigmas, dtype=F64))
        assert theirs == pytest.approx(ours.tolist(), rel=1e-14) and (ours.diff() < 0).all()
        assert (ours[0], ours[-1]) == (sigmas[0], sigmas[-1])


def test_models_that_are_formulas(tmp_path):
    """The tables that JS makes itself, the server's table log-linear between its points, and times back from
    levels.
    """
    sd, times = grids.discrete_sigma(stable_diffusion()), torch.linspace(0, 1, 257, dtype=F64)
    found = node(
        tmp_path,
        """
import {
  continuous, demoTeacher, flowSigma, modelFrom, stableDiffusion, tableSigma, timeOf,
} from "./js/maths/models.js";
const table = tableSigma(data.times, data.sigmas);
answer({ sd: stableDiffusion(), zero: stableDiffusion(true), demo: demoTeacher(), edm: continuous(0.002, 80),
  table: data.asked.map(table), time: data.asked.map((t) => timeOf(flowSigma(3), flowSigma(3)(t))),
  models: [{ flow: 3 }, { discrete: "stable diffusion" }, { discrete: "continuous", low: 0.002, high: 80 }]
    .map(modelFrom).map((m) => [m.path, m.sigmaOf(1)]) });
""",
        {"times": times.tolist(), "sigmas": sd(times).tolist(), "asked": [0.01, 0.3, 0.77, 1.0]},
    )
    assert torch.allclose(torch.tensor(found["sd"], dtype=F64), stable_diffusion(), rtol=1e-9)
    assert torch.allclose(torch.tensor(found["demo"], dtype=F64), net.discrete_sigmas(), rtol=1e-9)
    assert found["edm"][0] == pytest.approx(0.002) and found["edm"][-1] == pytest.approx(80)
    assert found["zero"][0] == pytest.approx(found["sd"][0]) and found["zero"][-1] == pytest.approx(
        4518.76, rel=1e-3
    )
    assert torch.allclose(
        torch.tensor(found["table"], dtype=F64),
        sd(torch.tensor([0.01, 0.3, 0.77, 1.0], dtype=F64)),
        rtol=0.02,
    )
    assert found["time"] == pytest.approx([0.01, 0.3, 0.77, 1.0])
    assert [m[0] for m in found["models"]] == ["flow", "variance exploding", "variance exploding"]
    assert [m[1] for m in found["models"]] == pytest.approx([1, 14.6146, 80], rel=1e-4)
