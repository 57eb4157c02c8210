"""What a sampler does, found without a model.

It is linear in its predictions, so one-hot predictions read its weights.

`run(respond, noise, latent)` stands for a whole sampling run: it begins from `latent` under unit `noise`,
asks `respond(x, sigma) -> x0` where the model would be called, and returns the result. Its own noise must be
the same in every run. In the velocity basis

    x0 = (x - sigma u) / (alpha + sigma),      result = survival * tau_1 * eps - tau_1 * sum_n h_n u_n,

where u_n is the n-th prediction, eps the starting noise and tau_1 = sigma_1/(alpha_1 + sigma_1) the noise
level of the first call: h_n is the weight of each prediction in the picture (they sum to 1 on a path that
starts at pure noise, and wherever no noise is added), and `survival` how much of the starting noise outlives
the run (Euler 1, the consistency sampler nearly 0). The oracle is another run in which the data is one point,
so that x at every call must be alpha x_0 + sigma eps: it shows whether the sampler keeps the path's signal
and noise.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .faults import BadValue, Message
from .paths import Path
from .predictions import to_x0

TOLERANCE = 0.03  # deviation of signal or noise that the verdict calls wrong

Respond = Callable[[torch.Tensor, float], torch.Tensor]  # (x, sigma) -> x0
Run = Callable[[Respond, torch.Tensor, torch.Tensor], torch.Tensor]  # (respond, noise, latent) -> result


@dataclasses.dataclass(frozen=True)
class Weights:
    """`sigmas` of the calls, the weight of each prediction, the survival of the starting noise, and how far
    the run is from linear.
    """

    sigmas: Sequence[float]
    predictions: Sequence[float]
    survival: float
    nonlinearity: float

    @property
    def linear(self) -> bool:
        """Whether the weights mean anything."""
        return self.nonlinearity < 1e-3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the model saw at every call, as shares of what it expects: `signal` of alpha x_0, `noise` of sigma
    (1 is right), and what is wrong with them, in words.
    """

    sigmas: Sequence[float]
    signal: Sequence[float]
    noise: Sequence[float]
    faults: Sequence[Message]

    @property
    def right(self) -> bool:
        """Whether every call and the result were within `TOLERANCE`."""
        return not self.faults

    @property
    def messages(self) -> Sequence[Message]:
        """What is wrong, or that nothing is."""
        return self.faults or (Message("right: signal and noise are what the model expects at every call"),)

    @property
    def text(self) -> str:
        """The messages in English."""
        return "; ".join(map(str, self.messages))


class _Call(NamedTuple):
    """A call of the model: its sigma, and the first element of x."""

    sigma: float
    x: float


def prediction_weights(run: Run, path: Path, shape: Sequence[int]) -> Weights:
    """`Weights` of a sampler; shape (1, ...) of a state.

    Raises ValueError when the state has too few elements for the number of calls.
    """
    zero = torch.zeros(shape, dtype=torch.float64)
    start = _one_hot(shape)

    def result(velocities, noise):
        """The run's result (D,) and its calls, where the model predicts these velocities and then 0."""
        calls = []

        def respond(x, sigma):
            level = torch.as_tensor(float(sigma), dtype=torch.float64)
            u = velocities[len(calls)].to(x) if len(calls) < len(velocities) else torch.zeros_like(x)
            calls.append(_Call(float(level), float(x.flatten()[0])))
            return to_x0(u, "velocity", x, path.alpha(level).to(x), level.to(x))

        return run(respond, noise, zero).double().flatten(), calls

    # without noise and predictions; with noise alone
    still, quiet = result((), zero)
    begun, calls = result((), start)
    count = len(calls)
    if count + 1 > zero.numel():
        raise BadValue(
            "The run makes {calls} model calls; it must make fewer than {most} to be inspected. Use fewer "
            "steps.",
            calls=count,
            most=zero.numel(),
        )
    # prediction n alone in element n + 1
    one_hot = torch.zeros(count, zero.numel(), dtype=torch.float64)
    one_hot[torch.arange(count), torch.arange(count) + 1] = 1.0
    answered, _ = result(one_hot.view(count, *shape), zero)
    sigma = torch.tensor(calls[0].sigma, dtype=torch.float64)
    tau = float(path.flow_time(sigma))
    begin = (calls[0].x - quiet[0].x) / float(path.alpha(sigma) + sigma)
    weights = (still - answered)[1 : count + 1] / tau
    # noise and predictions together must give what the weights foretell
    mixed = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both, heard = result(mixed.expand(count, zero.numel()).reshape(count, *shape), start)
    missed = (begun - both)[1:].sub(tau * (weights * mixed[:, 0]).sum()).abs().max()
    nonlinearity = float(missed / tau / weights.abs().max().clamp_min(1))
    return Weights(
        sigmas=[call.sigma for call in calls],
        predictions=weights.tolist(),
        survival=float((begun - still)[0]) / begin,
        nonlinearity=nonlinearity if len(heard) == len(quiet) == count else math.inf,
    )


