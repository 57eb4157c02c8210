"""Forward processes in the kernel: the Gaussian's is the kernel that was, bit for bit; all others step by the
same loop.
"""

import math

import pytest
import torch
from fewstep.diffusion.destruction.degradations import (
    Blur,
    DrawnFade,
    DrawnMask,
    Fade,
    Mask,
    Pixelate,
    hot_blur,
    hot_pixelate,
)
from fewstep.diffusion.destruction.forward import Chain, ForwardProcess, gaussian, time_of
from fewstep.diffusion.destruction.noise_schedules import SCHEDULES
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.samplers import batch_noise, plan, sample, solve
from fewstep.diffusion.schedules.grids import discrete_sigma, flow_sigma
from oracles.processes import on_path

F64 = torch.float64
SHAPE = (2, 3, 6, 5)
TIMES = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], dtype=F64)
LEVELS = {
    "flow": (FLOW, flow_sigma(3.0)),
    "flow shift 1": (FLOW, flow_sigma()),
    "variance exploding": (
        VARIANCE_EXPLODING,
        discrete_sigma(torch.linspace(-3.5, 2.7, 1000, dtype=F64).exp()),
    ),
    "variance preserving": (
        VARIANCE_PRESERVING,
        lambda t: (torch.as_tensor(t, dtype=F64) ** 2 * math.pi / 2).sin(),
    ),
}
ORDER = torch.linspace(0, 0.9, 30, dtype=F64).reshape(6, 5)
NOISY = {
    "Gaussian flow": gaussian(),
    "Gaussian VP linear": gaussian("VP linear"),
    "Gaussian EDM": gaussian("EDM", sigma_max=5.0),
    "hot blur": hot_blur(3.0),
    "pixelate + noise": hot_pixelate(4, "VP cosine"),
    "mask + noise": Chain(Mask(order=ORDER, fill=-1.0), gaussian("VE", sigma_max=3.0)),
    "fade + noise": Chain(Fade(other=torch.ones(1, 3, 6, 5)), gaussian()),
    "drawn fade": DrawnFade(),
    "blur + pixelate + noise": Chain(Blur(width=2.0), Pixelate(largest=2), gaussian()),
}
COLD = {
    "blur": Blur(width=3.0),
    "pixelate": Pixelate(largest=4),
    "mask": Mask(order=ORDER, fill=0.5),
    "fade": Fade(other=torch.ones(1, 3, 6, 5)),
    "blur + mask": Chain(Blur(width=2.0), Mask(order=ORDER)),
}


def model(x, level):
    """Some x0 that depends on x and on the level."""
    return torch.tanh(x * (0.3 + level)) * 0.7 - 0.1 * x.roll(1, -1)


def images(count, generator, dtype=F64):
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"churn": 0.0},
        {"churn": 1.0},
        {"churn": math.inf},
        {"churn": 0.3},
        {"kappa": 0.5},
        {"order": 2, "churn": 0.4},
        {"order": 3, "corrector": True},
        {"order": "heun", "churn": 1.0},
        {"churn": 2, "mode": "restart", "start": 0.2, "end": 0.6},
    ],
    ids=str,
)
def test_gaussian_process_is_the_kernel_bit_for_bit(name, options, generator):
    """DDIM, DDPM, consistency and all else: every state in times is that of the same run in sigmas."""
    path, sigma_of = LEVELS[name]
    process = on_path(path, sigma_of)
    (x,) = images(1, generator, torch.float32)
    by_sigma = sample(model, x, sigma_of(TIMES), path, noise=batch_noise(1), **options)
    by_time = sample(
        lambda x, t: model(x, float(process.noise(t))), x, TIMES, process, noise=batch_noise(1), **options
    )
    states = list(zip(by_sigma, by_time, strict=True))
    assert len(states) >= 5
    for ours, theirs in states:
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.x0, theirs.x0)
        assert float(process.noise(theirs.sigma)) == ours.sigma


