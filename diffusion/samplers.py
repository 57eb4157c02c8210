"""The kernel: every sampler is one loop over a plan of moves (`moves.py`), steps linear in the predictions.

    for state in sample(denoiser, x, sigmas, path): ...     # a generator: the caller reports and cancels
    image = state.x

A step is  x_s = a x_t + sum_j b_j x0_j + k z  with coefficients from `step.py` (churn) and `multistep.py`
(order). They are worked out for the whole run beforehand, in float64; a step itself is a few operations on x
in its own dtype.

Where `path` is a forward process that is not Gaussian (`destruction/forward.py`), a step of the same plan is
the process's own `transition`, x_s = F_s(x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z), with the same
extrapolation of x0. The entries of the grid are then times in [0, 1], and so they are for a Gaussian that is
given as a process.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from numbers import Real
from typing import NamedTuple

import torch

from .faults import BadValue
from .moves import MODES, Kappa, Move, check_noising, plan
from .multistep import HIGHEST, correction_weights, heun_weights, target_weights
from .paths import Levels
from .step import weights

__all__ = [
    "HEUN",
    "MODES",
    "Coefficients",
    "Combination",
    "Denoiser",
    "Move",
    "Noise",
    "RowNoise",
    "State",
    "batch_noise",
    "check_noising",
    "check_order",
    "coefficients",
    "combine",
    "follow",
    "plan",
    "sample",
    "solve",
]

HEUN = "heun"
EARLIER = 3  # predictions before the last one that a step, of order 3 with the corrector, has weights for

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]  # (x, sigma) -> x0
Noise = Callable[[torch.Tensor], torch.Tensor]  # x -> fresh unit noise of its shape


class State(NamedTuple):
    """What a sampler knows after step `index`: x at `sigma_next` and the prediction x0 made at `sigma`."""

    index: int
    sigma: float
    sigma_next: float
    x0: torch.Tensor
    x: torch.Tensor


# ---- the loop --------------------------------------------------------------------------------------


def sample(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor | Sequence[float],
    path: Levels,
    *,
    order: float | str = 1,
    corrector: bool = False,
    churn: float = 0.0,
    kappa: Kappa | None = None,
    mode: str = "each step",
    start: float = 0.0,
    end: float = 1.0,
    s_noise: float = 1.0,
    noise: "Noise | RowNoise | None" = None,
) -> Iterator[State]:
    """Yield a `State` a step, from x (B, ...) at sigmas[0] to the last entry.

    denoiser    (x, sigma) -> x0 with sigma a float
    path        a `paths.Path`, or any `forward.ForwardProcess`: its grid is of times, and sigma above is the
                time
    order       1, 2, 3, or between them: multistep in log sigma, one model call a step; "heun": two stages,
                two calls in all steps but the last
    corrector   whether each step makes good what the last one would have done better; not with "heun"
    churn       0 and more, inf for all noise fresh; `mode` says where it is added, see `plan`
    kappa       the share of fresh noise itself, in place of churn and mode: a number in [0, 1] or a function
                (sigma, sigma_next) -> number
    start, end  shares of the run between which noise is added
    s_noise     standard deviation of the fresh noise; other than 1 it leaves the path on purpose
    noise       x -> z draws fresh unit noise, or a `RowNoise`; called only where it is needed
    Raises ValueError, before the model is called, for a grid that is no grid, an option out of range, or
    noise that is needed and not given.
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
    if noise is None and path.draws == "with kappa" and any(m.kappa > 0 or m.rises for m in moves):
        raise BadValue("churn or kappa above 0 needs fresh noise: pass noise, a function that draws it.")
    return follow(denoiser, x, moves, path, order=order, corrector=corrector, s_noise=s_noise, noise=noise)


def check_order(order: float | str, s_noise: float = 1.0) -> None:
    """Raise ValueError for an order or a noise strength that the kernel does not have."""
    number = isinstance(order, Real) and not isinstance(order, bool)
    if order != HEUN and not (number and 1 <= order <= HIGHEST):
        raise BadValue(
            "order must be a number from 1 to {highest}, or {heun}, got {got!r}.",
            highest=HIGHEST,
            heun=HEUN,
            got=order,
        )
    if not math.isfinite(s_noise) or s_noise < 0:
        raise BadValue("s_noise must be 0 or more, got {got}.", got=s_noise)


def follow(
    denoiser: Denoiser,
    x: torch.Tensor,
    moves: Sequence[Move],
    path: Levels,
    *,
    order: float | str = 1,
    corrector: bool = False,
    s_noise: float = 1.0,
    noise: "Noise | RowNoise | None" = None,
) -> Iterator[State]:
    """`sample` along the moves of a `plan`: a state for each."""
    if path.linear:
        numbers = coefficients(moves, path, order, corrector)
        steps = [_LinearStep(c, _at(noise, move), s_noise) for c, move in zip(numbers, moves)]
    else:
        steps = _transitions(moves, path, order, noise, s_noise)
    held = []
    for i, (move, step) in enumerate(zip(moves, steps)):
        if move.rises:
            x = step.rise(x)
        x0 = denoiser(x, move.sigma)
        held = [x0, *held[:EARLIER]]  # of which as many are used as the step has weights for
        if step.two_stage:
            held.insert(1, denoiser(step.ahead(x, x0), move.sigma_next))
        x = step.advance(x, held)
        yield State(i, move.sigma, move.sigma_next, x0, x)


