"""Solvers written out: a run that is linear in its predictions is one row of weights for each step.

    x_{i+1} = r_0 x_i + r_1 p_1 + r_2 p_2 + ... + f_i z        row i

with p_1, p_2, ... the predictions so far, those of this step first, and z fresh unit noise, which most have
none of. A step may ask for the model's guided prediction, or for its conditional and unconditional ones
apart, either or both, which are then weighed apart, or for none. Classical solvers are such rows, worked out
from the step grid; fitted ones (`fit.py`) have rows of their own.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..faults import BadValue
from ..frozen import normalise
from ..paths import Path, check_sigmas
from ..samplers import Denoiser, Noise, RowNoise, coefficients, combine, plan
from ..step import step, weights

GUIDED, CONDITIONAL, UNCONDITIONAL = "g", "c", "u"
KINDS = (GUIDED, CONDITIONAL, UNCONDITIONAL)

Ask = Callable[[torch.Tensor, float, str], Sequence[torch.Tensor]]  # (x, sigma, kinds) -> x0 of each kind


@dataclasses.dataclass(frozen=True)
class LinearSolver:
    """Where the model is called and what is made of its answers.

    sigmas  (steps + 1) noise levels, descending; the model is called at sigmas[i] in step i, the last is 0
    rows    `steps` rows of weights: of the state, of this step's predictions in the order of its `asks`, of
            those of the step before, and so on; at most all there are
    asks    for each step what it asks of the model, letters of `KINDS`, "cu" for instance, or "" for nothing;
            () where every step asks for the guided prediction
    fresh   for each step the weight of fresh unit noise; () where none is added
    Raises ValueError for sigmas that are no such grid, and for rows that do not fit them or are not finite.
    """

    sigmas: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    asks: tuple[str, ...] = ()
    fresh: tuple[float, ...] = ()

    def __post_init__(self):
        grid = check_sigmas(self.sigmas)
        if grid[-1] != 0:
            raise BadValue("sigmas must end at 0, got {got:g}.", got=grid[-1])
        given = tuple(tuple(float(w) for w in row) for row in self.rows)
        fresh = tuple(float(w) for w in self.fresh)
        asks = tuple(self.asks)
        if all(asked == GUIDED for asked in asks) and len(asks) == len(grid) - 1:
            asks = ()
        if not any(fresh) and len(fresh) == len(grid) - 1:
            fresh = ()
        normalise(self, sigmas=tuple(grid.tolist()), rows=given, asks=asks, fresh=fresh)
        if len(self.rows) != self.steps:
            raise BadValue(
                "coefficients must have a row for each of {steps} steps, got {got}.",
                steps=self.steps,
                got=len(self.rows),
            )
        for name in ("asks", "fresh"):
            if values := getattr(self, name):
                self._check_length(name, values)
        self._check_asks()
        if not all(math.isfinite(w) and w >= 0 for w in self.fresh):
            raise BadValue("fresh must be numbers of 0 or more, got {got}.", got=list(self.fresh))
        self._check_rows()

    def _check_length(self, name, values):
        if len(values) != self.steps:
            raise BadValue(
                "{name} must have an entry for each of {steps} steps, got {got}.",
                name=name,
                steps=self.steps,
                got=len(values),
            )

    def _check_asks(self):
        for i, asked in enumerate(self.asks):
            known = isinstance(asked, str) and set(asked) <= set(KINDS) and len(set(asked)) == len(asked)
            if not known or not (asked or i):
                raise BadValue(
                    "asks of step {step} must be letters of {kinds}, each at most once, and in the first "
                    "step at least one, got {got!r}.",
                    step=i + 1,
                    kinds=", ".join(KINDS),
                    got=asked,
                )

    def _check_rows(self):
        most = 1
        for i, (row, asked) in enumerate(zip(self.rows, self.asked)):
            most += len(asked)
            if not 1 + len(asked) <= len(row) <= most:
                raise BadValue(
                    "coefficients of step {step} must be {least} to {most} numbers (state, this prediction, "
                    "earlier ones), got {got}.",
                    step=i + 1,
                    least=1 + len(asked),
                    most=most,
                    got=len(row),
                )
            if not all(map(math.isfinite, row)):
                raise BadValue(
                    "coefficients must be finite; those of step {step} are {row}.",
                    step=i + 1,
                    row=[f"{w:g}" for w in row],
                )

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.sigmas) - 1

    @property
    def asked(self) -> tuple[str, ...]:
        """For each step what it asks of the model."""
        return self.asks or (GUIDED,) * self.steps

    def calls(self, cfg: float = 1.0) -> int:
        """How many predictions of the model a run takes: a guided one is two, but for cfg = 1."""
        return sum(2 if kind == GUIDED and cfg != 1 else 1 for asked in self.asked for kind in asked)


class Step(NamedTuple):
    """What a run knows after step `index`: x at `sigma_next`, and the `predictions` made at `sigma`, of which
    x0 is the first, or the newest one before where there is none.
    """

    index: int
    sigma: float
    sigma_next: float
    x0: torch.Tensor
    x: torch.Tensor
    predictions: tuple[torch.Tensor, ...]


def classical(
    sigmas: torch.Tensor | Sequence[float],
    path: Path,
    order: float = 2,
    corrector: bool = True,
    churn: float = 0.0,
    kappa: float | Callable[[float, float], float] | None = None,
) -> LinearSolver:
    """The kernel's solver of that order along `sigmas` as a `LinearSolver`: the same run up to rounding."""
    moves = plan(sigmas, path, churn=churn, kappa=kappa)
    steps = [found.step for found in coefficients(moves, path, order, corrector)]
    return LinearSolver(
        tuple(torch.as_tensor(sigmas).tolist()),
        tuple((step.state, *step.predictions[: i + 1]) for i, step in enumerate(steps)),
        fresh=tuple(step.noise for step in steps),
    )


