"""The one step, its samplers, and the oracle they are held against."""

import math

import pytest
import torch
from fewstep.diffusion.paths import FLOW, PATHS, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.samplers import RowNoise, batch_noise, follow, plan, sample, solve
from fewstep.diffusion.schedules import grids
from fewstep.diffusion.step import check_churn, fresh_share, step, weights
from oracles.mixture import line_mixture

LEVELS = {"variance exploding": (20.0, 5.0), "flow": (0.9, 0.6), "variance preserving": (0.95, 0.7)}
START = {"variance exploding": 40.0, "flow": 1.0, "variance preserving": 1.0}


def sigmas_for(p, steps):
    """A grid that is smooth in the path's own sigma and alpha."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if p is VARIANCE_PRESERVING:
        return (t**2 * math.pi / 2).sin()
    return START[p.name] * t ** (4 if p is VARIANCE_EXPLODING else 1)


def ddim_reference(abar, x, x0, eta, noise, t, s):
    """DDIM's own formula in alpha-bar (Song et al. 2021, eq. 12 and 16)."""
    a, b = abar[t], abar[s]
    variance = (1 - b) / (1 - a) * (1 - a / b)
    eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
    return b.sqrt() * x0 + (1 - b - eta**2 * variance).sqrt() * eps + eta * variance.sqrt() * noise


@pytest.mark.parametrize("churn, eta", [(0.0, 0.0), (1.0, 1.0)])
def test_churn_0_and_1_are_ddim_and_ddpm_of_diffusers(churn, eta, generator):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        clip_sample=False, prediction_type="sample", timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(20)
    abar = theirs.alphas_cumprod.double()
    t, s = int(theirs.timesteps[4]), int(theirs.timesteps[5])
    x, x0, z = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma_t, sigma_s = (1 - abar[t]).sqrt(), (1 - abar[s]).sqrt()
    kappa = fresh_share(churn, VARIANCE_PRESERVING, sigma_t, sigma_s)
    ours = step(x, x0, VARIANCE_PRESERVING, sigma_t, sigma_s, kappa, z)
    wanted = theirs.step(x0, t, x, eta=eta, variance_noise=z).prev_sample
    assert (ours - wanted).abs().max() < 1e-5
    assert (ours - ddim_reference(abar, x, x0, eta, z, t, s)).abs().max() < 1e-12


def test_churn_0_is_euler_of_flow_matching(generator):
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(4)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    velocities = [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(4)]
    ours, wanted = x.double(), x
    for i, u in enumerate(velocities):
        sigma, after = theirs.sigmas[i].double(), theirs.sigmas[i + 1].double()
        ours = step(ours, ours - sigma * u, FLOW, sigma, after)
        wanted = theirs.step(u, theirs.timesteps[i], wanted).prev_sample
    assert (ours - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0, math.inf])
def test_step_keeps_the_marginal(name, churn):
    """Variance of x_s given x_0, from unit noise in x_t and z: sigma_s^2, and the signal alpha_s."""
    p = PATHS[name]
    t, s = (torch.tensor(v, dtype=torch.float64) for v in LEVELS[name])
    a, b, k = weights(p, t, s, fresh_share(churn, p, t, s))
    assert math.isclose(float((a * t) ** 2 + k**2), float(s) ** 2, rel_tol=1e-12)
    assert math.isclose(float(a * p.alpha(t) + b), float(p.alpha(s)), rel_tol=1e-12)


def test_ends_are_exact(generator):
    x, x0, z = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    assert torch.equal(step(x, x0, FLOW, 0.3, 0.0, fresh_share(1.0, FLOW, 0.3, 0.0), z), x0)
    one, half = torch.tensor(1.0), torch.tensor(0.5)
    assert fresh_share(1.0, FLOW, one, half) == 0 and fresh_share(math.inf, FLOW, one, half) == 1
    assert torch.allclose(step(x, x0, FLOW, 1.0, 0.5), 0.5 * x0 + 0.5 * x)


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
def test_bad_churn_is_refused(bad):
    with pytest.raises(ValueError, match="churn must be 0 or more"):
        check_churn(bad)


@pytest.mark.parametrize("name", PATHS)
def test_oracle_denoiser_is_the_posterior_mean(name, generator):
    """Against a plain Monte-Carlo posterior mean with importance weights."""
    p, mixture = PATHS[name], line_mixture(dimensions=2)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    x0 = mixture.sample(400_000, generator)
    x = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    log = -(x - p.alpha(sigma) * x0).square().sum(1) / (2 * sigma**2)
    wanted = (log.softmax(0)[:, None] * x0).sum(0)
    assert (mixture.denoise(x, p, sigma)[0] - wanted).abs().max() < 0.01


