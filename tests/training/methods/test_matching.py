"""The analytic gate of distribution matching, with a student whose distribution is known.

Teacher and student are mixtures on one line, so that the divergence of what they make, noised to any level,
is an integral along that line, and its slope in the student's parts' positions is exact. The student makes
each sample of its mixture from a noise of its own.
"""

import dataclasses
import math
import types

import pytest
import torch
from analytic import MIXTURE, MODELS
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.predictions import expand
from fewstep.diffusion.step import step, weights
from fewstep.training import methods
from fewstep.training.methods import anchored, matching
from fewstep.training.methods.distances import squared_error
from fewstep.training.methods.phases import Phases, step_level
from fewstep.training.methods.points import noised_on
from fewstep.training.methods.times import Times, Weighting
from fewstep.training.run.config import DistilConfig
from fewstep.training.trajectories.data import Data
from fewstep.training.trajectories.noises import start
from oracles.mixture import LineMixture

SIGMA_OF = {
    "epsilon": lambda t: 20 * t**4,
    "v": lambda t: (t * 1.55).sin(),
    "flow": lambda t: t,
    "zero-SNR": lambda t: (t * math.pi / 2).sin(),
    "zero-SNR in ComfyUI": lambda t: (t * math.atan(4518)).tan(),
}
COUNT = 4000
MOVED = torch.tensor([0.35, -0.25, 0.3], dtype=torch.float64)


def mixture_at(positions):
    return dataclasses.replace(MIXTURE, positions=positions)


def made_by(positions, unit, path, e):
    """The sample (B, 4) at level e, of the mixture with parts at these positions, that each unit noise makes:
    the part by the quantile along the line, what is left of that within the part.
    """
    along = unit @ MIXTURE.direction
    edges = torch.cat([torch.zeros(1), MIXTURE.weights.cumsum(0)]).double()
    quantile = torch.special.ndtr(along).clamp(1e-9, 1 - 1e-9)
    part = torch.searchsorted(edges[1:-1].contiguous(), quantile)
    within = torch.special.ndtri((quantile - edges[part]) / MIXTURE.weights[part])
    place, spread = (
        MIXTURE.centre + positions[part, None] * MIXTURE.direction,
        unit - along[:, None] * MIXTURE.direction,
    )
    offset = spread + within[:, None] * MIXTURE.direction
    a, s = expand(path.alpha(e), unit), expand((path.alpha(e) * MIXTURE.std).hypot(e), unit)
    return a * place + s * offset


