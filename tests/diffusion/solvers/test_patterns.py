"""Which predictions are asked for at which step: every pattern costs the calls it should, and the best of
them is nearer to the trajectories than guided steps at as many calls.
"""

import functools

import torch
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.samplers import sample
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.solvers.linear import apart, classical, solve_apart
from fewstep.diffusion.solvers.patterns import first, near, searched, unlike
from fewstep.diffusion.solvers.rollout import rolled_out
from fewstep.diffusion.solvers.trajectories import Trajectories
from oracles.mixture import line_mixture

CFG = 3.0
PARTS = {"c": line_mixture(12, std=0.4), "u": line_mixture(12, parts=5, std=0.9)}
grid = functools.partial(grids.grid, "auto", sigma_of=grids.flow_sigma(), path=FLOW, dimension=12)


def trajectories(count, generator, steps=60, cfg=CFG):
    def part(kind, x, sigma):
        return PARTS[kind].denoise(x, FLOW, sigma)

    def denoise(x, sigma, which=None):
        return part("u", x, sigma) + cfg * (part("c", x, sigma) - part("u", x, sigma))

    x = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    run = list(sample(denoise, x, grid(steps), FLOW, order=3))
    return Trajectories(
        FLOW,
        grid(steps),
        torch.stack([x, *(state.x for state in run)], 1),
        torch.stack([state.x0 for state in run], 1),
        denoise,
        apart=lambda x, sigma, which, kinds: [part(kind, x, sigma) for kind in kinds],
    )


def test_every_pattern_costs_the_calls_that_it_should():
    assert first(8, CFG) == [
        ("cu", "c", "c", "c", "c", "c", "c"),
        ("cu", "cu", "c", "c", "c", "c"),
        ("cu", "cu", "cu", "c", "c"),
        ("cu", "cu", "cu", "cu"),
    ]
    assert first(5, CFG) == [("cu", "c", "c", "c"), ("cu", "cu", "c")] and first(2, CFG) == [("cu",)]
    for asks in first(9, CFG):
        assert all(len("".join(other)) == 9 and other[0] == "cu" for other in [*near(asks), *unlike(asks)])
    assert list(near(("cu", "cu", "c", "c"))) == [("cu", "c", "cu", "c")]
    assert list(unlike(("cu", "c", "c"))) == [
        ("cu", "u", "c"),
        ("cu", "", "cu"),
        ("cu", "c", "u"),
        ("cu", "cu", ""),
    ]


def test_little_guidance_goes_on_with_the_unconditional_part():
    assert first(4, 0.4) == [("cu", "u", "u"), ("cu", "cu")]
    assert first(3, 0.0) == [("u", "u", "u"), ("cu", "u")] and first(3, 0.5) == [("cu", "c")]


def test_what_is_found_beats_guided_steps_at_as_many_calls(generator):
    data, asked = trajectories(96, generator), []
    unseen = trajectories(200, generator)

    def model(which):
        def ask(x, sigma, kinds):
            asked.append(len(x) * len(kinds))
            return data.apart(x, sigma, which, kinds)

        return ask

    found = searched(data, 8, grid, CFG, model)
    assert len(found) == 3 and {solver.calls(CFG) for solver in found} == {8}
    assert len({solver.asks for solver in found}) == 3
    assert sum(asked) <= 24 * 8 * 32  # patterns x calls x samples

    def error(solver):
        ask = functools.partial(data.apart, which=None)
        end = solve_apart(solver, lambda x, s, kinds: ask(x, s, kinds=kinds), unseen.states[:, 0])
        return float((end - unseen.states[:, -1]).square().mean().sqrt())

    before, asked[:] = sum(asked), []
    searched(data, 8, grid, CFG, model, lambda calls: sum(asked) + calls <= before / 4, 6)
    assert 0 < sum(asked) <= before / 4

    train = data.split()[0]
    whole = apart(classical(grid(4), FLOW), CFG)
    guided = rolled_out(data, classical(grid(4), FLOW), train, lambda x, s, k: [data.denoise(x, s)])
    assert error(found[0]) < 0.95 * error(apart(guided, CFG)) < 0.95 * error(whole)
    assert found[0].asks != ("cu",) * 4


def test_at_cfg_0_steps_of_one_call_are_tried(generator):
    data = trajectories(48, generator, cfg=0.0)

    def model(which):
        return lambda x, sigma, kinds: data.ask(x, sigma, which, kinds)

    found = {solver.asks for solver in searched(data, 4, grid, 0.0, model, most=20)}
    assert {("u",) * 4, ("cu", "u", "u")} < found and ("cu", "c", "c") not in found


def test_samples_whose_run_is_not_finite_are_left_out(generator):
    data = trajectories(64, generator)

    def model(which, every=False):
        def ask(x, sigma, kinds):
            answers = data.apart(x, sigma, which, kinds)
            lost = ((which % 5 == 1) | every) & (sigma < 0.9)
            return [torch.where(lost[:, None], torch.nan, answer) for answer in answers]

        return ask

    found = searched(data, 4, grid, CFG, model)
    assert len(found) == 3
    assert searched(data, 4, grid, CFG, functools.partial(model, every=True)) == []