@pytest.mark.parametrize("name", PATHS)
def test_oracle_ode_is_what_a_fine_solver_finds(name, generator):
    p, mixture = PATHS[name], line_mixture()
    x = START[name] * torch.randn(64, 4, generator=generator, dtype=torch.float64)
    fine = [
        solve(lambda x, s: mixture.denoise(x, p, s), x, sigmas_for(p, n), p, order=2) for n in (1000, 2000)
    ]
    exact = mixture.consistency(x, p, START[name])
    errors = [float((f - exact).abs().max()) for f in fine]
    assert errors[1] < 3e-4 and errors[1] < errors[0] / 3  # second order


@pytest.mark.parametrize("name", PATHS)
def test_oracle_flow_composes(name, generator):
    p, mixture = PATHS[name], line_mixture()
    high, low = LEVELS[name]
    x = high * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    twice = mixture.flow(mixture.flow(x, p, high, low), p, low, 0.0)
    assert (twice - mixture.consistency(x, p, high)).abs().max() < 1e-9


@pytest.mark.parametrize("order, wanted", [(1, 1.0), (2, 2.0)])
@pytest.mark.parametrize("name", PATHS)
def test_measured_order(order, wanted, name, generator):
    p, mixture = PATHS[name], line_mixture(std=0.5)
    x = START[name] * torch.randn(64, 4, generator=generator, dtype=torch.float64)
    exact = mixture.consistency(x, p, START[name])
    errors = [
        float(
            (solve(lambda x, s: mixture.denoise(x, p, s), x, sigmas_for(p, n), p, order=order) - exact).norm()
        )
        for n in (400, 800)
    ]
    assert abs(math.log2(errors[0] / errors[1]) - wanted) < 0.2


@pytest.mark.parametrize("name", PATHS)
def test_churn_keeps_the_distribution(name, generator):
    """Data = one Gaussian: mean and standard deviation after many steps with churn 1 are the data's, and
    noise was drawn.
    """
    p, mixture = PATHS[name], line_mixture(parts=1, std=0.5)
    x = START[name] * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    if p is VARIANCE_EXPLODING:
        x = x + mixture.sample(20_000, generator)
    drawn = []

    def noise(x):
        drawn.append(1)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    out = solve(lambda x, s: mixture.denoise(x, p, s), x, sigmas_for(p, 250), p, churn=1.0, noise=noise)
    mean = mixture.centre + mixture.positions[0] * mixture.direction
    assert (out.mean(0) - mean).abs().max() < 0.03
    assert (out.std(0) - 0.5).abs().max() < 0.02
    assert len(drawn) >= 248


def test_kappa_1_is_the_consistency_sampler_and_churn_0_draws_no_noise(generator):
    x = torch.randn(3, 2, 4, 4, generator=generator)
    sigmas = grids.grid("uniform", 3, grids.flow_sigma(), FLOW)
    predictions = torch.randn(3, 3, 2, 4, 4, generator=generator)
    calls = iter(predictions)
    zs = batch_noise(5)
    out = solve(lambda x, s: next(calls), x, sigmas, FLOW, kappa=1.0, noise=batch_noise(5))
    calls = iter(predictions)
    run = sample(lambda x, s: next(calls), x, sigmas, FLOW, churn=math.inf, noise=batch_noise(5))
    states = list(run)
    assert torch.equal(out, states[-1].x) and torch.equal(out, predictions[2])
    assert torch.allclose(states[0].x, (1 / 3) * predictions[0] + (2 / 3) * zs(x), atol=1e-6)

    def never(x):
        raise AssertionError("noise was drawn")

    solve(lambda x, s: predictions[0], x, sigmas, FLOW, churn=0.0, noise=never)


def test_batch_noise_is_a_samples_own_whatever_the_batch():
    x = torch.zeros(4, 3, 8, 8)
    four, one = batch_noise(7), batch_noise(7)
    assert torch.equal(four(x)[:1], one(x[:1])) and torch.equal(four(x)[:1], one(x[:1]))
    assert not torch.equal(batch_noise(5)(x), batch_noise(5 + 2**32)(x))
    first = batch_noise(7)(x)
    assert first.flatten(1).std(1).sub(1).abs().max() < 0.2
    start = torch.randn(x.shape, generator=torch.manual_seed(7))
    assert min((first[i] - start[j]).abs().mean() for i in range(4) for j in range(4)) > 0.5
    assert (first[0] - first[1]).abs().mean() > 0.5