def solve(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor | Sequence[float],
    path: Levels,
    *,
    order: float | str = 1,
    corrector: bool = False,
    churn: float = 0.0,
    kappa: Kappa | None = None,
    mode: str = "each step",
    start: float = 0.0,
    end: float = 1.0,
    s_noise: float = 1.0,
    noise: "Noise | RowNoise | None" = None,
) -> torch.Tensor:
    """The last state of `sample`, whose arguments these are: the image, when the grid ends at 0."""
    run = sample(
        denoiser,
        x,
        sigmas,
        path,
        order=order,
        corrector=corrector,
        churn=churn,
        kappa=kappa,
        mode=mode,
        start=start,
        end=end,
        s_noise=s_noise,
        noise=noise,
    )
    for state in run:
        x = state.x
    return x


# ---- steps that are linear with numbers ------------------------------------------------------------


class Combination(NamedTuple):
    """Weights of  state x + sum_j predictions_j x0_j + noise z,  x0_0 the prediction made last."""

    state: float
    predictions: Sequence[float] = ()
    noise: float = 0.0


class Coefficients(NamedTuple):
    """The numbers of one move.

    rise    noises x up before the prediction; None where no noise is added first
    step    leads to the next state
    ahead   leads, without noise, to where a second stage predicts; None where there is none
    """

    rise: Combination | None
    step: Combination
    ahead: Combination | None


