"""The kernel: every sampler here is one loop over a plan of steps that are linear in the predictions.

    for state in sample(denoiser, x, sigmas, path): ...         # a generator: the caller owns progress and
                                                                cancellation
    image = state.x

A step is  x_s = a x_t + sum_j b_j x0_j + k z  with coefficients from `step.py` (churn) and `multistep.py`
                                               (order). They are
worked out for the whole run beforehand, in float64; a step itself is a few operations on x in its own dtype.

Where `path` is a forward process that is not Gaussian (`forward.py`), a step of the same plan is the
process's own `transition`: x_s = F_s(x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z), with the same
extrapolation of x0. The entries of the grid are then times in [0, 1], and so they are for a Gaussian that is
given as a process.
"""

import dataclasses
import hashlib
import math
import typing
from itertools import zip_longest

import torch

from .faults import BadValue
from .multistep import ORDERS, correction_weights, heun_weights, target_weights
from .paths import check_sigmas
from .step import check_churn, fresh_share, weights

HEUN = "heun"
MODES = ("each step", "raise first", "restart")


class State(typing.NamedTuple):
    """What a sampler knows after step `index`: the state x at `sigma_next`, and the prediction x0 made at
    `sigma`.
    """

    index: int
    sigma: float
    sigma_next: float
    x0: torch.Tensor
    x: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Move:
    """One step of a plan: noise x from `sigma_from` up to `sigma` where that is higher, predict, go to
    `sigma_next`.

    kappa is the share of fresh noise at the end. Where noise is added first, earlier predictions serve no
    more.
    """

    sigma_from: float
    sigma: float
    sigma_next: float
    kappa: float = 0.0


def plan(sigmas, path, *, churn=0.0, kappa=None, mode="each step", start=0.0, end=1.0):
    """The moves of a run, a list of `Move`; the arguments are those of `sample`.

    each step     every step over-shoots by `churn` of its lambda-length and is noised back (`step.py`)
    raise first   the same share of noise is added before the step: lambda falls by churn times the step's
                  lambda-length, but
                  not below that of sigmas[0] (EDM, Karras et al. 2022, arXiv:2206.00364, algorithm 2, gamma =
                  e^(c h) - 1)
    restart       the steps in [start, end) are run, noised back up and run again, `churn` times (a whole
                  number): each
                  repetition costs its steps' model calls (Xu et al. 2023, arXiv:2306.14878, algorithm 1)
    """
    grid = check_sigmas(sigmas, path, path.levels)
    churn = check_noising(churn, mode, start, end)
    steps = len(grid) - 1
    inside = [start <= i / steps < end for i in range(steps)]
    levels = grid.tolist()
    if kappa is not None or mode == "each step":
        shares = _shares(grid, path, churn, kappa)
        return [Move(t, t, s, k if on else 0.0) for t, s, k, on in zip(levels, levels[1:], shares, inside)]
    if mode == "raise first":
        return [
            Move(t, raised(path, t, s, churn, levels[0]) if on else t, s)
            for t, s, on in zip(levels, levels[1:], inside)
        ]
    return _restarts(levels, inside, int(churn))


def check_noising(churn, mode="each step", start=0.0, end=1.0):
    """`churn` as a float; raises ValueError naming what of these `plan` can't take, before there is a grid."""
    churn = check_churn(churn)
    if mode not in MODES:
        raise BadValue("mode must be one of {modes}, got {got!r}.", modes=list(MODES), got=mode)
    if start > end:
        raise BadValue("start must not be above end, got {got} and {end}.", got=start, end=end)
    if not 0 <= start <= end <= 1:
        raise BadValue(
            "start and end must be shares of the run with 0 <= start <= end <= 1, got {got} and {end}.",
            got=start,
            end=end,
        )
    if mode == "restart" and not churn.is_integer():
        raise BadValue(
            "churn must be a whole number in mode restart, where it counts the repetitions; got {got:g}.",
            got=churn,
        )
    return churn


def _shares(grid, path, churn, kappa):
    """The share of fresh noise of every step."""
    if kappa is None:
        return fresh_share(churn, path, grid[:-1], grid[1:]).tolist() if churn else [0.0] * (len(grid) - 1)
    pairs = zip(grid[:-1].tolist(), grid[1:].tolist())
    ends = not getattr(path, "noisy", True)  # the last step too: without noise kappa is what is let go of x_t
    shares = [float(kappa(t, s) if callable(kappa) else kappa) if s > 0 or ends else 0.0 for t, s in pairs]
    if not all(0 <= k <= 1 for k in shares):
        raise BadValue(
            "kappa must be between 0 and 1, got {got} to {shares}.",
            got=min(shares),
            shares=max(shares),
        )
    return shares


def raised(path, sigma, sigma_next, churn, highest):
    """The noise level whose lambda is below that of `sigma` by churn times the step's lambda-length, at most
    `highest`.
    """
    t, s = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    if s == 0 or path.alpha(t) == 0 or churn == 0:
        return sigma
    up = path.log_snr(t) - churn * (path.log_snr(s) - path.log_snr(t))
    return min(float(path.level(up)), highest)


