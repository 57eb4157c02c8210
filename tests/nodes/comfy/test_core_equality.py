"""The kernel against ComfyUI core's own sampler functions where core is right: whole runs, equal noise,
float64.

Core's functions get what core gives them: its KSamplerX0Inpaint around a CFGGuider that holds the demo
teacher's MODEL, so that they find the real `model_sampling`; only the guider's prediction is a Python
function, in float64.
"""

import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import batch_noise, sample

pytestmark = pytest.mark.comfy

SHAPE = (2, 3, 8, 8)
PATH = {"flow": FLOW, "epsilon": VARIANCE_EXPLODING}
TIGHT = 1e-10


def smooth(x, sigma):
    """A model: bounded, and depends on every entry of x and on sigma."""
    return (2 * x.roll(1, -1) / (1 + float(sigma))).sin() + 0.3 * math.cos(3 * float(sigma)) + 0.1 * x.mean()


@pytest.fixture(scope="module")
def models(host):
    """The demo teachers' MODELs."""
    loader = host.NODE_CLASS_MAPPINGS["FewstepLoadDemoTeacher"]
    return {kind: loader.execute(kind, "cat").result[0] for kind in PATH}


def wrapped(model, sigmas):
    """What core hands to a sampler function, of a guider that predicts with `smooth`."""
    import comfy.samplers

    class Smooth(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return smooth(x, timestep[0])

    guider = Smooth(model)
    guider.inner_model = model.model
    return comfy.samplers.KSamplerX0Inpaint(guider, sigmas)


def run_core(name, model, x, sigmas, noise=None, **options):
    """The states after every step; core shows each before the next. noise(x) -> z as in the kernel."""
    from comfy.k_diffusion import sampling

    states = []
    if noise is not None:
        options["noise_sampler"] = lambda sigma, sigma_next: noise(x)
    extra = {"denoise_mask": None, "model_options": {}, "seed": 5}
    keep = lambda info: states.append(info["x"].clone())
    last = getattr(sampling, f"sample_{name}")(
        wrapped(model, sigmas), x, sigmas, extra_args=extra, callback=keep, disable=True, **options
    )
    assert last.dtype == torch.float64 and len(states) == len(sigmas) - 1
    return [*states[1:], last]


def run_ours(kind, x, sigmas, noise=None, **options):
    return [s.x for s in sample(smooth, x, sigmas, PATH[kind], noise=noise, **options)]


def difference(a, b):
    """The largest difference of two runs, over all states."""
    assert len(a) == len(b) > 2
    return max(float((p - q).abs().max()) for p, q in zip(a, b))


def levels(model, scheduler="simple", steps=7):
    """Core's own grid for that model, in float64."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), scheduler, steps
    ).double()
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    return sigmas


def start(sigma):
    return float(sigma) * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("scheduler", ["simple", "karras"])
@pytest.mark.parametrize("kind", PATH)
@pytest.mark.parametrize(
    "name, options", [("euler", {}), ("heun", {"order": "heun"}), ("dpmpp_2m", {"order": 2})]
)
def test_deterministic(name, options, kind, scheduler, models):
    sigmas = levels(models[kind], scheduler)
    x = start(sigmas[0])
    core = run_core(name, models[kind], x, sigmas)
    assert difference(run_ours(kind, x, sigmas, **options), core) < TIGHT


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("scheduler", ["simple", "karras"])
def test_eta_of_dpmpp_2m_sde_is_churn(scheduler, eta, models):
    sigmas = levels(models["epsilon"], scheduler)
    x = start(sigmas[0])
    core = run_core("dpmpp_2m_sde", models["epsilon"], x, sigmas, noise=batch_noise(1), eta=eta)
    assert difference(run_ours("epsilon", x, sigmas, noise=batch_noise(1), order=2, churn=eta), core) < TIGHT


@pytest.mark.parametrize("options", [{"kappa": 1.0}, {"churn": math.inf}])
@pytest.mark.parametrize("kind", PATH)
def test_lcm(kind, options, models):
    sigmas = levels(models[kind])
    x = start(sigmas[0])
    core = run_core("lcm", models[kind], x, sigmas, noise=batch_noise(1))
    assert difference(run_ours(kind, x, sigmas, noise=batch_noise(1), **options), core) < TIGHT


def ancestral_share(kind, eta):
    """kappa of core's eta, from the level that its step goes down to before it is noised back."""
    alpha = lambda sigma: 1 - sigma if kind == "flow" else 1.0

    def share(t, s):
        if s == 0:
            return 0.0
        down = (
            s * (1 + (s / t - 1) * eta) if kind == "flow" else s * math.sqrt(1 - eta**2 * (1 - (s / t) ** 2))
        )
        return math.sqrt(1 - (alpha(s) * down / (alpha(down) * s)) ** 2)

    return share


@pytest.mark.parametrize("kind", PATH)
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_euler_ancestral(eta, kind, models):
    """On flow models core runs its RF variant: eta there is a share of sigma, not of noise."""
    sigmas = levels(models[kind])
    x = start(sigmas[0])
    core = run_core("euler_ancestral", models[kind], x, sigmas, noise=batch_noise(1), eta=eta)
    found = run_ours(kind, x, sigmas, noise=batch_noise(1), kappa=ancestral_share(kind, eta))
    assert difference(found, core) < TIGHT


@pytest.mark.parametrize("name, options", [("ddpm", {}), ("euler_ancestral", {"eta": 1.0})])
def test_churn_1_is_ddpm_on_epsilon_models(name, options, models):
    sigmas = levels(models["epsilon"])
    x = start(sigmas[0])
    core = run_core(name, models["epsilon"], x, sigmas, noise=batch_noise(1), **options)
    assert difference(run_ours("epsilon", x, sigmas, noise=batch_noise(1), churn=1.0), core) < TIGHT


@pytest.mark.parametrize("gamma", [0.1, 0.4])
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", "heun")])
def test_raise_first_is_cores_churn_on_epsilon_models(name, order, gamma, models):
    """Equal steps of lambda, where a constant gamma is a constant churn. Core draws from the global
    generator.

    Core would raise above the first level and before the last step; both are left out. Its callback has x
    after the raise, so only the result is compared.
    """
    steps, h = 7, 0.7
    sigmas = 14.0 * torch.exp(-h * torch.arange(steps, dtype=torch.float64))
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    x = start(14.0)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        core = run_core(
            name,
            models["epsilon"],
            x,
            sigmas,
            s_churn=gamma * steps,
            s_tmin=float(sigmas[-3]),
            s_tmax=float(sigmas[1]),
            s_noise=1.003,
        )
        torch.manual_seed(9)
        found = run_ours(
            "epsilon",
            x,
            sigmas,
            noise=torch.randn_like,
            order=order,
            mode="raise first",
            churn=math.log1p(gamma) / h,
            start=1 / steps,
            end=(steps - 1) / steps,
            s_noise=1.003,
        )
    assert float((found[-1] - core[-1]).abs().max()) < TIGHT
    calm = run_ours("epsilon", x, sigmas, order=order)
    assert float((found[-1] - calm[-1]).abs().max()) > 0.01
