"""Fits of solvers that draw fresh noise: nearer in distribution on noise that they were not fitted on."""

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import batch_noise, sample, solve
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.solvers import linear
from fewstep.diffusion.solvers.trajectories import Trajectories
from oracles.mixture import line_mixture
from scripts import script

fresh = script("fresh_fit", "benchmarks")

LEVELS = torch.logspace(-2, 1.3, 500, dtype=torch.float64)
PATHS = {"flow": (FLOW, grids.flow_sigma()), "exploding": (VARIANCE_EXPLODING, grids.discrete_sigma(LEVELS))}


@pytest.fixture(params=PATHS)
def case(request, generator):
    """(trajectories, the automatic grid of 4 steps)."""
    path, sigma_of = PATHS[request.param]
    mixture = line_mixture(4)
    fine, few = (grids.grid("auto", n, sigma_of, path, dimension=4) for n in (60, 4))

    def denoise(x, sigma, which=None):
        return mixture.denoise(x, path, sigma)

    x = torch.randn(2048, 4, generator=generator, dtype=torch.float64)
    x *= (path.alpha(fine[0]).square() + fine[0].square()).sqrt()
    run = list(sample(denoise, x, fine, path, order=3))
    states = torch.stack([x, *(state.x for state in run)], 1)
    return Trajectories(path, fine, states, torch.stack([s.x0 for s in run], 1), denoise), few


def test_the_start_is_the_kernel_with_churn(case):
    data, grid = case
    ours = fresh.with_churn(grid.tolist(), [0.4] * 4, data)
    x = data.states[:6, 0]
    options = {"order": 2, "corrector": True, "churn": 0.4, "noise": batch_noise(1)}
    kernel = solve(data.denoise, x, grid, data.path, **options)
    assert torch.allclose(linear.solve(ours, data.denoise, x, batch_noise(1)), kernel, atol=1e-12)


@pytest.mark.parametrize("case", ["flow"], indirect=True)
def test_a_fit_is_nearer_on_other_noise(case):
    data, grid = case
    found = list(fresh.fit_fresh(data, grid, 0.2, evaluations=80 * 2048 * 4, samples=2048))
    first, best = found[0], found[-1]
    assert first.distance == first.base and not first.gained and first.ahead == 0
    assert best.gained and best.distance < 0.95 * best.base and best.evaluations <= (80 + 60) * 2048 * 4
    assert all(0.2 / fresh.RANGE <= churn <= 0.2 * fresh.RANGE for churn in best.churn)
    assert best.solver.fresh and best.solver.fresh[-1] == 0 and best.solver.steps == 4
    unseen = [line_mixture(4).sample(4000, torch.Generator().manual_seed(n)) for n in (1, 2)]
    scale = float(data.states[:, 0].std())
    off = {}
    for name, solver in {"first": first.solver, "best": best.solver}.items():
        x = scale * torch.randn(4000, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        g = torch.Generator().manual_seed(4)
        end = linear.solve(
            solver, data.denoise, x, lambda x, g=g: torch.randn(x.shape, generator=g, dtype=x.dtype)
        )
        off[name] = float((end.sort(0).values - unseen[0].sort(0).values).square().mean().sqrt())
    assert off["best"] < off["first"]


@pytest.mark.parametrize("case", ["flow"], indirect=True)
def test_what_is_found_before_the_budget_ends_is_handed_on(case, monkeypatch):
    data, grid = case
    found, loss = [], fresh._Bench.loss

    def noted(bench, solver):
        found.append((loss(bench, solver), solver))
        return found[-1][0]

    monkeypatch.setattr(fresh._Bench, "loss", noted)
    for runs in range(14, 30, 4):
        found.clear()
        *_, last = fresh.fit_fresh(data, grid, 0.2, evaluations=runs * 256 * 4, samples=256)
        assert last.solver == min(found, key=lambda pair: pair[0])[1]