def _restarts(levels, inside, repeats):
    moves = [Move(t, t, s) for t, s in zip(levels, levels[1:])]
    chosen = [i for i, on in enumerate(inside) if on and levels[i + 1] > 0]
    if not repeats or len(moves) == 1:
        return moves
    if not chosen:
        raise BadValue(
            "start and end must leave a step before the last of {count} for mode restart to repeat. Widen "
            "them, or use more steps.",
            count=len(moves),
        )
    first, last = chosen[0], chosen[-1] + 1
    again = [dataclasses.replace(moves[first], sigma_from=levels[last]), *moves[first + 1 : last]]
    return moves[:last] + again * repeats + moves[last:]


def sample(
    denoiser,
    x,
    sigmas,
    path,
    *,
    order=1,
    corrector=False,
    churn=0.0,
    kappa=None,
    mode="each step",
    start=0.0,
    end=1.0,
    s_noise=1.0,
    noise=None,
):
    """Yield a `State` a step, from x (B, ...) at sigmas[0] to the last entry.

    denoiser(x, sigma) -> x0 with sigma a float; `noise(x) -> z` draws fresh unit noise and is called only
    where it is needed.
    path      a `paths.Path`, or any `forward.ForwardProcess`: its grid is of times, and sigma above is the
              time
    order     1, 2, 3: multistep in log sigma, one model call a step; "heun": two stages, two calls a step but
              the last
    corrector  whether each step makes good what the last one would have done better; not with "heun"
    churn     0 and more, inf for all noise fresh; `mode` says where it is added, see `plan`
    kappa     the share of fresh noise itself, a number in [0, 1] or a function (sigma, sigma_next) -> number,
              for churn
    start, end  shares of the run between which noise is added
    s_noise   standard deviation of the fresh noise; other than 1 it leaves the path on purpose
    Raises ValueError, before the model is called, for a grid that is no grid, an option out of range, or
    noise that is
    wanted and not given.
    """
    check_order(order, s_noise)
    if not path.linear:
        path.check_options(order, corrector, mode)
    moves = plan(sigmas, path, churn=churn, kappa=kappa, mode=mode, start=start, end=end)
    if not path.linear:
        path.check_shares([move.kappa for move in moves])
    if noise is None and path.draws == "always":
        raise BadValue(
            "noise must be given on the process {name}, got None. Pass a function that draws unit noise.",
            name=path.name,
        )
    if noise is None and path.draws == "with kappa" and (churn > 0 or callable(kappa) or kappa):
        raise BadValue("churn or kappa above 0 needs fresh noise: pass noise, a function that draws it.")
    return follow(denoiser, x, moves, path, order=order, corrector=corrector, s_noise=s_noise, noise=noise)


def check_order(order, s_noise=1.0):
    """Raise ValueError for an order or a noise strength that the kernel does not have."""
    if order != HEUN and order not in ORDERS:
        raise BadValue(
            "order must be one of {str} or {heun}, got {got!r}.",
            str=list(ORDERS),
            heun=HEUN,
            got=order,
        )
    if not math.isfinite(s_noise) or s_noise < 0:
        raise BadValue("s_noise must be 0 or more, got {got}.", got=s_noise)


def follow(denoiser, x, moves, path, *, order=1, corrector=False, s_noise=1.0, noise=None):
    """`sample` along the moves of a `plan`, whose number is the number of states."""
    stages = _linear if path.linear else _general
    held = []
    for i, (move, (rise, ahead, advance)) in enumerate(
        zip(moves, stages(moves, path, order, corrector, s_noise, noise))
    ):
        if rise is not None:
            x = rise(x)
        x0 = denoiser(x, move.sigma)
        held = [x0, *held[:3]]  # no more of them than the step has weights for are used
        if ahead is not None:
            held.insert(1, denoiser(ahead(x, x0), move.sigma_next))
        x = advance(x, held)
        yield State(i, move.sigma, move.sigma_next, x0, x)


def _linear(moves, path, order, corrector, s_noise, noise):
    """For every move, functions: x noised up or None; (x, x0) to where a second stage predicts or None; (x,
    held) to the next x.
    """
    for up, (a, b, k, ahead) in _coefficients(moves, path, order, corrector and order != HEUN):
        yield (
            up and (lambda x, up=up: combine(x, up[0], [], up[1] * s_noise, noise)),
            ahead and (lambda x, x0, to=ahead: combine(x, to[0], [(to[1], x0)], 0.0, noise)),
            lambda x, held, a=a, b=b, k=k: combine(x, a, list(zip(b, held)), k * s_noise, noise),
        )


