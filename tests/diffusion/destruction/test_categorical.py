"""The categorical process on a small alphabet: every probability is enumerated and compared."""

import itertools
import math

import pytest
import torch
from fewstep.diffusion.samplers import batch_noise, sample
from oracles.categorical import KINDS, Categorical, draw
from torch.nn.functional import one_hot

F64 = torch.float64
K = 4
PRIOR = {
    "uniform": torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64),
    "mask": torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=F64),
}
KERNELS = ["posterior", 0.0, 0.3, 1.0]
every = pytest.mark.parametrize("kind", KINDS)


def process_of(kind, **options):
    return Categorical(classes=K, kind=kind, keep=lambda t: (1 - t) ** 1.5, **options)


def kernel(process, which, x, x0, t, s):
    return process.posterior(x, x0, t, s) if which == "posterior" else process.reuse(x, x0, t, s, which)


def grid():
    """All (x0, x_t) that can be: tokens (K * K,) each."""
    return (v.flatten() for v in torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij"))


def possible(process, x0, t):
    """q(x_t | x0) (K, K) flat, as `grid`."""
    return (
        process.matrix(t).flatten() * (torch.tensor([1.0] * (K - 1) + [float(process.kind == "uniform")])[x0])
    )


@every
def test_matrices_compose_as_a_markov_chain(kind):
    """Q_1 Q_2 ... Q_n of the paper (eq. 2, with beta_i = 1 - a_i/a_{i-1}) is Qbar_n."""
    process, product = process_of(kind), torch.eye(K, dtype=F64)
    times = [i / 10 for i in range(11)]
    for s, t in itertools.pairwise(times):
        beta = 1 - process.kept(t) / process.kept(s)
        noise = (
            torch.full((K, K), 1 / K, dtype=F64)
            if kind == "uniform"
            else one_hot(torch.full((K,), K - 1), K).double()
        )
        one = (1 - beta) * torch.eye(K, dtype=F64) + beta * noise
        assert torch.allclose(process.matrix(t, s), one, atol=1e-14)
        product = product @ one
        assert torch.allclose(process.matrix(t), product, atol=1e-14)
        assert torch.allclose(process.matrix(t).sum(1), torch.ones(K, dtype=F64), rtol=1e-14)
    assert torch.equal(process.matrix(1.0), process.rest().expand(K, K))


@every
@pytest.mark.parametrize("t, s", [(0.7, 0.4), (1.0, 0.9), (0.5, 0.0)])
def test_posterior_is_bayes_rule(kind, t, s):
    """q(x_s | x_t, x0) = q(x_s | x0) q(x_t | x_s) / q(x_t | x0), term by term."""
    process = process_of(kind)
    for x0, x in itertools.product(range(K), range(K)):
        total = process.matrix(t)[x0, x]
        if total == 0 or (kind == "mask" and x0 == K - 1):
            continue
        wanted = [process.matrix(s)[x0, y] * process.matrix(t, s)[y, x] / total for y in range(K)]
        ours = process.posterior(torch.tensor([x]), torch.tensor([x0]), t, s)
        assert torch.allclose(ours[0], torch.stack(wanted), atol=1e-14)


@every
@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("t, s", [(0.7, 0.4), (1.0, 0.9), (0.5, 0.0), (0.3, 0.29)])
def test_every_kernel_respects_the_marginals(kind, which, t, s):
    """Sum over x_t of q(x_t | x0) q(x_s | x_t, x0) = q(x_s | x0): what the framework asks, exactly, for each
    x0.
    """
    process = process_of(kind)
    x0, x = grid()
    reached = (
        (possible(process, x0, t)[:, None] * kernel(process, which, x, x0, t, s)).reshape(K, K, K).sum(1)
    )
    data = K - (kind == "mask")
    assert torch.allclose(reached[:data], process.matrix(s)[:data], atol=1e-14)
    assert (kernel(process, which, x, x0, t, s) >= -1e-16).all()


@every
@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_chain_with_the_true_posterior_ends_at_the_data(kind, which, steps):
    """One token, all states carried along as probabilities: every p(x_s) is the prior times Qbar_s, in any
    number of steps.
    """
    process, prior = process_of(kind), PRIOR[kind]
    x, law = torch.arange(K), prior @ process.matrix(1.0)
    times = torch.linspace(1, 0, steps + 1).tolist()
    for t, s in itertools.pairwise(times):
        joint = prior[:, None] * process.matrix(t)
        guess = torch.nan_to_num(joint / joint.sum(0)).T  # p(x0 | x_t), rows x_t
        law = law @ kernel(process, which, x, guess, t, s)
        assert torch.allclose(law, prior @ process.matrix(s), atol=1e-14)
    assert torch.allclose(law, prior, atol=1e-14)


@every
def test_chances_are_averaged_as_their_tokens_are(kind):
    process, x = process_of(kind), torch.tensor([0, 2, K - 1, K - 1])
    p = torch.rand(4, K, generator=torch.Generator().manual_seed(0), dtype=F64) * (PRIOR[kind] > 0)
    p /= p.sum(1, keepdim=True)
    known = process._seen(x, p)
    for which in (0.3, "posterior"):
        each = torch.stack([kernel(process, which, x, torch.full((4,), k), 0.6, 0.2) for k in range(K)], 1)
        seen = torch.tensor(
            [
                [1.0 if kind == "uniform" or v == K - 1 or k == v else 0.0 for k in range(K)]
                for v in x.tolist()
            ]
        )
        wanted = (known * seen)[:, :, None] * torch.nan_to_num(each)
        assert torch.allclose(kernel(process, which, x, p, 0.6, 0.2), wanted.sum(1), atol=1e-14)
    assert torch.allclose(process.chances(p, 0.3), p @ process.matrix(0.3))


def test_reusing_all_noise_is_the_posterior_where_tokens_are_masked():
    process = process_of("mask")
    x0, x = grid()
    can = possible(process, x0, 0.6) > 0
    assert torch.allclose(
        process.reuse(x, x0, 0.6, 0.2)[can], process.posterior(x, x0, 0.6, 0.2)[can], atol=1e-14
    )


@every
@pytest.mark.parametrize("which", ["posterior", 0.0, 0.3])
def test_tokens_taken_alone_are_right_in_the_limit_of_short_steps(kind, which):
    """Two tokens that are always equal; each is guessed by its own p(x0 | both x_t). The error falls with the
    step.
    """
    process, prior = process_of(kind), PRIOR[kind]
    pair = torch.tensor(list(itertools.product(range(K), repeat=2)))
    both, errors = torch.zeros(K, K, dtype=F64), []
    both.fill_diagonal_(1).mul_(prior[:, None])
    for steps in (4, 32, 64):
        law = (process.rest()[:, None] * process.rest()).flatten()
        for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
            seen = (
                process.matrix(t)[:, pair[:, 0]] * process.matrix(t)[:, pair[:, 1]] * prior[:, None]
            )  # of the common token
            guess = torch.nan_to_num(seen / seen.sum(0)).T
            first, second = (kernel(process, which, pair[:, i], guess, t, s) for i in (0, 1))
            law = torch.einsum(
                "p,pa,pb->ab", law, torch.nan_to_num(first), torch.nan_to_num(second)
            ).flatten()
        errors.append(float((law - both.flatten()).abs().sum() / 2))
    if which == 0.3:  # as for images, a fixed kappa leaves what one step forgets
        assert errors[2] < errors[0]
    else:
        assert errors[0] > 0.03 and errors[2] < 0.03 and errors[1] / errors[2] > 1.5


@every
@pytest.mark.parametrize(
    "options",
    [{"kappa": 0.0}, {"kappa": 0.3}, {"kappa": 1.0}, {"churn": math.inf}, {"ancestral": True}],
    ids=str,
)
def test_sampled_chain_has_the_data(kind, options, generator):
    """The kernel's own loop, on 4000 tokens: their shares are the prior's within 4 standard deviations, at
    every step.
    """
    options = dict(options)
    process, prior, count = process_of(kind, ancestral=options.pop("ancestral", False)), PRIOR[kind], 4000
    asked = []

    def denoiser(x, t):
        asked.append(t)
        joint = prior[:, None] * process.matrix(t)
        return torch.nan_to_num(joint / joint.sum(0)).T[x]

    normal = lambda x: torch.randn(x.shape, generator=generator, dtype=F64)
    x = process.corrupt(torch.zeros(count, 1, dtype=torch.long), normal(torch.empty(count, 1)), 1.0)
    for state in sample(denoiser, x, torch.tensor([1.0, 0.7, 0.3, 0.0]), process, noise=normal, **options):
        wanted = prior @ process.matrix(state.sigma_next)
        shares = torch.bincount(state.x.flatten(), minlength=K) / count
        assert ((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / count).sqrt() + 1e-12).all()
        assert state.x.dtype == torch.long
    assert asked == pytest.approx([1.0, 0.7, 0.3])


def test_batches_may_be_split_and_draws_follow_their_chances(generator):
    process, x = process_of("uniform"), torch.full((5, 3), 2)
    run = lambda x: [
        s.x for s in sample(lambda x, t: x, x, [1.0, 0.5, 0.0], process, kappa=0.5, noise=batch_noise(7))
    ][0]
    assert torch.equal(run(x)[:2], run(x[:2]))
    chances = torch.tensor([0.0, 0.25, 0.75, 0.0], dtype=F64)
    found = (
        torch.bincount(draw(chances.expand(8000, K), torch.randn(8000, generator=generator)), minlength=K)
        / 8000
    )
    assert found[0] == found[3] == 0 and abs(float(found[1]) - 0.25) < 0.02


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="kind must be one of uniform, mask, got 'blur'"):
        Categorical(classes=3, kind="blur")
    with pytest.raises(ValueError, match="classes must be 2 or more"):
        Categorical(classes=1)
    with pytest.raises(ValueError, match="t must be s or more"):
        process_of("mask").matrix(0.2, 0.4)
    with pytest.raises(ValueError, match="process must have noise to solve for, got categorical"):
        process_of("mask").solve_noise(torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), 0.5)
    with pytest.raises(ValueError, match="noise must be given on the process categorical"):
        list(sample(lambda x, t: x, torch.zeros(1, 1).long(), [1.0, 0.0], process_of("mask")))
