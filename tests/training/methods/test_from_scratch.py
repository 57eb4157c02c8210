"""The analytic gate's last part: a small network, trained from scratch through the objectives, against its
teacher at 50 steps (`planar`). Students, in 1 and 2 steps, must stay within GATE times the error of the
teacher, whatever the model predicts.
"""

import math

import pytest
import torch
from fewstep.diffusion.predictions import from_x0
from fewstep.diffusion.samplers import sample
from fewstep.training.methods.consistency_loss import consistency, noised
from fewstep.training.methods.reflow import pairs
from fewstep.training.methods.teacher_step import solver_step
from fewstep.training.trajectories.noises import start
from planar import (
    BATCH,
    MIXTURE,
    MODELS,
    POOL,
    TEACHER_STEPS,
    distance,
    exact_denoiser,
    fresh_data,
    levels,
    ratio,
    shared,
    teachers_error,
    train,
)

pytestmark = pytest.mark.slow

GATE, NEAREST = 1.5, 1e-3


def check(name, net, steps, churn=0.0):
    found = ratio(name, net, steps, churn)
    print(f"{name}, {steps} steps: {found:.2f} times the teacher's error")
    assert found <= GATE, (
        f"{name} in {steps} steps: {found:.2f} times the error of the teacher in {TEACHER_STEPS}"
    )


def pick(generator, high=POOL):
    return torch.randint(high, (BATCH,), generator=generator)


def trajectories(name, steps, order):
    """(sigmas, [x at each of them]) of POOL trajectories of the teacher from random noise."""
    path, sigmas = MODELS[name][0], levels(name, steps)
    x = start(
        torch.randn(POOL, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64), sigmas, path
    )
    return sigmas, [x, *(state.x for state in sample(exact_denoiser(name), x, sigmas, path, order=order))]


# ---- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_gate_is_narrow(name):
    """The measure's floor is far below the teacher's error at 50 steps, and the teacher at 1 and 2 far above
    the gate.
    """
    path, (data, noise, _), sigmas = MODELS[name][0], shared(), levels(name, 50)
    assert distance(fresh_data(20), data) < 0.2 * teachers_error(name)
    assert distance(
        MIXTURE.flow(start(noise, sigmas, path), path, sigmas[0], 0.0), data
    ) < 0.5 * teachers_error(name)
    assert min(teachers_error(name, steps) for steps in (1, 2)) > 4 * GATE * teachers_error(name)


@pytest.mark.parametrize("name", MODELS)
def test_consistency_distillation(name):
    """One phase; the second step begins from fresh noise (the multistep consistency sampler)."""
    path, sigmas, generator = MODELS[name][0], levels(name, 16), torch.Generator().manual_seed(5)
    i, x0 = torch.randint(16, (POOL,), generator=generator), MIXTURE.sample(POOL, generator)
    x_t = noised(x0, torch.randn(x0.shape, generator=generator, dtype=x0.dtype), path, sigmas[i])
    x_s = solver_step(exact_denoiser(name), x_t, path, sigmas[i], sigmas[i + 1], i, solver="heun", substeps=4)
    x_t, x_s, t, s = (v.float() for v in (x_t, x_s, sigmas[i], sigmas[i + 1]))

    def loss(net, generator):
        k = pick(generator)
        return consistency(net, net, path, x_t[k], x_s[k], t[k], s[k], 0 * s[k], k)

    net = train(name, loss, updates=1000)
    check(name, net, 1)
    check(name, net, 2, churn=math.inf)


@pytest.mark.parametrize("phases, updates", [(1, 600), (2, 800)])
@pytest.mark.parametrize("name", MODELS)
def test_phased_consistency(name, phases, updates):
    """Two phases in 2 steps; the whole way from pure noise, what `one_step` adds, in 1."""
    sigmas, states = trajectories(name, 32, order=2)
    edges = [int((sigmas - level).abs().argmin()) for level in levels(name, phases)]
    anchors, ends = torch.stack([states[k] for k in edges]).float(), sigmas[edges].float()

    def loss(net, generator):
        k, p = pick(generator), pick(generator, phases)
        return consistency(
            net, net, MODELS[name][0], anchors[p, k], anchors[p + 1, k], ends[p], ends[p + 1], ends[p + 1], k
        )

    check(name, train(name, loss, updates), phases)


@pytest.mark.parametrize("name", MODELS)
def test_reflow_after_one_round(name):
    """Pairs of the teacher's 50-step solutions; their noise is the one that leads from the image to where
    sampling starts.
    """
    path = MODELS[name][0]
    sigmas, states = trajectories(name, TEACHER_STEPS, order=1)
    x0, noise = (
        states[-1].float(),
        from_x0(states[-1], "epsilon", states[0], path.alpha(sigmas[0]), sigmas[0]).float(),
    )
    top = path.flow_time(sigmas[0])

    def loss(net, generator):
        k, time = pick(generator), top * torch.rand(BATCH, generator=generator, dtype=torch.float64)
        return pairs(
            net, path, x0[k], noise[k], path.at_flow_time(time.clamp_min(NEAREST)).float(), k, "velocity"
        )

    net = train(name, loss, updates=2400)
    check(name, net, 1)
    check(name, net, 2)
