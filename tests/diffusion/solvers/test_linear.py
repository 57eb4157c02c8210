"""Linear solvers that ask for the parts of guidance apart, and those that add fresh noise."""

import pytest
import torch
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.samplers import batch_noise, solve
from fewstep.diffusion.solvers import linear, refine, tangents
from fewstep.diffusion.solvers.linear import LinearSolver, apart, classical, lengthened, whole
from oracles.mixture import line_mixture

CFG = 3.0
GRID = [1.0, 0.8, 0.5, 0.2, 0.0]
# asks for both, both, the conditional one, nothing, the unconditional one
MIXED = LinearSolver(
    (1.0, 0.9, 0.6, 0.4, 0.2, 0.0),
    (
        (0.9, 0.4, -0.3),
        (0.7, 0.5, -0.2, 0.1, -0.1),
        (0.6, 0.3, 0.2, -0.1),
        (0.5, 0.4, 0.1, -0.2),
        (0.1, 0.3, 0.7, 0.2, -0.1, -0.1, 0.05),
    ),
    ("cu", "cu", "c", "", "u"),
)


class Guided:
    """A mixture with guidance, the unconditional part another mixture; counts what it is asked."""

    def __init__(self):
        self.mixtures = {"c": line_mixture(4), "u": line_mixture(4, std=0.9)}
        self.asked = []

    def part(self, kind, x, sigma):
        return self.mixtures[kind].denoise(x, FLOW, sigma)

    def whole(self, x, sigma):
        return self.part("u", x, sigma) + CFG * (self.part("c", x, sigma) - self.part("u", x, sigma))

    def ask(self, x, sigma, kinds):
        self.asked.append(kinds)
        return [self.part(kind, x, sigma) for kind in kinds]


ROUGH = ((0.9, 0.3), (0.8, 0.5, -0.3), (0.6, 0.4, 0.1), (0.2, 0.9))  # rows that lead to no picture


@pytest.fixture
def x(generator):
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_apart_is_the_same_solver(order, x):
    model, solver = Guided(), classical(GRID, FLOW, order)
    parts = apart(solver, CFG)
    found = linear.solve_apart(parts, model.ask, x)
    assert torch.allclose(found, linear.solve(solver, model.whole, x), atol=1e-12)
    assert model.asked == ["cu"] * 4 and parts.calls(CFG) == solver.calls(CFG) == 8 == 2 * solver.calls()


def test_what_is_asked_is_what_it_says_and_each_prediction_has_its_own_weight(x):
    model, states = Guided(), [x]
    steps = list(linear.follow(MIXED, model.ask, x))
    states += [step.x for step in steps]
    assert model.asked == ["cu", "cu", "c", "u"] and MIXED.calls(CFG) == 6
    c = [model.part("c", *at) for at in zip(states, MIXED.sigmas[:3])]
    u = [model.part("u", *at) for at in zip(states, MIXED.sigmas[:2])]
    assert torch.allclose(states[4], 0.5 * states[3] + 0.4 * c[2] + 0.1 * c[1] - 0.2 * u[1], atol=1e-12)
    last = model.part("u", states[4], 0.2)
    terms = (states[4], last, c[2], c[1], u[1], c[0], u[0])
    assert torch.allclose(states[5], sum(w * t for w, t in zip(MIXED.rows[4], terms)), atol=1e-12)
    assert [len(step.predictions) for step in steps] == [2, 2, 1, 0, 1] and steps[3].x0 is steps[2].x0


@pytest.mark.parametrize("asked", [None, "", "c", "cu"])
def test_a_lengthened_solver_gives_the_same(x, asked):
    model, longer = Guided(), MIXED
    for _ in range(3):
        longer = lengthened(longer, FLOW, asked)
    assert longer.steps == MIXED.steps + 3 and set(MIXED.sigmas) < set(longer.sigmas)
    assert torch.allclose(*(linear.solve_apart(s, model.ask, x) for s in (longer, MIXED)), atol=1e-12)


