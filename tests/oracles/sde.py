"""Noise schedules as stochastic differential equations: dx = f x dt + g dw has the marginals
x_t = alpha x_0 + sigma eps of the schedule.

    f = d log alpha / dt,    g^2 = -2 sigma^2 dlambda/dt = 2 alpha sigma d(sigma/alpha)/dt

name        f                              g^2
VP          -beta/2                        beta, which is -2 f on every schedule that preserves variance
VP cosine   -h cot(h(1-t))                 -2 f
sub-VP      -beta/2                        beta (1 - alpha^4)
VE          0                              2 sigma^2 log(high/low)
EDM         0                              2 t
flow        -s/((1-t)(1+(s-1)t))           2 sigma^2/(t(1-t))

f and g^2 are infinite where alpha = 0. The reverse process with any noise has the same marginals, in two ways
of writing it (`to_flow_view`, `to_diffusion_view`):

    diffusion view (f, g, eta)        dz = (f z - (1 + eta^2)/2 g^2 score) dt + eta g dw
    flow view (alpha, sigma, eps)     dz = (u - eps^2/2 score) dt + eps dw,   u = f z - g^2/2 score
    alpha = exp(int f)     sigma = alpha sqrt(int g^2/alpha^2)     eps = eta g

Sources: Song et al. 2021 (arXiv:2011.13456, eq. 6, 9, 11, 12 and appendix C), Kingma et al. 2021
(arXiv:2107.00630) for f and g^2 from alpha and sigma, and Gao et al. 2024 (diffusionflow.github.io), whose
printed sigma lacks the factor alpha.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from fewstep.diffusion.destruction.noise_schedules import SCHEDULES, NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Sde:
    """A noise schedule with its drift and diffusion, functions of float64 tensors t, per unit of t."""

    schedule: NoiseSchedule
    f: Callable
    g2: Callable


def sde(name, **options):
    """The `Sde` of the noise schedule of that name; options are the schedule's."""
    schedule = SCHEDULES[name](**options)
    return Sde(schedule, *COEFFICIENTS[name](schedule, **options))


# ---- coefficients: schedule and options to (f, g^2) ------------------------------------------------


def _preserving(f):
    return f, lambda t: -2 * f(t)


def _linear_drift(beta_min, beta_max):
    return lambda t: -(beta_min / 2 + (beta_max - beta_min) / 2 * t)


def _vp_linear(schedule, beta_min=0.1, beta_max=20.0):
    return _preserving(_linear_drift(beta_min, beta_max))


def _sub_vp(schedule, beta_min=0.1, beta_max=20.0):
    f = _linear_drift(beta_min, beta_max)
    return f, lambda t: 2 * f(t) * torch.expm1(4 * schedule.log_alpha(t))


def _vp_cosine(schedule, offset=0.008):
    h = math.pi / 2 / (1 + offset)
    return _preserving(lambda t: -h / torch.tan(h * (1 - t)))


def _table(schedule, steps=1000, **options):
    """At an entry f and g^2 are those of the interval that begins there."""
    knots = schedule.log_snr(torch.arange(1, steps + 1, dtype=torch.float64) / steps)

    def f(t):
        low = (t * steps - 1).clamp_min(0).floor().long().clamp_max(steps - 2)
        slope = torch.where(t * steps < 1, -1 / t, (knots[low + 1] - knots[low]) * steps)
        return torch.where(t > 0, slope * torch.sigmoid(-2 * schedule.log_snr(t)), 0.0)

    return _preserving(f)


def _ve(schedule, sigma_min=0.01, sigma_max=50.0):
    rate = math.log(sigma_max / sigma_min)
    return torch.zeros_like, lambda t: 2 * rate * (sigma_min * torch.exp(rate * t)).square()


def _edm(schedule, sigma_max=80.0):
    return torch.zeros_like, lambda t: 2 * t


def _flow(schedule, shift=1.0):
    def bend(t):
        return 1 + (shift - 1) * t

    return (
        lambda t: -shift / ((1 - t) * bend(t)),
        lambda t: 2 * shift**2 * t / ((1 - t) * bend(t).square()),
    )


COEFFICIENTS = {
    "VP linear": _vp_linear,
    "VP linear discrete": _table,
    "VP scaled linear": _table,
    "VP cosine": _vp_cosine,
    "sub-VP": _sub_vp,
    "VE": _ve,
    "EDM": _edm,
    "flow": _flow,
}


# ---- views -----------------------------------------------------------------------------------------


def to_flow_view(f, g2, eta, t, *, sigma_0=0.0):
    """(alpha, sigma, eps) from (f, g^2, eta), by the trapezoid rule on a dense grid.

    alpha = exp(int f)     sigma = alpha sqrt(sigma_0^2 + int g^2/alpha^2)     eps = eta g
    t (N,) ascends from 0; f, g2, eta are numbers or (N,); sigma_0 is sigma(0). Returns float64 (N,) each.
    Raises ValueError for a grid that does not ascend from 0, and for values that are not finite (stop before
    alpha = 0).
    """
    t = _ascending(t)
    if t[0] != 0:
        raise ValueError(f"t must start at 0, where alpha = 1, got {float(t[0]):g}. Put 0 in front of it.")
    f, g2, eta = _on_grid(t, f=f, g2=g2, eta=eta)
    alpha = _cumulative(f, t).exp()
    return alpha, alpha * (sigma_0**2 + _cumulative(g2 / alpha.square(), t)).sqrt(), eta * g2.sqrt()


def to_diffusion_view(alpha, sigma, eps, t):
    """(f, g^2, eta) from (alpha, sigma, eps), by second-order differences on a dense grid.

    f = d log alpha / dt     g^2 = alpha^2 d(sigma^2/alpha^2)/dt     eta = eps / g, 0 where g is 0
    t (N,) ascends, N >= 3; alpha, sigma, eps are numbers or (N,). Returns float64 (N,) each.
    Raises ValueError for a grid that does not ascend, values that are not finite, alpha <= 0, and a
    sigma/alpha that falls.
    """
    t = _ascending(t)
    alpha, sigma, eps = _on_grid(t, alpha=alpha, sigma=sigma, eps=eps)
    if not (alpha > 0).all():
        raise ValueError(
            f"alpha must be above 0, got {float(alpha.min()):g}. Stop the grid before pure noise."
        )
    ratio = (sigma / alpha).square()
    if not (ratio.diff() >= 0).all():
        raise ValueError("sigma / alpha must be rising with t. Noise is added forward in time.")
    f = _slope(alpha.log(), t)
    g2 = (alpha.square() * _slope(ratio, t)).clamp_min(0)
    return f, g2, torch.where(g2 > 0, eps / g2.sqrt(), 0.0)


def _cumulative(values, t):
    return torch.cat([values.new_zeros(1), torch.cumulative_trapezoid(values, t)])


def _slope(values, t):
    return torch.gradient(values, spacing=(t,), edge_order=2)[0]


def _ascending(t):
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.ndim != 1 or len(t) < 3 or not (t.diff() > 0).all():
        raise ValueError(f"t must be one row of three or more rising times, got shape {tuple(t.shape)}.")
    return t


def _on_grid(t, **values):
    on_grid = {k: torch.as_tensor(v, dtype=torch.float64).expand(len(t)) for k, v in values.items()}
    for name, value in on_grid.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite on the grid. Stop the grid before alpha = 0.")
    return list(on_grid.values())