@pytest.mark.parametrize("name", LEVELS)
def test_noise_raised_first_is_the_kernels_too(name, generator):
    path, sigma_of = LEVELS[name]
    fine = torch.linspace(0, 1, 200_001, dtype=F64)
    inverse = lambda sigma: fine[torch.searchsorted(sigma_of(fine), sigma).clamp(max=len(fine) - 1)]
    process, (x,) = on_path(path, sigma_of, inverse), images(1, generator)
    options = {"churn": 0.3, "mode": "raise first"}
    ours = solve(
        lambda x, t: model(x, float(process.noise(t))), x, TIMES, process, noise=batch_noise(1), **options
    )
    wanted = solve(model, x, sigma_of(TIMES), path, noise=batch_noise(1), **options)
    assert (ours - wanted).abs().max() < 1e-3
    with pytest.raises(ValueError, match="time_of_sigma must be given"):
        solve(model, x, TIMES, on_path(path, sigma_of), noise=batch_noise(1), **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_is_raised_first_up_to_where_the_run_began(schedule):
    process = gaussian(schedule)
    lam = process.log_snr(TIMES).tolist()
    for churn in (0.1, 0.5, 50.0):  # of which not every level is one that the process knows
        moves = plan(TIMES, process, churn=churn, mode="raise first")
        assert moves[0].sigma == 1 and all(move.sigma <= 1 for move in moves)
        for move, here, after in zip(moves[1:-1], lam[1:], lam[2:]):
            wanted = process.level(max(here - churn * (after - here), lam[0]))
            assert move.sigma == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_a_gaussian_process(schedule, generator):
    process, table = gaussian(schedule), SCHEDULES[schedule]()
    t = torch.linspace(0, 1, 11, dtype=F64)
    assert torch.equal(process.noise(t), table.sigma(t * table.t_max))
    assert torch.equal(process.alpha(t), table.alpha(t * table.t_max))
    assert torch.allclose(process.level(process.log_snr(t[1:-1])), t[1:-1], rtol=1e-9)
    x0, eps, x = images(3, generator)
    noised = process.corrupt(x0, eps, 0.4)
    assert torch.allclose(noised, process.alpha(0.4) * x0 + process.noise(0.4) * eps, rtol=1e-12)
    assert torch.allclose(process.solve_noise(x0, noised, 0.4), eps, rtol=1e-9, atol=1e-11)
    end = solve(lambda x, t: x0, x, TIMES, process, order=2, churn=1.0, noise=batch_noise(0))
    assert (end - x0).abs().max() <= 4 * float(process.noise(0.0)) + 1e-12


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", NOISY)
def test_step_is_the_formula(name, kappa, generator):
    """x_s = F_s(x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z), whatever closed form the process has."""
    process, (x0, eps, z) = NOISY[name], images(3, generator)
    if name == "drawn fade" and kappa == 0.3:
        return
    t, s = 0.6, 0.35
    x = process.corrupt(x0, eps, t)
    assert torch.allclose(process.solve_noise(x0, x, t), eps, rtol=1e-9, atol=1e-11)
    assert torch.allclose(process.corrupt(x0, eps, 0.0), x0, atol=0.06 if "VE" in process.name else 1e-12)
    mixed = math.sqrt(1 - kappa**2) * eps + kappa * z
    for step in (process.transition, lambda *a: ForwardProcess.transition(process, *a)):
        assert torch.allclose(
            step(x, x0, t, s, kappa, lambda x: z), process.corrupt(x0, mixed, s), rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", COLD)
def test_cold_step_is_cold_diffusions(name, kappa, generator):
    """kappa = 0 is algorithm 2 of Bansal et al., kappa = 1 algorithm 1."""
    process, (truth, x0) = COLD[name], images(2, generator)
    x = process.corrupt(truth, None, 0.6)
    ours = process.transition(x, x0, 0.6, 0.35, kappa)
    residual = x - process.corrupt(x0, None, 0.6)
    assert torch.allclose(
        ours, process.corrupt(x0, None, 0.35) + math.sqrt(1 - kappa**2) * residual, atol=1e-12
    )
    assert torch.allclose(
        process.transition(x, truth, 0.6, 0.35, kappa), process.corrupt(truth, None, 0.35), atol=1e-12
    )
    assert torch.equal(process.corrupt(truth, None, 0.0), truth)


@pytest.mark.parametrize("name", [*NOISY, *COLD])
def test_each_image_may_have_its_own_time(name, generator):
    process, (x0, eps) = (NOISY | COLD)[name], images(2, generator)
    t, s = torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.4])
    x = process.corrupt(x0, eps, t)
    out = process.transition(x, x0, t, s)
    for i in range(2):
        one, at, to = slice(i, i + 1), float(t[i]), float(s[i])
        assert torch.allclose(x[one], process.corrupt(x0[one], eps[one], at), atol=1e-6)  # times of float32
        assert torch.allclose(out[one], process.transition(x[one], x0[one], at, to), atol=1e-6)


@pytest.mark.parametrize("name", [*NOISY, *COLD])
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_sampler_runs_every_process_and_ends_at_what_all_predictions_agree_on(name, kappa, generator):
    process, (x0, eps) = (NOISY | COLD)[name], images(2, generator, torch.float32)
    times = []
    states = list(
        sample(
            lambda x, t: times.append(t) or x0,
            process.corrupt(x0, eps, 1.0),
            TIMES,
            process,
            kappa=kappa,
            noise=batch_noise(0),
        )
    )
    assert times == TIMES[:-1].tolist() and states[-1].x.dtype == torch.float32
    assert (states[-1].x - x0).abs().max() < (0.06 if "VE" in process.name else 1e-5)


@pytest.mark.parametrize(
    "options", [{"churn": 0.5}, {"order": 2}, {"order": 3, "kappa": 0.2}, {"order": "heun"}], ids=str
)
@pytest.mark.parametrize(
    "front", [Blur(width=1e-9), Mask(order=torch.full((6, 5), math.inf))], ids=lambda p: p.name
)
def test_a_destruction_that_destroys_nothing_leaves_the_kernel(front, options, generator):
    """The general loop at all orders, against the linear one."""
    bare, (x,) = gaussian("flow", shift=2.0), images(1, generator)
    ours = solve(model, x, TIMES, Chain(front, bare), noise=batch_noise(3), **options)
    assert torch.allclose(
        ours, solve(model, x, TIMES, bare, noise=batch_noise(3), **options), rtol=1e-9, atol=1e-9
    )