class Case:
    """A context of `matching` on the mixture; positions: of the student's parts, a leaf."""

    def __init__(self, name, positions, count=COUNT, **settings):
        self.path = MODELS[name][0]
        self.positions, self.unit = positions.clone().requires_grad_(), None
        config = DistilConfig(
            method="matching", **{"steps": 1, "batch": count, "balance": "divergence", **settings}
        )
        self.phases = Phases(config, self.path, SIGMA_OF[name], on_the_grid=True)
        self.grid = self.phases.levels[self.phases.sampled].double()
        times = Times()
        weighting = Weighting("none", "x0", self.path, lambda u: step_level(self.phases, u), times)
        generator = torch.Generator().manual_seed(0)
        images = MIXTURE.sample(8 * count, generator)
        self.context = types.SimpleNamespace(
            path=self.path,
            shape=(4,),
            noise_scale=1.0,
            phases=self.phases,
            data=Data(images=images, condition=torch.zeros(len(images), dtype=torch.long)),
            generator=generator,
            student=self.student,
            asked={"student": self.student, "fake": self.fake, "real": self.real, "teacher": self.real},
            pulled={name: pulled_by(f) for name, f in (("fake", self.fake), ("real", self.real))},
            metric=squared_error,
            settings=config,
            times=times,
            weighting=weighting,
            told={},
        )

    def real(self, x, t, condition):
        return MIXTURE.denoise(x.double(), self.path, t)

    def fake(self, x, t, condition):
        return mixture_at(self.positions.detach()).denoise(x.double(), self.path, t)

    def student(self, x, sigma, condition):
        """The x0 that leads from x to the student's sample at the end of the step, or is it."""
        x, sigma = x.double(), sigma.double()
        here = (self.grid[None] - sigma[:, None]).abs().argmin(1)
        if self.context.settings.points == "pictures":
            return made_by(self.positions, self.noise_in(x, sigma), self.path, 0 * sigma)
        end = self.grid[here + 1]
        a, b, _ = weights(self.path, sigma, end)
        point = made_by(self.positions, self.noise_in(x, sigma), self.path, end)
        return (point - expand(a, x) * x) / expand(b, x)

    def noise_in(self, x, sigma):
        """The unit noise that made x: of the start, from which each step's picture is made; of points on a
        trajectory that the student's own sample at that level.
        """
        here = (self.grid[None] - sigma[:, None]).abs().argmin(1)
        scale = float(start(torch.ones(1, dtype=torch.float64), self.phases.fine, self.path))
        unit = x / scale
        share, made = scale, 0.0  # of the noise and of its picture in x, level by level
        for level in range(1, int(here.max()) + 1):
            on = here == level
            a, b, _ = (float(w) for w in weights(self.path, self.grid[level - 1], self.grid[level]))
            share, made = a * share, a * made + b
            if self.context.settings.points == "trajectory":
                unit[on] = unmade(self.positions.detach(), x[on], self.path, sigma[on])
            else:
                unit[on] = noise_of_walk(self.positions.detach(), x[on], share, made)
        return unit

    def slope(self):
        """The gradient in the student's positions of one batch's weighted loss."""
        batch = matching.draw(self.context)
        losses = matching.loss(self.context, batch) * batch["weight"]
        return torch.autograd.grad(losses.mean(), self.positions)[0]

    def exact_fisher(self, levels=96):
        """The same of the divergence of Fisher."""
        total, least = 0, self.path.at_flow_time(torch.tensor(matching.NEAREST).double())
        for u in (torch.arange(levels, dtype=torch.float64) + 0.5) / levels:
            t = step_level(self.phases, u[None])[0].clamp_min(least)
            total = total + fisher(self.positions, self.path, t) / levels
        return torch.autograd.grad(total, self.positions)[0]

    def divergence_at_data(self):
        """KL of the student's pictures themselves."""
        return divergence(self.positions.detach(), self.path, torch.zeros((), dtype=torch.float64))

    def exact(self, levels=96):
        """The slope of the mean over levels, drawn as in a batch, of KL(student || teacher)."""
        total = 0
        for u in (torch.arange(levels, dtype=torch.float64) + 0.5) / levels:
            total = (
                total + divergence(self.positions, self.path, step_level(self.phases, u[None])[0]) / levels
            )
        return torch.autograd.grad(total, self.positions)[0]


def unmade(positions, y, path, e):
    """The inverse of `made_by`, which is monotone along the line within each part; parts by the nearest."""
    a, s = path.alpha(e), (path.alpha(e) * MIXTURE.std).hypot(e)
    offset = y - a[:, None] * MIXTURE.centre
    along = offset @ MIXTURE.direction
    across = (offset - along[:, None] * MIXTURE.direction) / s[:, None]
    tails = mixture_at(positions)._log_tails(along, a, s)[0]
    return across + torch.special.ndtri(tails.exp())[:, None] * MIXTURE.direction


def noise_of_walk(positions, x, share, made):
    """The unit noise (B, 4) of which x is share times itself and made times its picture; by halving along the
    line, where that grows with the noise, and linear across.
    """

    def walk(unit):
        return share * unit + made * made_by(positions, unit, FLOW, torch.zeros(len(unit)).double())

    line = MIXTURE.direction
    offset = x - made * MIXTURE.centre
    across = (offset - (offset @ line)[:, None] * line) / (share + made * MIXTURE.std)
    low, high = torch.full((len(x),), -6.0).double(), torch.full((len(x),), 6.0).double()
    for _ in range(50):
        middle = (low + high) / 2
        below = walk(across + middle[:, None] * line) @ line < x @ line
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return across + ((low + high) / 2)[:, None] * line


