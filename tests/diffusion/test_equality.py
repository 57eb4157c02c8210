"""Whole runs of the kernel against the schedulers of diffusers, every state of a run, in float64.

Both get the same model, a smooth function of (x, sigma) or a sequence of random predictions of x_0, and the
same noise. The schedulers' tables are made in float32; they are widened, and the kernel is given the same
numbers. A scheduler that casts to float32 inside `step` is run with a `torch` in which float32 means float64.
"""

import math
import sys

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.samplers import sample
from fewstep.diffusion.step import fresh_share

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 4, 4)
MODELS = ("smooth", "random")
TIGHT = 1e-10


class Float64:
    """`torch`, but float32 means float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def widen(monkeypatch):
    """Makes a diffusers scheduler compute in float64."""

    def widened(scheduler):
        monkeypatch.setattr(sys.modules[type(scheduler).__module__], "torch", Float64())
        for name, value in vars(scheduler).items():
            if torch.is_tensor(value) and value.dtype == torch.float32 and name != "timesteps":
                setattr(scheduler, name, value.double())
        return scheduler

    return widened


def smooth(x, sigma):
    """A model: bounded, and depends on every entry of x and on sigma."""
    return (2 * x.roll(1, -1) / (1 + float(sigma))).sin() + 0.3 * math.cos(3 * float(sigma)) + 0.1 * x.mean()


def model_of(kind):
    """The same model each time it is made."""
    if kind == "smooth":
        return smooth
    calls = iter(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return lambda x, sigma: next(calls)


def start(sigma=1.0):
    return float(sigma) * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def draws():
    return torch.Generator().manual_seed(3)


def run_ours(kind, x, sigmas, path, **options):
    """The states after every step."""
    g = draws()
    noise = lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)
    return [s.x for s in sample(model_of(kind), x, sigmas, path, noise=noise, **options)]


def run_theirs(scheduler, predict, x, **options):
    """The states after every step; predict(i, x) -> what the scheduler takes for a model's output."""
    states = []
    for i, t in enumerate(scheduler.timesteps):
        states.append(scheduler.step(predict(i, x), t, x, **options).prev_sample)
        x = states[-1]
        assert x.dtype == torch.float64
    return states


def difference(a, b):
    """The largest difference of two runs, over all states."""
    assert len(a) == len(b) > 2
    return max(float((p - q).abs().max()) for p, q in zip(a, b))


def discrete(name, widen, steps=8, **options):
    """A discrete scheduler of SD1.5's table that takes x_0, and the noise levels of its run."""
    spacing = {} if name in ("LCMScheduler", "TCDScheduler") else {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="sample",
        **spacing,
        **options,
    )
    scheduler.set_timesteps(steps)
    widen(scheduler)
    return scheduler, [float((1 - scheduler.alphas_cumprod[t]).sqrt()) for t in scheduler.timesteps]


def ddim_share(eta):
    """kappa of DDIM's eta: sigma_s kappa is eq. 16 of Song et al. 2021 when kappa^2 = eta^2 (1 - e^-2h)."""
    return lambda t, s: eta * float(fresh_share(1.0, VARIANCE_PRESERVING, t, s))


