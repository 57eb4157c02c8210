"""What a sampler does, found without a model: it is linear in its predictions, so one-hot predictions read
its weights.

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

import torch

from .faults import BadValue
from .predictions import to_x0

TOLERANCE = 0.03  # deviation of signal or noise that the verdict calls wrong


@dataclasses.dataclass(frozen=True)
class Weights:
    """`sigmas` of the calls, the weight of each prediction, the survival of the starting noise, and the error
    of linearity.
    """

    sigmas: list
    predictions: list
    survival: float
    nonlinearity: float

    @property
    def linear(self):
        """Whether the weights mean anything."""
        return self.nonlinearity < 1e-3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the model saw at every call, as shares of what it expects: `signal` of alpha x_0, `noise` of sigma
    (1 is right).
    """

    sigmas: list
    signal: list
    noise: list
    text: str

    @property
    def right(self):
        """Whether every call was within `TOLERANCE`."""
        return self.text.startswith("right")


def prediction_weights(run, path, shape):
    """`Weights` of a sampler; shape (1, ...) of a state.

    Raises ValueError when the state has too few elements for the number of calls.
    """
    zero = torch.zeros(shape, dtype=torch.float64)
    start = zero.clone()
    start.view(-1)[0] = 1.0

    def result(directions, noise):
        """The run's result (D,), and [(sigma, first element of x)] of its calls, for given velocities."""
        calls = []

        def respond(x, sigma):
            level = torch.as_tensor(float(sigma), dtype=torch.float64)
            u = directions[len(calls)].to(x) if len(calls) < len(directions) else torch.zeros_like(x)
            calls.append((float(level), float(x.flatten()[0])))
            return to_x0(u, "velocity", x, path.alpha(level).to(x), level.to(x))

        return run(respond, noise, zero).double().flatten(), calls

    still, quiet = result((), zero)
    begun, calls = result((), start)
    count = len(calls)
    if count + 1 > zero.numel():
        raise BadValue(
            "The run makes {count} model calls; it must make fewer than {zero} to be inspected. Use fewer "
            "steps.",
            count=count,
            zero=zero.numel(),
        )
    one_hot = torch.zeros(count, zero.numel(), dtype=torch.float64)
    one_hot[torch.arange(count), torch.arange(count) + 1] = 1.0
    answered, _ = result(one_hot.view(count, *shape), zero)
    sigma = torch.tensor(calls[0][0], dtype=torch.float64)
    tau = float(path.flow_time(sigma))
    begin = (calls[0][1] - quiet[0][1]) / float(path.alpha(sigma) + sigma)
    weights = (still - answered)[1 : count + 1] / tau
    mixed = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both, heard = result(mixed.expand(count, zero.numel()).reshape(count, *shape), start)
    wrong = float(
        (begun - both)[1:].sub(tau * (weights * mixed[:, 0]).sum()).abs().max()
        / tau
        / weights.abs().max().clamp_min(1)
    )
    return Weights(
        [s for s, _ in calls],
        weights.tolist(),
        float((begun - still)[0]) / begin,
        wrong if len(heard) == len(quiet) == count else math.inf,
    )


def marginals(run, path, shape, seed=0, x0=1.0, unit=1.0):
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
        # at alpha near 0 the share is read off the noise instead, where a lost signal cannot be told from
        # none
        signal.append(1 + (mean - alpha * x0) / max(alpha * abs(x0), level))
        noise.append(std / (level * unit) if level > 0 else 1.0)
        return torch.full_like(x, x0)

    g = torch.Generator().manual_seed(seed)
    point = torch.full(shape, x0, dtype=torch.float64)
    result = run(respond, torch.randn(shape, generator=g, dtype=torch.float64), point)
    end = float((result.double() - x0).abs().mean())
    return Verdict(sigmas, signal, noise, _verdict(signal, noise, end))


def churn_between_calls(run, path, shape):
    """The churn of the step after each call, in the sense of `step.py`, as the run has it; None where there
    is no telling.

    With x0 = 0 everywhere a step keeps sqrt(1 - kappa^2) of the noise that was there, which the starting
    noise's share of x shows from call to call; churn = -log(1 - kappa^2) / (2 (lambda_s - lambda_t)). None
    for the last call, and where lambda does not rise.
    """
    start = torch.zeros(shape, dtype=torch.float64)
    start.view(-1)[0] = 1.0
    found = []
    for noise in (start, torch.zeros_like(start)):
        calls = []

        def respond(x, sigma, calls=calls):
            calls.append((float(sigma), float(x.flatten()[0])))
            return torch.zeros_like(x)

        run(respond, noise, torch.zeros_like(start))
        found.append(calls)
    sigma = torch.tensor([s for s, _ in found[0]], dtype=torch.float64)
    share = torch.tensor([a - b for (_, a), (_, b) in zip(*found)], dtype=torch.float64) / sigma
    rise = path.log_snr(sigma).diff()
    churn = -(share[1:] / share[:-1]).abs().log() / rise
    told = rise.isfinite() & (rise > 1e-6) & churn.isfinite()
    return [round(float(c), 6) + 0.0 if ok else None for c, ok in zip(churn, told)] + [None]


def _verdict(signal, noise, end):
    faults = []
    for name, shares in (("signal", signal), ("noise", noise)):
        lost = next((i for i, s in enumerate(shares) if not math.isfinite(s)), None)
        if lost is not None:
            return f"not finite at call {lost + 1}"
        wrong = [i for i, s in enumerate(shares) if abs(s - 1) > TOLERANCE]
        if wrong:
            worst = max(wrong, key=lambda i: abs(shares[i] - 1))
            amount = abs(shares[worst] - 1) * 100
            faults.append(
                f"{name} {amount:.0f} % too {'strong' if shares[worst] > 1 else 'weak'} at call {worst + 1} "
                f"(wrong from call {wrong[0] + 1})"
            )
    if not end <= TOLERANCE:
        faults.append(f"the result is {end * 100:.0f} % away from a picture that every prediction agreed on")
    return "; ".join(faults) or "right: signal and noise are what the model expects at every call"