def divergence(positions, path, t):
    """KL of the mixture with these positions to `MIXTURE`, both noised to the level t, along the line."""
    a, s = path.alpha(t), (path.alpha(t) * MIXTURE.std).hypot(t)
    middle = torch.cat([MIXTURE.positions, positions.detach()])
    u = torch.linspace(
        float(a * middle.min() - 9 * s), float(a * middle.max() + 9 * s), 2001, dtype=torch.float64
    )

    def log_density(places):
        z = (u[:, None] - a * places) / s
        return (MIXTURE.weights.log() - z**2 / 2).logsumexp(1) - s.log() - math.log(2 * math.pi) / 2

    q, p = log_density(positions), log_density(MIXTURE.positions)
    return (q.exp() * (q - p)).sum() * (u[1] - u[0])


def fisher(positions, path, t):
    """E |score - score of `MIXTURE`|^2 of the mixture with these positions, both noised to the level t."""
    a, s = path.alpha(t), (path.alpha(t) * MIXTURE.std).hypot(t)
    middle = torch.cat([MIXTURE.positions, positions.detach()])
    u = torch.linspace(
        float(a * middle.min() - 9 * s), float(a * middle.max() + 9 * s), 2001, dtype=torch.float64
    )

    def known(places):
        """(log density, score)"""
        z = (u[:, None] - a * places) / s
        log = MIXTURE.weights.log() - z**2 / 2
        return log.logsumexp(1) - s.log() - math.log(2 * math.pi) / 2, -(log.softmax(1) * z).sum(1) / s

    (q, score_q), (_, score_p) = known(positions), known(MIXTURE.positions)
    return (q.exp() * (score_q - score_p).square()).sum() * (u[1] - u[0])


def pulled_by(answer):
    """J^T v of an answer, by autograd."""

    def pull(x, t, condition, v):
        leaf = x.double().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad((answer(leaf, t, condition) * v).sum(), leaf)[0]

    return pull


