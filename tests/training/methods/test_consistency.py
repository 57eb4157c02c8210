"""The analytic gate: the objective against the exact consistency function of a mixture, for eps, v, flow and
zero-SNR models.

A model is a network output of its own kind, turned into x0 by `diffusion.predictions`, as real adapters do.
"""

import pytest
import torch
from analytic import MIXTURE, MODELS, as_model, levels, numbers
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.predictions import expand
from fewstep.training.methods.consistency_loss import consistency
from fewstep.training.methods.distances import METRICS, pseudo_huber, squared_error
from fewstep.training.methods.teacher_step import solver_step

COUNT = 2000


def batch(name, generator, every=1):
    """x_t from noised data, x_s by the teacher's Heun step, and the three levels."""
    grid, path = levels(name)[::every], MODELS[name][0]
    x0 = MIXTURE.sample(COUNT, generator)
    i = torch.randint(len(grid) - 1, (COUNT,), generator=generator)
    t, s = grid[i], grid[i + 1]
    x_t = expand(path.alpha(t), x0) * x0 + expand(t, x0) * torch.randn(
        x0.shape, generator=generator, dtype=x0.dtype
    )
    return x_t, t, s, i


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("phases", [1, 4])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_loss_is_0_at_the_exact_consistency_function_only(name, phases, solver, generator):
    path, kind = MODELS[name]
    grid = levels(name)
    x_t, t, s, i = batch(name, generator)
    length = (len(grid) - 1) // phases
    e = grid[(i // length + 1) * length]
    teacher = as_model(lambda x, sigma: MIXTURE.denoise(x, path, sigma), path, kind)
    x_s = solver_step(teacher, x_t, path, t, s, numbers(x_t), solver=solver)

    def to_end(x, sigma, end):
        """The x0 whose DDIM step leads from x at sigma to the exact trajectory's point at the phase's end."""
        goal = MIXTURE.flow(x, path, sigma, end)
        a = expand(end / sigma, x)
        return (goal - a * x) / (expand(path.alpha(end), x) - a * expand(path.alpha(sigma), x))

    def exact(x, sigma, condition):
        return as_model(lambda x, sigma: to_end(x, sigma, e[condition]), path, kind)(x, sigma, condition)

    gate = 1e-6 if solver == "heun" else 1e-4  # Euler's own error on this grid
    assert consistency(exact, exact, path, x_t, x_s, t, s, e, numbers(x_t)).mean() < gate * MIXTURE.variance

    def halfway(x, sigma, condition):
        """Not consistent: halfway between the right answer and the mean."""
        return (
            0.5 * exact(x, sigma, condition) + 0.5 * MIXTURE.centre * (sigma / sigma.max())[:, None] ** 0.25
        )

    assert (
        consistency(halfway, halfway, path, x_t, x_s, t, s, e, numbers(x_t)).mean() > 1e-5 * MIXTURE.variance
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_student_that_is_not_consistent_has_a_loss(name, generator):
    """The teacher itself is no consistency function: over steps of an eighth of the way its loss is far from
    0.
    """
    path, kind = MODELS[name]
    x_t, t, s, i = batch(name, generator, every=32)
    teacher = as_model(lambda x, sigma: MIXTURE.denoise(x, path, sigma), path, kind)
    x_s = MIXTURE.flow(x_t, path, t, s)
    assert (
        consistency(teacher, teacher, path, x_t, x_s, t, s, torch.zeros_like(t), numbers(x_t)).mean()
        > 1e-2 * MIXTURE.variance
    )
    exact = as_model(lambda x, sigma: MIXTURE.consistency(x, path, sigma), path, kind)
    assert (
        consistency(exact, exact, path, x_t, x_s, t, s, torch.zeros_like(t), numbers(x_t)).mean()
        < 1e-12 * MIXTURE.variance
    )


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("name", MODELS)
def test_solver_step_has_its_order(name, solver, order, generator):
    """Local error is one order higher than global: halving the step divides it by 2^(order + 1)."""
    path, kind = MODELS[name]
    teacher = as_model(lambda x, sigma: MIXTURE.denoise(x, path, sigma), path, kind)
    errors = []
    for width in (16, 8):
        grid = levels(name)
        t, s = (grid[k].expand(64) for k in (100, 100 + width))
        x = MIXTURE.flow(
            float(grid[0])
            * torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            path,
            grid[0],
            grid[100],
        )
        errors.append(
            float(
                (
                    solver_step(teacher, x, path, t, s, numbers(x), solver=solver)
                    - MIXTURE.flow(x, path, t, s)
                ).norm()
            )
        )
    assert errors[0] / errors[1] > 2 ** (order + 0.6)


@pytest.mark.parametrize("name", ["flow", "zero-SNR", "zero-SNR in ComfyUI"])
def test_solver_step_is_finite_on_pure_noise_and_exact_at_the_data(name, generator):
    path, kind = MODELS[name]
    teacher = as_model(lambda x, sigma: MIXTURE.denoise(x, path, sigma), path, kind)
    ends = path.at_flow_time(torch.tensor([0.9, 0.02], dtype=torch.float64))
    t = torch.stack([levels(name)[0], ends[1]]).repeat_interleave(4)
    s = torch.stack([ends[0], 0 * ends[0]]).repeat_interleave(4)
    x = expand(t, torch.ones(8, 4)) * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    out = solver_step(teacher, x, path, t, s, numbers(x))
    scale = path.alpha(s[0]) + s[0]
    assert (out[:4] - MIXTURE.flow(x[:4], path, t[0], s[0])).abs().max() < 1e-2 * scale
    assert torch.equal(out[4:], teacher(x[4:], t[4:], None))


def test_gradient_reaches_the_student_only(generator):
    path = FLOW
    x_t, t, s, _ = batch("flow", generator, every=32)
    student, target = (torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
    loss = consistency(
        lambda x, sigma, condition: student(x),
        lambda x, sigma, condition: target(x),
        path,
        x_t,
        x_t,
        t,
        s,
        0 * t,
        numbers(x_t),
    ).mean()
    loss.backward()
    assert student.weight.grad.abs().sum() > 0 and target.weight.grad is None


def test_boundary_target_is_the_teachers_point_and_the_target_network_is_not_asked(generator):
    x_t, t, s, _ = batch("flow", generator, every=32)

    def never(x, sigma, condition):
        raise AssertionError("the target network was called")

    x_s = MIXTURE.flow(x_t, FLOW, t, s)
    right = as_model(
        lambda x, sigma: (x_s - expand(s / t, x) * x) / expand((1 - s) - s / t * (1 - t), x), FLOW, "velocity"
    )
    assert consistency(right, never, FLOW, x_t, x_s, t, s, s, numbers(x_t)).mean() < 1e-20


def test_metrics():
    a, b = torch.zeros(2, 3), torch.tensor([[3.0, 0, 0], [0, 0, 0]])
    assert squared_error(a, b).tolist() == [3, 0]
    assert torch.allclose(pseudo_huber(a, b), torch.tensor([3**0.5, 0.0]), atol=1e-3)
    assert set(METRICS) == {"l2", "l1", "pseudo-huber"}