def ddim_churn(eta):
    """The same by way of the churn of each step, c = -ln[1 - eta^2 (1 - e^-2h)] / 2h."""

    def share(t, s):
        if s == 0:
            return 0.0
        t, s = (torch.tensor(v, dtype=torch.float64) for v in (t, s))
        h = float(VARIANCE_PRESERVING.log_snr(s) - VARIANCE_PRESERVING.log_snr(t))
        return fresh_share(-math.log1p(eta**2 * math.expm1(-2 * h)) / (2 * h), VARIANCE_PRESERVING, t, s)

    return share


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("share", [ddim_share, ddim_churn])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_ddim(eta, share, kind, widen):
    scheduler, sigmas = discrete("DDIMScheduler", widen)
    model = model_of(kind)
    wanted = run_theirs(scheduler, lambda i, x: model(x, sigmas[i]), start(), eta=eta, generator=draws())
    assert (
        difference(run_ours(kind, start(), [*sigmas, 0.0], VARIANCE_PRESERVING, kappa=share(eta)), wanted)
        < TIGHT
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_churn_1_is_ddpm(name, kind, widen):
    """DDPM adds 1e-10 of noise at its last step: it clamps the variance 0 to 1e-20."""
    options = {"variance_type": "fixed_small"} if name == "DDPMScheduler" else {}
    scheduler, sigmas = discrete(name, widen, **options)
    model = model_of(kind)
    extra = {"eta": 1.0} if name == "DDIMScheduler" else {}
    wanted = run_theirs(scheduler, lambda i, x: model(x, sigmas[i]), start(), generator=draws(), **extra)
    assert difference(run_ours(kind, start(), [*sigmas, 0.0], VARIANCE_PRESERVING, churn=1.0), wanted) < 1e-9


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("algorithm, churn", [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_multistep(order, algorithm, churn, kind, karras, widen):
    """Theirs extrapolates in lambda: ours does on the variance-exploding path, whose x is theirs divided by
    alpha.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        algorithm_type=algorithm,
        solver_order=order,
        solver_type="midpoint",
        use_karras_sigmas=karras,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(8)
    sigmas = widen(scheduler).sigmas
    scale = sigmas.square().add(1).sqrt()
    scheduler.set_begin_index(0)
    model, g, x = model_of(kind), draws(), start(sigmas[0])
    wanted = []
    y = x / scale[0]
    for i, t in enumerate(scheduler.timesteps):
        z = torch.randn(SHAPE, generator=g, dtype=torch.float64) if churn else None
        y = scheduler.step(model(y * scale[i], sigmas[i]), t, y, variance_noise=z).prev_sample
        wanted.append(y * scale[i + 1])
    assert y.dtype == torch.float64
    assert difference(run_ours(kind, x, sigmas, VARIANCE_EXPLODING, order=order, churn=churn), wanted) < TIGHT


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("algorithm, churn", [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_dpm_solver_on_flow(algorithm, churn, kind, widen):
    """Order 1: from order 2 on, theirs extrapolates in lambda and ours in log sigma."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type=algorithm,
        solver_order=1,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(6)
    sigmas = widen(scheduler).sigmas
    scheduler.set_begin_index(0)
    model = model_of(kind)
    wanted = run_theirs(
        scheduler, lambda i, x: (x - model(x, sigmas[i])) / sigmas[i], start(), generator=draws()
    )
    assert difference(run_ours(kind, start(), sigmas, FLOW, churn=churn), wanted) < TIGHT


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("options", [{"kappa": 1.0}, {"churn": math.inf}])
def test_lcm(options, kind, widen):
    """Theirs mixes x into the prediction, c_out x_0 + c_skip x with c_skip < 1e-5: given to ours as part of
    the model.
    """
    scheduler, sigmas = discrete("LCMScheduler", widen, steps=5)
    theirs, ours = model_of(kind), model_of(kind)
    calls = iter(scheduler.timesteps)

    def bounded(x, sigma):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(next(calls))
        assert skip < 1e-5
        return out * ours(x, sigma) + skip * x

    wanted = run_theirs(scheduler, lambda i, x: theirs(x, sigmas[i]), start(), generator=draws())
    g = draws()
    noise = lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)
    found = [
        s.x for s in sample(bounded, start(), [*sigmas, 0.0], VARIANCE_PRESERVING, noise=noise, **options)
    ]
    assert difference(found, wanted) < TIGHT


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_tcd(gamma, kind, widen):
    """x goes to the level s = floor((1 - gamma) t_next) and is noised back: kappa^2 sigma^2 = 1 - abar_next /
    abar_s.

    Their run ends at the table's first level, without noise, not at 0.
    """
    scheduler, sigmas = discrete("TCDScheduler", widen, steps=5)
    abar, times = scheduler.alphas_cumprod, [*scheduler.timesteps.tolist(), 0]
    sigmas.append(float((1 - abar[0]).sqrt()))

    def share(t, s):
        after = times[sigmas.index(s)]
        below = math.floor((1 - gamma) * after)
        return 0.0 if after == 0 else float((1 - abar[after] / abar[below]).sqrt()) / s

    model = model_of(kind)
    wanted = run_theirs(scheduler, lambda i, x: model(x, sigmas[i]), start(), eta=gamma, generator=draws())
    assert difference(run_ours(kind, start(), sigmas, VARIANCE_PRESERVING, kappa=share), wanted) < TIGHT


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "stochastic, options", [(False, {}), (True, {"kappa": 1.0}), (True, {"churn": math.inf})]
)
def test_flow_match_euler(stochastic, options, kind, widen):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    scheduler.set_timesteps(6)
    sigmas = widen(scheduler).sigmas
    scheduler.set_begin_index(0)
    model = model_of(kind)
    wanted = run_theirs(
        scheduler, lambda i, x: (x - model(x, sigmas[i])) / sigmas[i], start(), generator=draws()
    )
    assert difference(run_ours(kind, start(), sigmas, FLOW, **options), wanted) < TIGHT


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("karras", [False, True])
def test_heun(karras, kind, widen):
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=karras)
    scheduler.set_timesteps(6)
    sigmas = widen(scheduler).sigmas
    scheduler.set_begin_index(0)
    model, x = model_of(kind), start(sigmas[0])
    levels = sigmas[
        :-1
    ]  # of the calls: every inner level is called twice, for the second stage and the next first
    wanted = run_theirs(scheduler, lambda i, x: model(x, levels[i]), x)
    grid = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    found = run_ours(kind, x, grid, VARIANCE_EXPLODING, order="heun")
    assert len(wanted) == 2 * len(found) - 1
    assert difference(found, [*wanted[1::2], wanted[-1]]) < TIGHT


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EDMEulerScheduler"])
def test_raise_first_is_edm_churn(name, gamma, widen):
    """On a grid equally spaced in lambda a constant gamma is a constant churn, c = ln(1 + gamma) / h.

    They draw the noise inside the step, after the model's call, so only predictions that do not depend on x
    can be the same; `test_limits.py` does it with a model. Theirs would raise above the first level and
    before the last step: both left out.
    """
    steps, h = 8, 0.7
    sigmas = 14.0 * torch.exp(-h * torch.arange(steps, dtype=torch.float64))
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    scheduler = getattr(diffusers, name)(
        **({"prediction_type": "sample"} if name == "EulerDiscreteScheduler" else {})
    )
    scheduler.set_timesteps(steps)
    widen(scheduler).sigmas = sigmas
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    model, g, x = model_of("random"), draws(), start(14.0)
    wanted, y = [], x
    limits = {"s_tmin": float(sigmas[-3]), "s_tmax": float(sigmas[1]), "s_churn": gamma * steps}
    for t in scheduler.timesteps:
        out = model(y, None)
        extra = {"pred_original_sample": out} if name == "EDMEulerScheduler" else {}
        y = scheduler.step(out, t, y, generator=g, **limits, **extra).prev_sample
        wanted.append(y)
    found = run_ours(
        "random",
        x,
        sigmas,
        VARIANCE_EXPLODING,
        mode="raise first",
        churn=math.log1p(gamma) / h,
        start=1 / steps,
        end=(steps - 1) / steps,
    )
    assert difference(found, wanted) < TIGHT