def _general(moves, process, order, corrector, s_noise, noise):
    """`_linear` for any forward process, by its `transition`; `sample` has refused the options that this has
    not.
    """
    fresh = noise if s_noise == 1 or noise is None else lambda x: noise(x) * s_noise

    def advance(x, held, move, shares):
        x0 = (
            combine(held[0], shares[0], list(zip(shares[1:], held[1:])), 0.0, None)
            if len(shares) > 1
            else held[0]
        )
        return process.transition(x, x0, move.sigma, move.sigma_next, move.kappa, fresh)

    past = []
    for move in moves:
        t, s, shares, ahead = move.sigma, move.sigma_next, [1.0], None
        if order != 1:
            u, u_next = (
                -math.log(tau) if tau > 0 else math.inf
                for tau in process.tau(torch.tensor([t, s], dtype=torch.float64)).tolist()
            )
            past = [u, *past[:3]]
            if order != HEUN:
                shares = target_weights(order, u_next, past)
            elif s > 0:
                shares = heun_weights(u_next, u)
                ahead = lambda x, x0, t=t, s=s: process.transition(x, x0, t, s, 0.0, fresh)
        yield None, ahead, lambda x, held, move=move, shares=shares: advance(x, held, move, shares)


def _coefficients(moves, path, order, corrector):
    """For every move: (scale, fresh) of its noising up or None, and (a, [b_0, b_1, ...], k, ahead) of its
    step.

    ahead is (a, b) of the step without noise to where a second stage predicts, None where there is none.
    """
    level = torch.tensor(
        [[m.sigma_from, m.sigma, m.sigma_next, m.kappa] for m in moves], dtype=torch.float64
    ).unbind(1)
    a, b, k = (v.tolist() for v in weights(path, *level[1:]))
    straight = (
        list(zip(*(v.tolist() for v in weights(path, *level[1:3])[:2])))
        if order == HEUN
        else [None] * len(moves)
    )
    scale, fresh = _noising(path, *level[:2])
    u, u_next, past, out = (-path.tau(level[1]).log()).tolist(), (-path.tau(level[2]).log()).tolist(), [], []
    for i, move in enumerate(moves):
        raises = move.sigma > move.sigma_from
        past = [u[i]] if raises else [u[i], *past[:3]]  # noise came in between: earlier predictions are stale
        two_stage = order == HEUN and move.sigma_next > 0
        shares = (
            heun_weights(u_next[i], u[i])
            if two_stage
            else target_weights(1 if order == HEUN else order, u_next[i], past)
        )
        terms = [b[i] * w for w in shares]
        if corrector and i and not raises:
            late = [a[i] * b[i - 1] * w for w in correction_weights(order, past)]
            terms = [x + y for x, y in zip_longest(terms, late, fillvalue=0.0)]
        out.append(
            (
                (scale[i], fresh[i]) if raises else None,
                (a[i], terms, k[i], straight[i] if two_stage else None),
            )
        )
    return out


def rows(sigmas, path, order, corrector=False):
    """The steps of a run without noise as rows (state, this prediction, earlier ones), a list of lists; not
    for "heun".
    """
    coefficients = _coefficients(plan(sigmas, path), path, order, corrector)
    return [[a, *terms[: i + 1]] for i, (_, (a, terms, _, _)) in enumerate(coefficients)]


def _noising(path, sigma, raised):
    """Lists (scale, fresh): noising from `sigma` up to `raised` >= sigma is scale x + fresh z."""
    scale = torch.where(raised > sigma, path.alpha(raised) / path.alpha(sigma), 1.0)
    return scale.tolist(), (path.noise(raised).square() - (scale * path.noise(sigma)).square()).clamp_min(
        0
    ).sqrt().tolist()


def combine(x, a, terms, k, noise):
    """a x + sum of b x0 over `terms` [(b, x0)] + k z; noise(x) -> z is called only where k > 0. a = 0 leaves
    x out.
    """
    (b, x0), *more = terms or [(0.0, x)]
    if abs(a + b - 1) < 1e-14:  # a step of order 1 without noise on most paths: one pass over x
        out = torch.lerp(x0, x, a) if a else x0.clone()
    else:
        out = (x * a).add_(x0, alpha=b) if a else x0 * b
    for b, x0 in more:
        out.add_(x0, alpha=b)
    return out.add_(noise(x), alpha=k) if k > 0 else out


def solve(denoiser, x, sigmas, path, **options):
    """The last state of `sample`: the image, when the grid ends at 0."""
    for state in sample(denoiser, x, sigmas, path, **options):
        x = state.x
    return x


def batch_noise(seed, begin=0.0):
    """`noise(x)` from generators of its own, seeded from `seed`; the batch can be split without changing a
    sample.

    Sample b draws from a generator whose seed is a hash of (seed, b, begin), on the CPU: results do not
    depend on device or batch size, and repeat neither the starting noise that a host draws from `seed` nor,
    with the run's first sigma as `begin`, the noise of the other part of a run that was split.
    """
    generators = []

    def noise(x):
        while len(generators) < x.shape[0]:
            name = f"{int(seed)} {len(generators)} {float(begin):.6g}".encode()
            generators.append(
                torch.Generator().manual_seed(
                    int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")
                )
            )
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators[: x.shape[0]]]).to(x)

    return noise