def test_tangents_are_the_derivatives(x, monkeypatch):
    """Of every weight and level that counts, against runs with that one a little changed."""
    monkeypatch.setattr(tangents, "LEVEL_STEP", 1e-5)
    model = Guided()
    trace = list(linear.follow(MIXED, model.ask, x))
    found = tangents.tangents(MIXED, FLOW, model.ask, x, trace, 1e-5)
    names = found.parameters
    levels = [i for i, place in names if place is None]
    assert levels == [1, 2, 4] and len(names) == sum(map(len, refine._full_rows(MIXED))) + 3
    for number, name in enumerate(names):
        one = torch.zeros(len(names), dtype=torch.float64)
        one[number] = 1
        changed = [refine.moved(MIXED, names, change * one, FLOW) for change in (1e-5, -1e-5)]
        ends = [linear.solve_apart(solver, model.ask, x) for solver in changed]
        theirs = (ends[0] - ends[1]) / 2e-5
        ours = found.moved(one)[-1]
        assert float((ours - theirs).norm() / theirs.norm().clamp_min(1e-9)) < 2e-3, name


def test_fresh_noise_is_the_kernels(x):
    model, options = Guided(), {"order": 2, "corrector": True}
    solver = classical(GRID, FLOW, churn=0.7)
    kernel = solve(model.whole, x, GRID, FLOW, churn=0.7, noise=batch_noise(3), **options)
    assert solver.fresh[0] == 0 == solver.fresh[-1] and min(solver.fresh[1:-1]) > 0
    assert torch.allclose(linear.solve(solver, model.whole, x, batch_noise(3)), kernel, atol=1e-12)
    with pytest.raises(ValueError, match="noise must be given where a solver adds fresh noise"):
        linear.solve(solver, model.whole, x)


def test_a_denoiser_without_parts_is_refused(x):
    with pytest.raises(ValueError, match="denoiser must answer for its conditional and unconditional"):
        linear.solve(MIXED, Guided().whole, x)
    assert whole(Guided().whole)(x, 0.5, "") == []


@pytest.mark.parametrize("asks", [("c", "cu", "", "u"), ()], ids=["parts", "guided"])
def test_where_the_picture_is_given_the_run_goes_straight_to_it_and_elsewhere_as_ever(x, asks):
    rows = [(0.9, 0.3), (0.8, 0.5, -0.3, 0.1), (0.6, 0.4), (0.2, 0.9)] if asks else ROUGH
    solver = LinearSolver((1.0, 0.8, 0.6, 0.3, 0.0), rows, asks, (0.0, 0.2, 0.1, 0.3))
    picture, painted = torch.linspace(-1, 1, 4).double().expand_as(x), torch.full_like(x, 0.7)
    share = torch.tensor([0, 1, 0.5, 0]).double()

    def end(predicted, given=None):
        return list(
            linear.follow(solver, lambda x, s, kinds: [predicted] * len(kinds), x, batch_noise(4), given)
        )

    steps = end(share * painted + (1 - share) * picture, linear.Given(picture, lambda sigma: share, FLOW))
    for step in steps:
        straight = (1 - step.sigma_next) * picture + step.sigma_next * x
        assert torch.allclose(step.x[:, share == 0], straight[:, share == 0])
    whole = end(painted)[-1].x
    assert torch.equal(steps[-1].x[:, share == 0], picture[:, share == 0])
    assert torch.allclose(steps[-1].x, share * whole + (1 - share) * picture)


def test_a_part_that_the_mask_lets_go_later_begins_at_its_level(x):
    solver, ones = LinearSolver((1.0, 0.8, 0.6, 0.3, 0.0), ROUGH), torch.ones_like(x)
    given = linear.Given(ones, lambda sigma: torch.tensor(float(sigma < 0.7)), FLOW)
    steps = list(linear.run(solver, lambda x, sigma: ones if sigma > 0.7 else 0.5 * x, x, given=given))
    assert torch.allclose(steps[1].x, 0.4 * ones + 0.6 * x)
    assert torch.allclose(steps[2].x, (0.6 + 0.4 * 0.5) * steps[1].x + 0.1 * ones)
