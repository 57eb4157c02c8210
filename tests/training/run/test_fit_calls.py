"""Fits on a budget of model calls: guidance in parts, and budgets without guidance, which are steps."""

import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.schedules.grids import flow_sigma
from fewstep.diffusion.solvers.linear import classical, solve_apart
from fewstep.training.formats.recipe import Recipe
from fewstep.training.models.denoiser import Guided
from fewstep.training.run import budget
from fewstep.training.run.fitting import FitConfig, SolverFit
from oracles.mixture import line_mixture

CFG = 3.0


class Mixtures:
    """A `Denoiser` whose conditional and unconditional predictions are two mixtures'; counts its samples."""

    path, shape, conditions, noise_scale, base = FLOW, (12,), 1, 1.0, "mixtures"
    sigma_of = staticmethod(flow_sigma())

    def __init__(self):
        self.conditional = line_mixture(12, std=0.4)
        self.unconditional = line_mixture(12, parts=5, std=0.9)
        self.calls = 0

    def __call__(self, x, sigma, condition):
        self.calls += len(x)
        parts = [
            mixture.denoise(x.double(), FLOW, sigma.double())
            for mixture in (self.unconditional, self.conditional)
        ]
        return torch.where((condition < 0)[:, None], *parts).to(x.dtype)


def fitted(tmp_path, cfg=CFG, **settings):
    run = SolverFit(Guided(Mixtures(), cfg), FitConfig(trajectories=48, **settings), tmp_path)
    progress = list(run.progress())
    return run, progress


def error(recipe, cfg=CFG):
    """On new noise, against many steps of guidance."""
    teacher = Guided(Mixtures(), cfg)
    x = torch.randn(128, 12, generator=torch.Generator().manual_seed(5))
    none = torch.zeros(128, dtype=torch.int64)

    def ask(x, sigma, kinds):
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        return teacher.apart(x, level, none, kinds) if kinds != "g" else [teacher(x, level, none)]

    end, before = solve_apart(recipe.solver, ask, x), teacher.denoiser.calls
    assert before == 128 * recipe.calls
    levels = torch.linspace(1, 0, 401).tolist()
    for sigma, below in zip(levels, levels[1:]):
        (x0,) = ask(x, sigma, "g")
        x = x0 + below / sigma * (x - x0)
    return float((end - x).square().mean().sqrt() / x.std())


def test_a_budget_is_kept_and_parts_apart_are_nearer(tmp_path):
    run, progress = fitted(tmp_path, calls=(8, 6))
    assert {p.stage for p in progress} == {"sampling the teacher", "fitting 6 calls", "fitting 8 calls"}
    recipes = {calls: run.recipe(calls) for calls in (6, 8)}
    assert [row["calls"] <= row["count"] for row in run.rows] == [True, True]
    eight = recipes[8]
    assert set("".join(eight.asks)) == {"c", "u"} and eight.cfg == CFG
    assert Recipe.from_json(eight.to_json()).solver == eight.solver
    whole, _ = fitted(tmp_path, steps=4)
    guided = whole.recipe(4)
    assert guided.calls == 8 and not guided.asks
    assert error(eight) < error(guided) < 0.1 and error(eight) <= error(recipes[6])
    assert f"{eight.steps:5} {eight.calls:5}" in run.report()


def test_without_guidance_a_budget_is_steps(tmp_path):
    run, _ = fitted(tmp_path, cfg=1.0, calls=3)
    assert run.counts == (3,) and run.recipe(3).steps == run.recipe(3).calls == 3 and not run.recipe(3).asks


@pytest.mark.parametrize("calls", [0, 25, (4, "8"), [], 2.0], ids=str)
def test_a_budget_that_is_none_is_refused(calls):
    with pytest.raises(ValueError, match="calls must be whole numbers from 1 to 24, got"):
        FitConfig(calls=calls)


def test_guidance_needs_two_calls(tmp_path):
    with pytest.raises(ValueError, match="calls must be 2 or more with guidance, .* got 1"):
        fitted(tmp_path, calls=(1, 4))


def test_a_teacher_whose_guidance_has_no_parts_is_refused(tmp_path):
    teacher = Guided(Mixtures(), CFG)
    teacher.apart = None
    with pytest.raises(
        ValueError, match=r"calls must be left out for a teacher with guidance \(CFG 3\) .* got 4"
    ):
        SolverFit(teacher, FitConfig(calls=4), tmp_path)


def test_a_shorter_guided_solver_grows_in_parts(tmp_path):
    run, _ = fitted(tmp_path, calls=4, effort=0.05)
    short = classical(run.grid("auto", 2), FLOW)
    *_, grown = budget.starts(run, 6, [short], lambda n: run.grid("auto", n), math.inf, lambda: False)[0]
    assert grown.calls(CFG) == 6 and set("".join(grown.asked)) == {"c", "u"}
    which, x = torch.arange(8), run.data.states[:8, 0]
    ends = [solve_apart(one, lambda x, s, k: run.data.ask(x, s, which, k), x) for one in (short, grown)]
    assert torch.allclose(*ends, atol=1e-4)