def cosine(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


# ---- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("real", ["pictures", "guided", "blended"])
@pytest.mark.parametrize("name", MODELS)
def test_at_the_exact_student_nothing_pulls(name, real):
    for balance in matching.BALANCES:
        case = Case(name, MIXTURE.positions, 200, real=real, balance=balance)
        batch = matching.draw(case.context)
        x0 = case.student(batch["x"], batch["sigma"], None)
        assert torch.allclose(batch["target"].double(), x0, atol=1e-9)
        assert float(case.slope().abs().max()) < 1e-6 * float(batch["weight"].max())


@pytest.mark.parametrize("span", matching.SPANS)
@pytest.mark.parametrize("name", MODELS)
def test_elsewhere_the_gradient_is_that_of_the_divergence(name, span):
    case = Case(name, MIXTURE.positions + MOVED, span=span)
    found, exact = sum(case.slope() for _ in range(4)), case.exact()
    print(f"{name}, {span}: cosine {cosine(found, exact):.4f}")
    assert cosine(found, exact) >= 0.99


@pytest.mark.parametrize("points", matching.POINTS)
@pytest.mark.parametrize("name", MODELS)
def test_in_several_steps_too(name, points):
    case = Case(name, MIXTURE.positions + MOVED, steps=2, points=points)
    found, exact = sum(case.slope() for _ in range(4)), case.exact()
    print(f"{name}, two steps, {points}: cosine {cosine(found, exact):.4f}")
    assert cosine(found, exact) >= 0.99


@pytest.mark.parametrize("balance", matching.BALANCES)
@pytest.mark.parametrize("name", MODELS)
def test_following_it_leads_to_the_teacher(name, balance):
    case = Case(name, MIXTURE.positions + MOVED, 400, balance=balance)
    before = float(case.divergence_at_data())
    descent = torch.optim.Adam([case.positions], lr=0.05)
    for _ in range(80):
        case.positions.grad = case.slope()
        descent.step()
    assert float(case.divergence_at_data()) < 0.02 * before


@pytest.mark.parametrize("points", matching.POINTS)
@pytest.mark.parametrize("name", ["epsilon", "flow", "zero-SNR"])
def test_sids_gradient_goes_down_the_divergence_of_fisher(name, points, monkeypatch):
    """With half of their alpha it is that divergence's own gradient."""
    monkeypatch.setattr(matching, "NEAREST", 0.05)  # below it chance takes over: squares of 1/sigma^2
    case = Case(name, MIXTURE.positions + MOVED, 10_000, points=points, steps=2, divergence="fisher")
    exact = case.exact_fisher()
    theirs = cosine(sum(case.slope() for _ in range(2)), exact)
    monkeypatch.setattr(matching, "SID", 0.5)
    half = cosine(sum(case.slope() for _ in range(4)), exact)
    print(f"{name}, {points}: cosine {half:.4f} with alpha 1/2, {theirs:.4f} with 1")
    assert half >= 0.99 and theirs > 0.5


# ---- the student's runs --------------------------------------------------------------------------


def test_a_run_serves_a_sample_of_each_step(generator):
    """As many runs as the step with most samples has, and no sample stands for another."""
    number = torch.randint(4, (50,), generator=generator)
    run = matching.runs_of(number)
    assert sorted(set(run.tolist())) == list(range(int(number.bincount().max())))
    assert len(set(zip(run.tolist(), number.tolist()))) == 50


def test_a_step_is_made_from_where_those_before_it_led():
    case = Case("flow", MIXTURE.positions + MOVED, 12, steps=4)
    seen = []

    def student(x, sigma, condition):
        seen.append(len(x))
        return torch.tanh(x) + condition[:, None]

    case.context.asked["student"] = student
    batch = matching.places(case.context)
    batch["condition"] = torch.arange(12.0)
    point = matching.students(case.context, batch)
    counts = batch["from"].bincount(minlength=4)
    assert seen == [int(counts[number:].max()) for number in range(4)]
    first = batch["from"] == 0
    starts = {float(c): x for c, x in zip(point["condition"][first], point["x"][first])}
    assert len(starts) > 1
    for x, x0, condition, number in zip(*(point[n] for n in ("x", "x0", "condition")), batch["from"]):
        if float(condition) not in starts:
            continue
        state, c = starts[float(condition)][None], condition[None]
        for level in range(int(number)):
            ends = case.grid[level][None], case.grid[level + 1][None]
            state = step(state, student(state, None, c), case.path, *ends)
        assert torch.allclose(state[0], x, atol=1e-5)
        assert torch.allclose(student(state, None, c)[0], x0, atol=1e-5)


# ---- the student's own score ---------------------------------------------------------------------


def standard_errors(residual, x, weight):
    """The largest mean of weight x residual x feature of x, in standard errors; 0 for a conditional mean."""
    worst = 0.0
    for feature in (torch.ones_like(x), x, torch.tanh(3 * x), torch.cos(2 * x)):
        value = (weight.double()[:, None] * residual * feature).sum(1)
        worst = max(worst, abs(float(value.mean() / value.std())) * len(value) ** 0.5)
    return worst


@pytest.mark.parametrize("points", matching.POINTS)
@pytest.mark.parametrize("name", MODELS)
def test_what_the_fake_learns_is_the_students_score(name, points):
    """The known x0 has the exact denoiser for its mean."""
    case = Case(name, MIXTURE.positions + MOVED, 10_000, steps=2, points=points)
    batch = matching.places(case.context)
    with torch.no_grad():
        point = matching.students(case.context, batch)
    x, known, precision = noised_on(point["y"], batch["noise"], case.path, point["e"], batch["t"])
    exact = case.fake(x, batch["t"], None)
    features = x / expand(case.path.alpha(batch["t"]).hypot(batch["t"]), x)
    assert standard_errors(known - exact, features, precision) < 4.5


@pytest.mark.parametrize("name", ["flow", "epsilon", "v"])
def test_the_steps_own_prediction_is_no_target_on_a_trajectory(name, generator):
    """Of an exact student of one Gaussian, TDM's target says half of what is true at the first step: a
    student that is right is pulled away. The known x0 says what is true.
    """
    path, std = MODELS[name][0], 0.3
    top, e, t = (SIGMA_OF[name](torch.tensor([v], dtype=torch.float64)) for v in (1.0, 0.5, 0.75))
    width = {level: float((path.alpha(level) * std).hypot(level)) for level in (top, e, t)}
    unit = torch.randn(2_000_000, 1, generator=generator, dtype=torch.float64)
    x, y = width[top] * unit, width[e] * unit
    a, b, _ = weights(path, top, e)
    x0 = (y - a * x) / b
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    x_t, known, _ = noised_on(y, noise, path, e.expand(len(y)), t.expand(len(y)))
    exact = float(path.alpha(t)) * std**2 / width[t] ** 2
    slopes = [float((x_t * target).mean() / x_t.square().mean()) / exact for target in (known, x0)]
    print(f"{name}: the known x0 says {slopes[0]:.2f} of the truth, TDM's target {slopes[1]:.2f}")
    assert slopes[0] == pytest.approx(1, abs=0.1) and slopes[1] < 0.6


def test_a_real_score_learns_the_teachers_points_alike():
    case = Case("flow", MIXTURE.positions, 10_000, steps=2, points="pictures")
    batch = matching.denoising(matching.teachers)(case.context)
    exact = case.real(batch["x"], batch["sigma"], None)
    assert standard_errors(batch["target"] - exact, batch["x"], batch["weight"]) < 4.5


@pytest.mark.parametrize("share, updates", [(1.0, 1), (2.0, 4), (-1.0, 4)])
def test_the_fake_is_kept_ahead_by_how_true_it_is(share, updates):
    """What it says of the student's distance, `share` times as much as is true, is told as 1/share."""
    case = Case("flow", MIXTURE.positions + MOVED, 10_000, lead=4)
    exact = case.fake
    case.context.asked["fake"] = lambda *asked: (
        case.real(*asked) + share * (exact(*asked) - case.real(*asked))
    )
    with torch.no_grad():
        batch = matching.draw(case.context)
    told = {name: float(batch[name].mean()) for name in matching.TOLD}
    assert matching.agreement(told) == pytest.approx(1 / share, abs=0.08)
    case.context.told = told
    assert matching.lead(case.context) == updates
    case.context.told = {}
    assert matching.lead(case.context) == 4


def test_gap_and_cosine_are_of_the_triangle_that_the_scores_make_with_the_students_picture():
    """Whose own picture the fake keeps: at a right angle to what the real score changes, and against it."""
    case = Case("flow", MIXTURE.positions + MOVED, 1000, steps=1, points="pictures")
    x0, change = {}, torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    student = case.context.asked["student"]

    def drawn(x, sigma, condition):
        x0["is"] = student(x, sigma, condition)
        return x0["is"]

    case.context.asked["student"] = drawn
    case.context.asked["real"] = lambda x, t, condition: x0["is"] + change
    for turned, gap, cosine in (([4, 0, -3, 0], 8 / 7, 0), ([-3, 0, -4, 0], 2, -1), ([6, 0, 8, 0], 1, 1)):
        move = torch.tensor(turned, dtype=torch.float64)
        case.context.asked["fake"] = lambda x, t, condition, move=move: x0["is"] + move
        with torch.no_grad():
            batch = matching.draw(case.context)
        for name, wanted in (("gap", gap), ("cosine", cosine)):
            assert torch.allclose(batch[name].double(), torch.tensor(float(wanted)).double(), atol=1e-5), name


# ---- anchored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_anchored_first_step_learns_the_cached_trajectory(name):
    case = Case(name, MIXTURE.positions, 64, steps=4)
    path, grid, context = case.path, case.grid, case.context
    x = start(torch.randn(200, 4, generator=context.generator, dtype=torch.float64), case.phases.fine, path)
    levels = case.phases.levels.double()
    anchors = torch.stack([x, *(MIXTURE.flow(x, path, grid[0], level) for level in levels[1:])], 1)
    context.data = Data(images=anchors[:, -1], condition=torch.zeros(200, dtype=torch.long), anchors=anchors)

    def exact(x, sigma, condition):
        sigma = sigma.double()
        end = grid[(grid[None] - sigma[:, None]).abs().argmin(1) + 1]
        a, b, _ = weights(path, sigma, end)
        return (MIXTURE.flow(x.double(), path, sigma, end) - expand(a, x) * x) / expand(b, x)

    context.student = context.asked["student"] = exact
    context.asked["fake"] = case.real
    batch = anchored.draw(context)
    first = batch["from"] == 0
    assert 5 < int(first.sum()) < 30
    assert matching.loss(context, batch).max() < 1e-8
    for name, alike in (("gap", 0.0), ("cosine", 1.0)):
        assert batch[name][first].isnan().all()
        assert torch.allclose(batch[name][~first], torch.full_like(batch[name][~first], alike), atol=1e-6)
    context.student = lambda x, sigma, condition: exact(x, sigma, condition) + 0.1
    assert torch.allclose(matching.loss(context, batch), torch.full((64,), 0.01).double(), atol=1e-6)


# ---- which real score ------------------------------------------------------------------------------


def test_the_guided_score_is_not_that_of_what_guidance_samples():
    """At a student that draws exactly the teacher's pictures, CFG 2 on one of two Gaussians in one dimension,
    the guided score still pulls, towards narrower pictures.
    """
    path, cfg, std = MODELS["flow"][0], 2.0, 0.4
    parts = LineMixture(*(torch.tensor(v).double() for v in ([-1.0, 1.0], [0.5, 0.5], [0.0], [1.0])), std)
    one = LineMixture(*(torch.tensor(v).double() for v in ([1.0], [1.0], [0.0], [1.0])), std)

    def guided(x, t):
        none, own = (m.denoise(x, path, t) for m in (parts, one))
        return none + cfg * (own - none)

    unit = torch.special.ndtri((torch.arange(3000, dtype=torch.float64) + 0.5) / 3000)[:, None]
    x, levels = unit, torch.linspace(1, 0, 401, dtype=torch.float64)
    for t, s in zip(levels, levels[1:]):
        x = step(x, guided(x, t), path, t, s)
    pictures, found = x, {}
    for t in (0.3, 0.5, 0.7):
        noised = (1 - t) * pictures + t * unit[
            torch.randperm(3000, generator=torch.Generator().manual_seed(0))
        ]
        near = -((noised - (1 - t) * pictures.T) ** 2) / (2 * t**2)
        own = near.softmax(1) @ pictures  # the exact denoiser of these pictures
        pull = own - guided(noised, torch.tensor(t, dtype=torch.float64))
        centred = pictures - pictures.mean()
        found[t] = float(pull.square().mean().sqrt() / (pictures - own).square().mean().sqrt())
        narrower = float((pull * centred).mean() / centred.square().mean())
        print(f"level {t}: pulls by {found[t]:.0%} of the denoiser's own error, narrower by {narrower:+.2f}")
    print(f"deviation of the pictures {float(pictures.std()):.3f}, of the data {std}")
    assert min(found.values()) > 0.05


@pytest.mark.parametrize("span", matching.SPANS)
def test_scores_of_anchored_learn_the_steps_at_which_they_are_asked(span):
    """No sample of the first step, which is pulled to the trajectory; of matching a fair share."""
    case = Case("flow", MIXTURE.positions, 400, steps=4, span=span)
    case.context.asked["student"] = lambda x, sigma, condition: x
    for method, expected in (("matching", True), ("anchored", False)):
        fake = methods.get(method).roles(case.context.settings)[-1]
        first_end = case.grid[1]
        batch = fake.draw(case.context)
        assert fake.name == "fake" and len(batch["sigma"]) == 400
        seen = matching.places(case.context, 0 if expected else 1)["from"]
        assert bool((seen == 0).any()) == expected
        if span == "segment":
            assert bool((batch["sigma"] > first_end).any()) == expected