def apart(solver: LinearSolver, cfg: float, asks: Sequence[str] | None = None) -> LinearSolver:
    """A solver of guided predictions as one that asks for their parts: g = u + cfg (c - u).

    asks: for each step "cu", "c", "u" or "", both in the first (or at cfg 0 and 1 the part that is all) and
    by default in all, which changes nothing.
    A part that is not asked for is taken to be as far from the other as when both were asked last; of a step
    that asks for nothing the prediction is the one before.
    """
    both = CONDITIONAL + UNCONDITIONAL
    asks = tuple(asks or [both] * solver.steps)
    # all g, the last c - u and the last g, as {(step, kind): weight}
    guided, apart_by, newest = [], {}, {}
    for i, asked in enumerate(asks):
        c, u = (i, CONDITIONAL), (i, UNCONDITIONAL)
        if set(asked) == set(both):
            apart_by = {c: 1.0, u: -1.0}
        if asked:
            own, share = (c, cfg - 1) if CONDITIONAL in asked else (u, cfg)
            newest = _sum((1.0, {own: 1.0}), (share, apart_by))
        guided.append(newest)
    rows, places = [], []
    for i, (row, asked) in enumerate(zip(solver.rows, asks)):
        places = [*((i, kind) for kind in asked), *places]
        weighed = _sum(*zip(row[1:], guided[i::-1]))
        rows.append((row[0], *(weighed.get(place, 0.0) for place in places)))
    return LinearSolver(solver.sigmas, tuple(rows), asks, solver.fresh)


def _sum(*parts):
    """The sum of weight times {name: number} over parts (weight, numbers)."""
    out = {}
    for weight, numbers in parts:
        for name, value in numbers.items():
            out[name] = out.get(name, 0.0) + weight * value
    return out


def lengthened(solver: LinearSolver, path: Path, asked: str | None = None) -> LinearSolver:
    """The solver with one step more and the same results: its longest step, in flow time, is taken in two.

    With x0 = (x_next - A x) / B the picture that the step goes to by a first-order step of weights A and B,
    the first-order step to the middle, of weights a and b, leads to x' = a x + b x0, and from there the old
    step goes on. asked: what the new step asks of the model, by default as the longest does; none of it has a
    weight yet.
    """
    times = path.flow_time(torch.tensor(solver.sigmas, dtype=torch.float64))
    at = int((times[:-1] - times[1:]).argmax())
    middle = float(path.at_flow_time(times[at : at + 2].mean()))
    a, b, _ = (float(v) for v in weights(path, solver.sigmas[at], middle))
    whole, share, _ = (float(v) for v in weights(path, solver.sigmas[at], solver.sigmas[at + 1]))
    asks = solver.asked
    asked = asks[at] if asked is None else asked
    state, *predictions = solver.rows[at]
    share = b / share
    scale = a - share * whole + share * state
    new = [0.0] * len(asked)
    halves = [
        (scale, *(share * weight for weight in predictions)),
        (state / scale, *new, *((1 - share * state / scale) * weight for weight in predictions)),
    ]
    later, made = [], 0
    for row, kinds in zip(solver.rows[at + 1 :], asks[at + 1 :]):
        made += len(kinds)
        place = 1 + made  # of the new predictions in a row that reaches back to them
        later.append((*row[:place], *new, *row[place:]) if len(row) > place else row)
    fresh = solver.fresh and (*solver.fresh[:at], 0.0, *solver.fresh[at:])
    return LinearSolver(
        (*solver.sigmas[: at + 1], middle, *solver.sigmas[at + 1 :]),
        (*solver.rows[:at], *halves, *later),
        (*asks[: at + 1], asked, *asks[at + 1 :]),
        fresh,
    )


