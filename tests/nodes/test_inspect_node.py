"""In the real ComfyUI, in process: what samplers are found to do, ours and core's."""

import time

import pytest
import torch
from graph import core, run, show, uniform

pytestmark = pytest.mark.comfy

# reference/samplers.md of the design, measured there independently: flow, shift 1, 8 steps
KNOWN = {
    "euler": ([0.125] * 8, 1.000),
    "euler_ancestral": ([0.04, 0.08, 0.11, 0.14, 0.16, 0.18, 0.18, 0.13], 0.178),
    "dpmpp_2m": ([0.05, 0.12, 0.12, 0.11, 0.11, 0.14, 0.23, 0.13], 1.000),
    "dpmpp_2m_sde": ([0.01, 0.02, 0.06, 0.09, 0.14, 0.25, 0.31, 0.13], 0.014),
    "lcm": ([0.00, 0.02, 0.06, 0.13, 0.21, 0.25, 0.22, 0.13], 0.002),
}


def inspect(host, model, sampler, sigmas):
    out = show(host, "FewstepInspectSampler", model=model, sampler=sampler, sigmas=sigmas, seed=0)
    return out.ui["fewstep"][0]


@pytest.mark.parametrize("name", KNOWN)
def test_known_weights_of_cores_samplers(host, flow, name):
    found = inspect(host, flow[0], core(name), uniform(host, flow, 8))
    weights, survival = KNOWN[name]
    assert max(abs(a - b) for a, b in zip(found["weights"], weights)) < 0.0101
    assert abs(found["survival"] - survival) < 0.002 and abs(sum(found["weights"]) - 1) < 0.01
    assert found["linear"] and found["right"]


@pytest.mark.parametrize(
    "name, options", [("ddpm", {}), ("res_multistep_ancestral", {}), ("euler", {"s_churn": 4.0})]
)
def test_what_core_does_wrong_on_flow_is_named(host, flow, name, options):
    found = inspect(host, flow[0], core(name, **options), uniform(host, flow, 8))
    verdict = found["verdict"]
    assert not found["right"] and ("signal" in verdict or "noise" in verdict) and "call" in verdict


def test_a_sampler_that_adapts_is_said_to_be_non_linear(host, flow):
    found = inspect(host, flow[0], core("dpm_adaptive"), uniform(host, flow, 8))
    assert not found["linear"] and found["weights"] == [] and "not linear" in found["report"]


def test_churn_is_found_and_the_model_stays_untouched(host, teacher):
    sampling = teacher[0].model.model_sampling
    found = inspect(
        host, teacher[0], run(host, "FewstepSampler", churn=0.7, order="2")[0], uniform(host, teacher, 6)
    )
    told = [c for c in found["churn"] if c is not None]
    assert len(told) >= 4 and max(abs(c - 0.7) for c in told) < 1e-3
    assert teacher[0].model.model_sampling is sampling and found["right"]


def test_a_part_of_a_schedule_and_a_sampler_that_fails_are_named(host, flow):
    with pytest.raises(ValueError, match="sigmas must end at 0 to be inspected, got 0.5"):
        inspect(host, flow[0], core("euler"), torch.tensor([1.0, 0.75, 0.5]))
    with pytest.raises(
        ValueError, match="sampler can't be inspected: it fails on this schedule of 1 steps with IndexError"
    ):
        inspect(host, flow[0], core("dpm_adaptive"), torch.tensor([1.0, 0.0]))
    idle = inspect(host, flow[0], core("uni_pc"), torch.tensor([1.0, 0.0]))
    assert "makes nothing of its predictions" in idle["report"]
    with pytest.raises(ValueError, match="sigmas must start at"):
        inspect(host, flow[0], core("euler"), torch.tensor([9.0, 0.5, 0.0]))


def test_cfg_pp_samplers_can_be_inspected(host, flow):
    assert inspect(host, flow[0], core("euler_cfg_pp"), uniform(host, flow, 4))["calls"] == 4


def test_inspecting_uni_pc_leaves_the_schedule_as_it_was(host, teacher):
    """It writes into its sigmas."""
    sigmas = uniform(host, teacher, 5)
    before = sigmas.clone()
    inspect(host, teacher[0], core("uni_pc"), sigmas)
    assert torch.equal(sigmas, before)


def test_inspection_of_20_steps_takes_less_than_a_second(host, teacher):
    sampler, sigmas = run(host, "FewstepSampler", churn=0.5, order="2")[0], uniform(host, teacher, 20)
    inspect(host, teacher[0], sampler, sigmas)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        inspect(host, teacher[0], sampler, sigmas)
        times.append(time.perf_counter() - begun)
    assert min(times) < 1.0
