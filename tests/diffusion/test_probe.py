"""The probe reads a sampler's weights exactly, and the oracle tells right from wrong."""

import math

import pytest
import torch
from fewstep.diffusion import probe
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING
from fewstep.diffusion.samplers import batch_noise, solve
from fewstep.diffusion.schedules import grids

STATE, CROWD = (1, 4, 8, 8), (1, 4, 128, 128)
KARRAS = (lambda t: (10 ** (1 / 7) * t + (1 - t) * 0.03 ** (1 / 7)) ** 7, VARIANCE_EXPLODING)


def runner(sigmas, path, **options):
    """A whole run of the kernel, as `probe` wants it."""

    def run(respond, noise, latent):
        x = path.alpha(sigmas[0]) * latent + sigmas[0] * noise
        return solve(respond, x, sigmas, path, noise=batch_noise(3), **options)

    return run


# Weights on the flow path, shift 1, 8 steps, from the design's own measurement of ComfyUI's samplers of the
# same formula.
@pytest.mark.parametrize(
    "options, weights, survival",
    [
        ({}, [0.125] * 8, 1.0),
        ({"order": 2}, [0.05, 0.12, 0.12, 0.11, 0.11, 0.14, 0.23, 0.13], 1.0),
        ({"kappa": 1.0}, [0.00, 0.02, 0.06, 0.13, 0.21, 0.25, 0.22, 0.13], 0.002),
    ],
)
def test_known_weights_on_flow(options, weights, survival):
    found = probe.prediction_weights(
        runner(grids.grid("uniform", 8, grids.flow_sigma(), FLOW), FLOW, **options), FLOW, STATE
    )
    assert found.linear and found.nonlinearity < 1e-12
    assert max(abs(a - b) for a, b in zip(found.predictions, weights)) < 0.0101
    assert abs(sum(found.predictions) - 1) < 1e-9 and abs(found.survival - survival) < 5e-4


@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("model", [(grids.flow_sigma(), FLOW), KARRAS])
def test_churn_is_read_back(churn, model):
    sigma_of, path = model
    sigmas = grids.grid("uniform", 6, sigma_of, path)
    found = probe.churn_between_calls(runner(sigmas, path, churn=churn, order=2), path, STATE)
    told = [c for c in found if c is not None]
    assert len(told) >= 4 and max(abs(c - churn) for c in told) < 1e-5 and found[-1] is None


def test_survival_of_two_steps_by_hand():
    """x_1 = s ((1 - k^2)^.5 eps) + x0, x0 = (x_0 - s_0 u)/(1 + s_0); the result is (x_1 - s u')/(1 + s)."""
    sigmas, path, kappa = torch.tensor([8.0, 2.0, 0.0], dtype=torch.float64), VARIANCE_EXPLODING, 0.6
    found = probe.prediction_weights(runner(sigmas, path, kappa=kappa), path, STATE)
    x0 = 8.0 / (1 + 8.0)  # with u = 0, from x_0 = 8 eps
    eps = (8.0 - x0) / 8.0
    x1 = x0 + 2.0 * (1 - kappa**2) ** 0.5 * eps
    assert found.survival == pytest.approx(x1 / (1 + 2.0) / (8.0 / 9.0), rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 3},
        {"order": "heun"},
        {"churn": 1.0},
        {"mode": "raise first", "churn": 1.0},
        {"mode": "restart", "churn": 1.0, "start": 0.2, "end": 0.7},
        {"kappa": 1.0},
    ],
    ids=str,
)
def test_the_oracle_finds_our_sampler_right(options):
    sigmas = grids.grid("uniform", 8, grids.flow_sigma(3.0), FLOW)
    verdict = probe.marginals(runner(sigmas, FLOW, **options), FLOW, CROWD)
    assert verdict.right, verdict.text
    assert max(abs(v - 1) for v in verdict.signal + verdict.noise) < 0.02


def wrong_churn(respond, noise, latent):
    """Variance-exploding churn on a flow path, as in k-diffusion: the signal is not scaled down when noise is
    added.
    """
    sigmas = grids.grid("uniform", 8, grids.flow_sigma(), FLOW).tolist()
    x, fresh = noise.clone(), batch_noise(0)
    for s, after in zip(sigmas, sigmas[1:]):
        raised = s * 1.2 if s < 1 else s
        x = x + math.sqrt(raised**2 - s**2) * fresh(x)
        x = x + (after - raised) * (x - respond(x, raised)) / raised
    return x


def test_the_oracle_finds_wrong_churn():
    verdict = probe.marginals(wrong_churn, FLOW, CROWD)
    assert not verdict.right and "signal" in verdict.text and "too strong at call" in verdict.text
    (message,) = [m for m in verdict.messages if m.fields.get("what") == "signal"]
    worst = max(range(8), key=lambda i: abs(verdict.signal[i] - 1))
    assert message.fields["call"] == worst + 1
    assert message.fields["percent"] == pytest.approx(100 * abs(verdict.signal[worst] - 1))


def test_a_sampler_that_fails_is_not_right():
    def failing(respond, noise, latent):
        respond(noise, 1.0)
        return respond(noise * math.nan, 0.5) * math.nan

    verdict = probe.marginals(failing, FLOW, CROWD)
    assert not verdict.right and verdict.text == "not finite at call 2"


def test_a_sampler_that_adapts_is_said_to_be_non_linear():
    def adapting(respond, noise, latent):
        x = noise
        for sigma in (1.0, 0.5):
            x0 = respond(x, sigma)
            x = x0 / (1 + x0.abs().mean()) + 0.5 * sigma * x
        return x

    assert not probe.prediction_weights(adapting, FLOW, STATE).linear
    assert probe.prediction_weights(
        runner(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), FLOW), FLOW, STATE
    ).linear


def test_too_many_calls_are_refused():
    sigmas = grids.grid("uniform", 70, grids.flow_sigma(), FLOW)
    with pytest.raises(ValueError, match="makes 70 model calls; it must make fewer than 64"):
        probe.prediction_weights(runner(sigmas, FLOW), FLOW, (1, 1, 8, 8))