def whole(denoiser: Denoiser) -> Ask:
    """A denoiser, which knows only guided predictions, as what `follow` asks."""

    def ask(x, sigma, kinds):
        if set(kinds) - {GUIDED}:
            raise BadValue(
                "denoiser must answer for its conditional and unconditional predictions apart, as the solver "
                "asks for them; this one gives only the guided one."
            )
        return [denoiser(x, sigma) for _ in kinds]

    return ask


class Given(NamedTuple):
    """Inpainting: a part of the picture is given, and predictions are made into it there.

    picture  (B, ...)
    mask     sigma -> what share of each value of x0 is the model's, 0 to 1; the rest is the picture's
    path     of the run
    """

    picture: torch.Tensor
    mask: Callable[[float], torch.Tensor]
    path: Path


def follow(
    solver: LinearSolver,
    ask: Ask,
    x: torch.Tensor,
    noise: Noise | RowNoise | None = None,
    given: Given | None = None,
) -> Iterator[Step]:
    """Yield a `Step` each, from x (B, ...) at sigmas[0] to 0.

    ask(x, sigma, kinds) -> one prediction of x0 for each letter of kinds, sigma a float; not called for none.
    noise: of the fresh noise, as in `samplers.sample`; needed where the solver adds some, else ValueError.
    given: what is given of the picture. Fitted rows lead to another end than a prediction that never changes
    does, so by the picture's share each state is put right by what its row lacks of the straight way there:

        x_{i+1} = row_i(x_i, p) + (1 - m) (y_{i+1} - row_i(y_i, picture)),   y_0 = x,   y_i -> picture
    """
    if solver.fresh and noise is None:
        raise BadValue("noise must be given where a solver adds fresh noise, got None.")
    held, fresh, straight = [], solver.fresh or (0.0,) * solver.steps, x
    for i, (row, asked) in enumerate(zip(solver.rows, solver.asked)):
        sigma, below = solver.sigmas[i : i + 2]
        made = tuple(ask(x, sigma, asked)) if asked else ()
        held = [*made, *held]
        drawn = noise.at(sigma) if isinstance(noise, RowNoise) else noise
        if given is None:
            x = stepped(row, x, held, fresh[i], drawn)
        else:
            mask, there = given.mask(sigma), step(straight, given.picture, given.path, sigma, below)
            lack = there - stepped(row, straight, [given.picture] * len(held))
            own = stepped(row, x, held, fresh[i], _shared(drawn, mask))
            x, straight = torch.where(mask > 0, own + (1 - mask) * lack, there), there
        yield Step(i, sigma, below, held[0], x, made)


def _shared(noise, share):
    """That share of the noise."""
    return lambda x: share * noise(x)


def run(
    solver: LinearSolver,
    denoiser: Denoiser,
    x: torch.Tensor,
    noise: Noise | RowNoise | None = None,
    given: Given | None = None,
) -> Iterator[Step]:
    """`follow` of a solver that asks for guided predictions alone: denoiser(x, sigma) -> x0."""
    return follow(solver, whole(denoiser), x, noise, given)


def stepped(
    row: Sequence[float],
    x: torch.Tensor,
    held: Sequence[torch.Tensor],
    fresh: float = 0.0,
    noise: Noise | None = None,
) -> torch.Tensor:
    """The state after the step of that row; `held` has the predictions so far, this step's first."""
    state, *predictions = row
    return combine(x, state, list(zip(predictions, held)), fresh, noise)


def solve(
    solver: LinearSolver, denoiser: Denoiser, x: torch.Tensor, noise: Noise | RowNoise | None = None
) -> torch.Tensor:
    """The image at the end of `run`."""
    for state in run(solver, denoiser, x, noise):
        x = state.x
    return x


def solve_apart(
    solver: LinearSolver, ask: Ask, x: torch.Tensor, noise: Noise | RowNoise | None = None
) -> torch.Tensor:
    """The image at the end of `follow`."""
    for state in follow(solver, ask, x, noise):
        x = state.x
    return x
