"""Every schedule, by name, drawn or edited, on every kind of model is finite and strictly descends to 0.

It does so in float32 too, which is what nodes hand on.
"""

import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.schedules import drawn, edits, grids
from hypothesis import given, settings
from hypothesis import strategies as st

F64 = torch.float64
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


def hosted_flow(shift):
    """sigma_of of a flow model as ComfyUI has it: by the share of the way that is done, 1 - t."""

    def level(t):
        done = 1 - t
        if done <= 0 or done >= 1:
            return float(done <= 0)
        return shift * (1 - done) / (1 + (shift - 1) * (1 - done))

    return lambda t: torch.tensor([level(v) for v in t.double().tolist()], dtype=F64)


def stable_diffusion(zero_snr=False):
    """sigma/alpha of Stable Diffusion's 1000 steps; rescaled to end in (nearly) pure noise."""
    bar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).cumprod(0)
    if zero_snr:
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
        bar[-1] = 4.9e-8
    return ((1 - bar) / bar).sqrt()


def between(low, high):
    """Equal steps of log sigma, as ComfyUI lists the levels of continuous models."""
    return torch.linspace(math.log(low), math.log(high), 1000, dtype=F64).exp()


TABLES = {
    "stable diffusion": stable_diffusion(),
    "zero SNR": stable_diffusion(zero_snr=True),
    "distilled, 50 times": stable_diffusion()[19::20],
    "EDM": between(0.002, 80),
    "SVD": between(0.002, 700),
    "playground": between(0.002, 120),
    "continuous V": between(0.03, 500),
}
TABLED = {name: (grids.discrete_sigma(table), VARIANCE_EXPLODING) for name, table in TABLES.items()}
MODELS = st.one_of(
    st.floats(0.1, 100).map(lambda shift: (grids.flow_sigma(shift), FLOW)),
    st.floats(0.1, 100).map(lambda shift: (hosted_flow(shift), FLOW)),
    st.sampled_from(sorted(TABLED)).map(TABLED.get),
    st.just((lambda t: (t * math.pi / 2).sin(), VARIANCE_PRESERVING)),
)
STEPS = st.one_of(st.integers(1, 12), st.integers(1, 1000))
DENOISE = st.one_of(st.just(1.0), st.floats(0.01, 1))
SHIFT = st.one_of(st.just(1.0), st.just(0.1), st.just(100.0), st.floats(0.1, 100))
RHO, BETA = st.floats(0.1, 50), st.floats(0.05, 20)
OPTIONS = {  # within the bounds of Few-Step Schedule
    "karras": st.fixed_dictionaries({}, optional={"rho": RHO}),
    "polyexponential": st.fixed_dictionaries({}, optional={"rho": RHO}),
    "beta": st.fixed_dictionaries({}, optional={"alpha": BETA, "beta": BETA}),
    "trailing anchors": st.fixed_dictionaries({}, optional={"anchors": st.integers(1, 1000)}),
    "phase edges": st.fixed_dictionaries({}, optional={"phases": st.integers(1, 64)}),
    "auto": st.fixed_dictionaries({}, optional={"dimension": st.integers(1, 10**7)}),
}


@st.composite
def curves(draw):
    """Points of Draw Schedule: shares that rise, times that fall."""
    ticks = st.integers(1, 4999)
    count = draw(st.integers(0, 12))
    shares, times = (sorted(draw(st.sets(ticks, min_size=count, max_size=count))) for _ in range(2))
    return [[share / 5e3, time / 5e3] for share, time in zip(shares, reversed(times))]


@st.composite
def schedules(draw, models=MODELS):
    """(sigmas, sigma_of, path): by name or drawn, and perhaps a part of it."""
    sigma_of, path = draw(models)
    steps, denoise = draw(STEPS), draw(DENOISE)
    name = draw(st.sampled_from([*grids.NAMES, "drawn"]))
    if name == "drawn":
        sigmas = drawn.grid(draw(curves()), steps, sigma_of, denoise)
    else:
        options = draw(OPTIONS.get(name, st.just({})))
        sigmas = grids.grid(name, steps, sigma_of, path, denoise, draw(SHIFT), **options)
    sigmas = sigmas.float().double()  # what the next node reads
    if steps > 1 and draw(st.booleans()):
        sigmas = edits.split(sigmas, draw(st.integers(1, steps - 1)))[draw(st.integers(0, 1))]
    return sigmas, sigma_of, path


def check(sigmas, steps):
    assert sigmas.shape == (steps + 1,) and sigmas.isfinite().all() and sigmas[-1] >= 0
    levels = sigmas.float()
    assert (levels.diff() < 0).all(), levels[:-1][levels.diff() >= 0].tolist()


@pytest.mark.parametrize("name", grids.NAMES)
def test_by_name(name):
    @EXAMPLES
    @given(MODELS, STEPS, DENOISE, SHIFT, OPTIONS.get(name, st.just({})))
    def holds(model, steps, denoise, shift, options):
        sigma_of, path = model
        sigmas = grids.grid(name, steps, sigma_of, path, denoise, shift, **options)
        check(sigmas, steps)
        assert sigmas[-1] == 0
        assert sigmas[0] == sigma_of(torch.tensor([denoise], dtype=F64))[0]

    holds()


@EXAMPLES
@given(MODELS, curves(), STEPS, DENOISE)
def test_drawn(model, points, steps, denoise):
    sigmas = drawn.grid(points, steps, model[0], denoise)
    check(sigmas, steps)
    assert sigmas[-1] == 0


def top_of(sigma_of):
    return float(sigma_of(torch.ones(1, dtype=F64))[0])


def ends_stay(moved, sigmas):
    return moved[0] == sigmas[0] and moved[-1] == sigmas[-1]


@EXAMPLES
@given(schedules(), SHIFT)
def test_shifted(schedule, amount):
    sigmas, sigma_of, _ = schedule
    moved = edits.shift(sigmas, sigma_of, amount)
    check(moved, len(sigmas) - 1)
    assert ends_stay(moved, sigmas)


@EXAMPLES
@given(schedules(), st.floats(0.01, 100))
def test_scaled(schedule, amount):
    sigmas, sigma_of, path = schedule
    moved = edits.scale(sigmas, path, amount, top_of(sigma_of))
    check(moved, len(sigmas) - 1)
    assert (moved[-1] == 0) == (sigmas[-1] == 0)
    assert moved[0] <= max(top_of(sigma_of), sigmas[0])  # float32 may round the model's largest up


@EXAMPLES
@given(MODELS.flatmap(lambda model: st.tuples(*[schedules(st.just(model))] * 2)), st.floats(0, 1))
def test_blended(two, share):
    (sigmas, sigma_of, _), (other, *_) = two
    check(edits.blend(sigmas, other, sigma_of, share), len(sigmas) - 1)


@EXAMPLES
@given(schedules(), st.integers(1, 1000))
def test_snapped(schedule, anchors):
    sigmas, sigma_of, _ = schedule
    if anchors >= len(sigmas) - bool(sigmas[-1] == 0):
        check(edits.snap(sigmas, sigma_of, anchors), len(sigmas) - 1)


@EXAMPLES
@given(schedules(), MODELS)
def test_translated(schedule, model):
    sigmas, sigma_of, path = schedule
    moved = edits.translate(sigmas, path, top_of(sigma_of), model[1], top_of(model[0]))
    check(moved, len(sigmas) - 1)
    assert (moved[-1] == 0) == (sigmas[-1] == 0) and moved[0] <= top_of(model[0])