def test_two_noiseless_parts_and_noise_are_done_in_that_order(generator):
    x0, eps = images(2, generator)
    process = Chain(Blur(width=2.0), Mask(order=ORDER, fill=9.0), gaussian())
    mean = torch.where(ORDER < 0.5, 9.0, Blur(width=2.0).corrupt(x0, None, 0.5))
    assert torch.allclose(process.corrupt(x0, eps, 0.5), 0.5 * mean + 0.5 * eps)
    assert process.name == "blur + mask + flow" and process.noisy and process.log_snr(0.5) == 0


def test_gradients_reach_x0_and_noise_after_a_run_in_inference_mode(generator):
    x0, eps = (v[:1, :1].clone().requires_grad_() for v in images(2, generator))
    for process in (hot_blur(2.0), hot_blur(0.3), hot_pixelate(4), Blur(width=2.0)):
        with torch.inference_mode():
            process.corrupt(x0.detach().clone(), eps.detach().clone(), 0.7)
        x = process.corrupt(x0, eps, 0.7)
        assert torch.autograd.gradcheck(
            lambda a, b, p=process: p.corrupt(a, b, 0.7), (x0, eps), fast_mode=True
        )
        assert torch.autograd.grad(process.transition(x, x0, 0.7, 0.4).sum(), x0)[0].isfinite().all()


def test_every_process_has_usual_options_and_takes_any_size():
    for made in (gaussian, hot_blur, Blur, hot_pixelate, Pixelate, DrawnMask, DrawnFade):
        process = made()
        assert process.corrupt(torch.zeros(1, 2, 9, 7), torch.zeros(1, 2, 9, 7), 0.5).shape == (1, 2, 9, 7)
    assert hot_blur(8.0, "EDM", sigma_max=0.1).noise(1.0) == pytest.approx(0.1)


X = torch.zeros(1, 3, 6, 5)


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda: gaussian("linear"), "schedule must be one of VP linear, .*got 'linear'"),
        (lambda: gaussian().corrupt(X, X, 1.2), "t must be between 0 and 1, .*got 1.2"),
        (lambda: time_of([[0.5]]), r"t must be .*got shape 1 × 1"),
        (lambda: gaussian().solve_noise(X, X, 0.0), "t must be above 0 .*got 0"),
        (lambda: gaussian().transition(X, X, 0.5, 0.2, 0.5), "fresh must be given"),
        (lambda: hot_blur().transition(X, X, 0.5, 0.2, 0.5), "fresh must be given .*kappa 0.5, got None"),
        (lambda: hot_blur().transition(X, X, 0.5, 0.2, 1.5), "kappa must be between 0 and 1, got 1.5"),
        (lambda: Blur().solve_noise(X, X, 0.5), "process must have noise to solve for, got blur"),
        (lambda: Blur().corrupt(X[0], None, 0.5), r"x0 must have the shape \(B, C, H, W\), got 3 × 6 × 5"),
        (lambda: Blur(width=0.0), "width must be above 0, in pixels, got 0"),
        (lambda: Pixelate(largest=6), "largest must be a power of two.*got 6"),
        (
            lambda: Mask(order=torch.zeros(3, 3)).corrupt(X, None, 0.5),
            "order must have the size of the image, 6 x 5, got 3 x 3",
        ),
        (
            lambda: Fade(other=torch.zeros(1, 3, 4, 4)).corrupt(X, None, 0.5),
            "other must have the size .* got 4 x 4",
        ),
        (lambda: DrawnFade().solve_noise(X, X, 0.0), "t must be above 0 .*got 0"),
        (lambda: Chain(), "parts must be one or more processes"),
        (
            lambda: Chain(gaussian(), Blur()),
            r"parts must be .*only the last has noise, got \['flow'\] before it",
        ),
        (lambda: solve(model, X, TIMES, Blur(), churn=0.5), "churn must be 0 or inf.*blur.*Give kappa"),
        (lambda: solve(model, X, TIMES, Blur(), order=2), "order 1, on the process blur"),
        (
            lambda: solve(model, X, TIMES, hot_blur(), corrector=True, order=2),
            "corrector must be False on the process hot blur",
        ),
        (
            lambda: solve(model, X, TIMES, hot_blur(), mode="restart", churn=1),
            "mode must be each step .*got restart",
        ),
        (lambda: solve(model, X, TIMES, hot_blur(), kappa=0.5), "needs fresh noise"),
        (
            lambda: solve(model, X, TIMES, DrawnMask()),
            "noise must be given on the process drawn mask, got None",
        ),
        (
            lambda: solve(model, X, TIMES, DrawnFade(), kappa=0.5, noise=batch_noise(0)),
            "kappa must be 0 or 1 .*got 0.5",
        ),
        (lambda: solve(model, X, TIMES * 2, hot_blur()), "times must start at 1 or below"),
    ],
)
def test_what_cannot_be_is_refused(call, why):
    with pytest.raises(ValueError, match=why):
        call()