@pytest.mark.parametrize(
    "options",
    [{"churn": 1.0}, {"kappa": 1.0}, {"churn": 0.5, "order": "heun"}, {"churn": 1.0, "mode": "restart"}],
)
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 4, 4)], ids=["image", "video"])
def test_row_noise_is_a_rows_own_in_any_batch(options, shape, generator):
    """Alone, in another place and beside others; `restart` comes back to levels and has new noise there."""
    x, keys = torch.randn(3, *shape, generator=generator), [b"a", b"b", b"c"]
    sigmas = grids.grid("uniform", 5, grids.flow_sigma(), FLOW)

    def end(rows):
        noise = RowNoise([keys[i] for i in rows])
        return solve(lambda x, s: 0.3 * x, x[rows], sigmas, FLOW, noise=noise, **options)

    assert torch.equal(end([2, 0])[0], end([0, 1, 2])[2])
    assert torch.equal(end([1]), end([0, 1, 2])[1:2])


def test_row_noise_is_new_at_every_step_and_at_every_visit():
    x, noise = torch.zeros(1, 4, 8, 8), RowNoise([b"a"], 2.0)
    draws = torch.cat([noise.at(level)(x) for level in (0.7, 0.5, 0.7)]).flatten(1)
    assert torch.corrcoef(draws).sub(torch.eye(3)).abs().max() < 0.25
    assert (draws.std(1) / 2 - 1).abs().max() < 0.15
    assert torch.equal(RowNoise([b"a"], 2.0).at(0.7)(x).flatten(), draws[0])
    assert torch.equal(RowNoise([b"b", b"b"]).at(0.7)(x.expand(2, 4, 8, 8)).diff(dim=0).abs().max(), x.max())


@pytest.mark.parametrize("p", [FLOW, VARIANCE_EXPLODING], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "options",
    [
        {"churn": 0.7},
        {"kappa": 1.0},
        {"churn": 1.0, "order": "heun"},
        {"churn": 0.8, "mode": "raise first"},
    ],
    ids=str,
)
def test_a_split_run_is_the_whole_run(p, options, generator):
    sigmas = sigmas_for(p, 6)
    x = sigmas[0].float() * torch.randn(2, 3, 4, 4, generator=generator)

    def along(part, x):
        moves = plan(part, p, highest=float(sigmas[0]), **{k: v for k, v in options.items() if k != "order"})
        noise, order = RowNoise([b"a", b"b"]), options.get("order", 1)
        *_, last = follow(lambda x, s: 0.3 * x / (1 + s), x, moves, p, order=order, noise=noise)
        return last.x

    whole = along(sigmas, x)
    assert torch.equal(along(sigmas[3:], along(sigmas[:4], x)), whole)
    assert torch.equal(
        whole, solve(lambda x, s: 0.3 * x / (1 + s), x, sigmas, p, noise=RowNoise([b"a", b"b"]), **options)
    )


@pytest.mark.parametrize(
    "options, why",
    [
        ({"order": 4}, "order"),
        ({"churn": 1.0}, "noise"),
        ({"kappa": 2.0}, "kappa"),
        ({"churn": -1.0}, "churn"),
        ({"kappa": 0.0, "churn": 1.0}, "kappa must be given alone.*with churn 1 and mode 'each step'"),
        ({"kappa": 0.5, "mode": "restart"}, "kappa must be given alone.*mode 'restart'"),
        ({"kappa": lambda t, s: 0.0, "mode": "raise first"}, "kappa must be given alone"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_called(options, why):
    def model(x, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=why):
        solve(model, torch.zeros(1, 2), [1.0, 0.7, 0.4, 0.0], FLOW, **options)


@pytest.mark.parametrize(
    "options", [{"kappa": lambda t, s: 0.0}, {"churn": 1.0}, {"churn": 0.5, "end": 0.0}], ids=str
)
def test_noise_that_no_step_draws_need_not_be_given(options):
    x = torch.ones(1, 2)
    sigmas = [1.0, 0.5, 0.0]
    assert torch.equal(
        solve(lambda x, s: s * x, x, sigmas, FLOW, **options), solve(lambda x, s: s * x, x, sigmas, FLOW)
    )