def marginals(
    run: Run, path: Path, shape: Sequence[int], seed: int = 0, x0: float = 1.0, unit: float = 1.0
) -> Verdict:
    """`Verdict` of a sampler on this path; shape (1, ...) with some ten thousand elements, x0 the single
    point of the data.

    unit: standard deviation of the noise eps that the model was trained on.
    """
    sigmas, signal, noise = [], [], []

    def respond(x, sigma):
        level = float(sigma)
        alpha = float(path.alpha(torch.tensor(level, dtype=torch.float64)))
        sigmas.append(level)
        mean, std = float(x.double().mean()), float(x.double().std())
        # where alpha is near 0 a lost signal can't be told from none: its share is taken of the noise instead
        signal.append(1 + (mean - alpha * x0) / max(alpha * abs(x0), level))
        noise.append(std / (level * unit) if level > 0 else 1.0)
        return torch.full_like(x, x0)

    g = torch.Generator().manual_seed(seed)
    point = torch.full(shape, x0, dtype=torch.float64)
    result = run(respond, torch.randn(shape, generator=g, dtype=torch.float64), point)
    end = float((result.double() - x0).abs().mean())
    return Verdict(sigmas, signal, noise, _faults(signal, noise, end))


def churn_between_calls(run: Run, path: Path, shape: Sequence[int]) -> list[float | None]:
    """The churn (as in `step.py`) that the run has in the step after each call; None where it can't be told.

    With x0 = 0 everywhere a step keeps sqrt(1 - kappa^2) of the noise that was there, which the starting
    noise's share of x shows from call to call; churn = -log(1 - kappa^2) / (2 (lambda_s - lambda_t)). None
    for the last call, and where lambda does not rise.
    """
    start = _one_hot(shape)

    def calls_under(noise):
        calls = []

        def respond(x, sigma):
            calls.append(_Call(float(sigma), float(x.flatten()[0])))
            return torch.zeros_like(x)

        run(respond, noise, torch.zeros_like(start))
        return calls

    noisy, quiet = calls_under(start), calls_under(torch.zeros_like(start))
    sigma = torch.tensor([call.sigma for call in noisy], dtype=torch.float64)
    share = torch.tensor([a.x - b.x for a, b in zip(noisy, quiet)], dtype=torch.float64) / sigma
    rise = path.log_snr(sigma).diff()
    churn = -(share[1:] / share[:-1]).abs().log() / rise
    found = rise.isfinite() & (rise > 1e-6) & churn.isfinite()
    return [round(float(c), 6) + 0.0 if ok else None for c, ok in zip(churn, found)] + [None]


def _one_hot(shape):
    """A state that is 1 in its first element and 0 elsewhere."""
    state = torch.zeros(shape, dtype=torch.float64)
    state.view(-1)[0] = 1.0
    return state


def _faults(signal, noise, end):
    """Messages: what is wrong with the shares of signal and noise, and with the result's mean distance."""
    found = []
    for name, shares in (("signal", signal), ("noise", noise)):
        lost = next((i for i, s in enumerate(shares) if not math.isfinite(s)), None)
        if lost is not None:
            return (Message("not finite at call {call}", call=lost + 1),)
        wrong = [i for i, s in enumerate(shares) if abs(s - 1) > TOLERANCE]
        if wrong:
            worst = max(wrong, key=lambda i: abs(shares[i] - 1))
            found.append(
                Message(
                    "{what} {percent:.0f} % too strong at call {call} (wrong from call {first})"
                    if shares[worst] > 1
                    else "{what} {percent:.0f} % too weak at call {call} (wrong from call {first})",
                    what=name,
                    percent=abs(shares[worst] - 1) * 100,
                    call=worst + 1,
                    first=wrong[0] + 1,
                )
            )
    if not end <= TOLERANCE:
        found.append(
            Message(
                "the result is {percent:.0f} % away from a picture that every prediction agreed on",
                percent=end * 100,
            )
        )
    return tuple(found)