class _LinearStep(NamedTuple):
    """One move by its `Coefficients`, with fresh noise of standard deviation `s_noise`."""

    coefficients: Coefficients
    noise: Noise | None
    s_noise: float

    @property
    def two_stage(self) -> bool:
        """Whether the model predicts at the step's end too."""
        return self.coefficients.ahead is not None

    def rise(self, x: torch.Tensor) -> torch.Tensor:
        """x noised up to where the model is called."""
        scale, _, fresh = self.coefficients.rise
        return combine(x, scale, [], fresh * self.s_noise, self.noise)

    def ahead(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Where the second stage predicts."""
        a, (b,), _ = self.coefficients.ahead
        return combine(x, a, [(b, x0)], 0.0, None)

    def advance(self, x: torch.Tensor, held: Sequence[torch.Tensor]) -> torch.Tensor:
        """The next state; `held` has the predictions so far, the last one first."""
        a, b, k = self.coefficients.step
        return combine(x, a, list(zip(b, held)), k * self.s_noise, self.noise)


def coefficients(
    moves: Sequence[Move], path: Levels, order: float | str, corrector: bool
) -> list[Coefficients]:
    """The `Coefficients` of every move."""
    rows = [[m.sigma_from, m.sigma, m.sigma_next, m.kappa] for m in moves]
    sigma_from, sigma, sigma_next, kappa = torch.tensor(rows, dtype=torch.float64).unbind(1)
    a, b, k = (v.tolist() for v in weights(path, sigma, sigma_next, kappa))
    scale, fresh = _noising(path, sigma_from, sigma)
    if order == HEUN:
        straight_a, straight_b, _ = (v.tolist() for v in weights(path, sigma, sigma_next))
    u = (-path.tau(sigma).log()).tolist()
    u_next = (-path.tau(sigma_next).log()).tolist()
    past, found = [], []
    for i, move in enumerate(moves):
        past = (
            [u[i]] if move.rises else [u[i], *past[:EARLIER]]
        )  # noise came in between: earlier ones are stale
        two_stage = order == HEUN and move.sigma_next > 0
        if two_stage:
            shares = heun_weights(u_next[i], u[i])
        else:
            shares = target_weights(1 if order == HEUN else order, u_next[i], past)
        terms = [b[i] * w for w in shares]
        if corrector and order != HEUN and i and not move.rises:
            late = [a[i] * b[i - 1] * w for w in correction_weights(order, past)]
            terms = [x + y for x, y in zip_longest(terms, late, fillvalue=0.0)]
        found.append(
            Coefficients(
                rise=Combination(scale[i], (), fresh[i]) if move.rises else None,
                step=Combination(a[i], terms, k[i]),
                ahead=Combination(straight_a[i], [straight_b[i]]) if two_stage else None,
            )
        )
    return found


def _noising(path, sigma, raised):
    """Lists (scale, fresh): noising from `sigma` up to `raised` >= sigma is scale x + fresh z."""
    scale = torch.where(raised > sigma, path.alpha(raised) / path.alpha(sigma), 1.0)
    fresh = (path.noise(raised).square() - (scale * path.noise(sigma)).square()).clamp_min(0).sqrt()
    return scale.tolist(), fresh.tolist()


def combine(
    x: torch.Tensor, a: float, terms: Sequence[tuple[float, torch.Tensor]], k: float, noise: Noise | None
) -> torch.Tensor:
    """a x + sum of b x0 over `terms` [(b, x0)] + k z; a = 0 leaves x out.

    noise(x) -> z is called only where k > 0.
    """
    (b, x0), *more = terms or [(0.0, x)]
    if abs(a + b - 1) < 1e-14:  # a step of order 1 without noise on most paths: one pass over x
        out = torch.lerp(x0, x, a) if a else x0.clone()
    else:
        out = (x * a).add_(x0, alpha=b) if a else x0 * b
    for b, x0 in more:
        out.add_(x0, alpha=b)
    return out.add_(noise(x), alpha=k) if k > 0 else out


# ---- steps of other forward processes --------------------------------------------------------------


class _TransitionStep(NamedTuple):
    """One move along a forward process, by its `transition`.

    `sample` has already refused the options that need numbers.

    shares      weights of the predictions in the step's target, the last one first
    two_stage   whether the model predicts at the step's end too
    fresh       x -> fresh noise, None where none is needed
    """

    process: Levels
    move: Move
    shares: Sequence[float]
    two_stage: bool
    fresh: Noise | None

    def ahead(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Where the second stage predicts."""
        return self.process.transition(x, x0, self.move.sigma, self.move.sigma_next, 0.0, self.fresh)

    def advance(self, x: torch.Tensor, held: Sequence[torch.Tensor]) -> torch.Tensor:
        """The next state; `held` has the predictions so far, the last one first."""
        x0, move = held[0], self.move
        if len(self.shares) > 1:
            x0 = combine(x0, self.shares[0], list(zip(self.shares[1:], held[1:])), 0.0, None)
        return self.process.transition(x, x0, move.sigma, move.sigma_next, move.kappa, self.fresh)


def _transitions(moves, process, order, noise, s_noise):
    """A `_TransitionStep` for every move."""
    past = []
    for move in moves:
        fresh = _scaled(_at(noise, move), s_noise)
        shares, two_stage = [1.0], False
        if order != 1:
            ends = torch.tensor([move.sigma, move.sigma_next], dtype=torch.float64)
            u, u_next = (-math.log(tau) if tau > 0 else math.inf for tau in process.tau(ends).tolist())
            past = [u, *past[:EARLIER]]
            two_stage = order == HEUN and move.sigma_next > 0
            if two_stage:
                shares = heun_weights(u_next, u)
            elif order != HEUN:
                shares = target_weights(order, u_next, past)
        yield _TransitionStep(process, move, shares, two_stage, fresh)


# ---- noise -----------------------------------------------------------------------------------------


def batch_noise(seed: int) -> Noise:
    """`noise(x)` from its own generators, seeded from `seed`; splitting the batch changes no sample.

    Sample b draws from a generator whose seed is a hash of (seed, b), on the CPU: results do not depend on
    device or batch size, and do not repeat the starting noise that a host draws from `seed`.
    """
    generators = []

    def noise(x):
        while len(generators) < x.shape[0]:
            generators.append(_generator(f"{int(seed)} {len(generators)} 0".encode()))
        return _drawn(generators, x)

    return noise


class RowNoise:
    """Fresh noise that belongs to a row and a level: `at(level)` is the noise of the step from there.

    It is drawn on the CPU from a generator whose seed is a hash of (the row's key, level, how often the run
    has come there): neither the rest of the batch nor the steps before count, so that a row alone, and each
    part of a run that is split, draw what the whole does.

    keys   one for each row, in any bytes; rows with the same key get the same noise
    scale  what the noise is multiplied by
    """

    def __init__(self, keys: Sequence[bytes], scale: float = 1.0):
        self.keys, self.scale = keys, scale
        self._visits = Counter()

    def at(self, level: float) -> Noise:
        """`noise(x)` of one step from that level; a level that the run comes back to gets other noise."""
        place, generators = f"{float(level):.6g}", []
        name = f" {place} {self._visits[place]}".encode()
        self._visits[place] += 1

        def noise(x):
            if not generators:
                generators.extend(_generator(key + name) for key in self.keys)
            return self.scale * _drawn(generators, x)

        return noise


def _at(noise: Noise | RowNoise | None, move: Move) -> Noise | None:
    """The noise of one move."""
    return noise.at(move.sigma_from) if isinstance(noise, RowNoise) else noise


def _scaled(noise: Noise | None, scale: float) -> Noise | None:
    """Noise of that standard deviation."""
    return noise if noise is None or scale == 1 else lambda x: noise(x) * scale


def _generator(name: bytes) -> torch.Generator:
    """A generator whose seed is a hash of the name."""
    digest = hashlib.blake2b(name, digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _drawn(generators: Sequence[torch.Generator], x: torch.Tensor) -> torch.Tensor:
    """Unit noise like x, each row from its own generator."""
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators[: len(x)]]).to(x)
