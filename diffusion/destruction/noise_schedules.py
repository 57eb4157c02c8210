"""Noise schedules: how signal and noise change with time, as a diffusion (f, g) and as a flow (alpha, sigma).

`forward.gaussian` makes them forward processes of images, and the noise of those that blur or pixelate as
well.

    x_t = alpha(t) x_0 + sigma(t) eps   is the marginal of   dx = f x dt + g dw,   t from 0 (data) to t_max
                                        (noise)
    f = d log alpha / dt                g^2 = -2 sigma^2 dlambda/dt = 2 alpha sigma d(sigma/alpha)/dt
    lambda = log(alpha / sigma)         HALF the log signal-to-noise ratio, as everywhere here

name                 alpha                          sigma               f                  g^2
VP linear            exp(-B/2), B = int beta        sqrt(1 - alpha^2)   -beta/2            beta
VP linear discrete   a table of betas, lambda linear in t between its entries
VP scaled linear     the same, Stable Diffusion's table
VP cosine            sin(h(1-t)) / sin(h)           sqrt(1 - alpha^2)   -h cot(h(1-t))     -2 f
sub-VP               exp(-B/2)                      1 - alpha^2         -beta/2            beta (1 - alpha^4)
VE                   1                              low (high/low)^t    0                  2 sigma^2
                     log(high/low)
EDM                  1                              t                   0                  2 t
flow                 1 - sigma                      s t/(1 + (s-1) t)   -s/((1-t)(1+(s-1)t))   2
                     sigma^2/(t(1-t))

beta = beta_min + t (beta_max - beta_min); h = pi/2/(1 + 0.008); s = shift. f and g^2 are infinite where alpha
= 0.

The reverse process with any noise has the same marginals, in two ways of writing it (`to_flow_view`,
`to_diffusion_view`):

    diffusion view (f, g, eta)        dz = (f z - (1 + eta^2)/2 g^2 score) dt + eta g dw
    flow view (alpha, sigma, eps)     dz = (u - eps^2/2 score) dt + eps dw,   u = f z - g^2/2 score
    alpha = exp(int f)     sigma = alpha sqrt(int g^2/alpha^2)     eps = eta g

Sources: Song et al. 2021 (arXiv:2011.13456, eq. 6, 9, 11, 12 and appendix C), Nichol & Dhariwal 2021
(arXiv:2102.09672, eq. 17), Kingma et al. 2021 (arXiv:2107.00630) for f and g^2 from alpha and sigma, Karras
et al. 2022 (arXiv:2206.00364, table 1), Esser et al. 2024 (arXiv:2403.03206, eq. 23), and Gao et al. 2024
(diffusionflow.github.io), whose printed sigma lacks the factor alpha.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

from ..faults import BadValue

RANGE_SLACK = 1e-6  # rounding that `Process.time` forgives at the ends of lambda's range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A Gaussian process on [0, t_max]: five functions of float64 tensors; every method takes a number or a
    tensor.

    log_alpha, log_sigma   of t
    drift, diffusion       f(t) and g^2(t)
    inverse                t of lambda
    Methods return float64 of the input's shape and raise ValueError for a t outside [0, t_max].
    """

    name: str
    t_max: float
    log_alpha: Callable
    log_sigma: Callable
    drift: Callable
    diffusion: Callable
    inverse: Callable

    def alpha(self, t):
        """alpha(t), the scale of the signal."""
        return self.log_alpha(self._checked(t)).exp()

    def sigma(self, t):
        """sigma(t), the scale of the noise."""
        return self.log_sigma(self._checked(t)).exp()

    def log_snr(self, t):
        """lambda(t) = log(alpha / sigma); +inf where there is no noise, -inf where there is no signal."""
        t = self._checked(t)
        return self.log_alpha(t) - self.log_sigma(t)

    def f(self, t):
        """f(t) = d log alpha / dt, per unit of t."""
        return self.drift(self._checked(t))

    def g2(self, t):
        """g(t)^2 = -2 sigma^2 dlambda/dt, per unit of t."""
        return self.diffusion(self._checked(t))

    def time(self, log_snr):
        """The t at which lambda(t) = `log_snr`: inverse of the method `log_snr`.

        Raises ValueError for a lambda that the process does not reach.
        """
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = self.log_snr([self.t_max, 0.0]).tolist()
        inside = (log_snr >= low - RANGE_SLACK) & (log_snr <= high + RANGE_SLACK)
        if not inside.all():
            raise BadValue(
                "log_snr must be between {low:g} and {high:g} on the process {name}, got {got:g}. Use a "
                "noise level that this process reaches.",
                low=low,
                high=high,
                name=self.name,
                got=float(log_snr[~inside].flatten()[0]),
            )
        return self.inverse(log_snr).clamp(0, self.t_max)

    def _checked(self, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        inside = (t >= 0) & (t <= self.t_max)
        if not inside.all():
            raise BadValue(
                "t must be between 0 and {t_max:g} on the process {name}, got {got:g}. Rescale the time to "
                "this range.",
                t_max=self.t_max,
                name=self.name,
                got=float(t[~inside].flatten()[0]),
            )
        return t


def vp_linear(beta_min=0.1, beta_max=20.0):
    """beta linear in t, variance preserved: the continuous DDPM (Song et al. 2021, eq. 11)."""
    log_alpha, drift, time_of = _linear_beta(beta_min, beta_max)
    return _variance_preserving("VP linear", log_alpha, drift, lambda lam: time_of(0.5 * logsigmoid(2 * lam)))


def sub_vp(beta_min=0.1, beta_max=20.0):
    """beta linear in t and sigma = 1 - alpha^2, less noise than VP (Song et al. 2021, eq. 12).

    lambda inverts by 2 sinh(log alpha) = alpha - 1/alpha = -e^-lambda.
    """
    log_alpha, drift, time_of = _linear_beta(beta_min, beta_max)
    return Process(
        name="sub-VP",
        t_max=1.0,
        log_alpha=log_alpha,
        log_sigma=lambda t: (-torch.expm1(2 * log_alpha(t))).log(),
        drift=drift,
        diffusion=lambda t: 2 * drift(t) * torch.expm1(4 * log_alpha(t)),
        inverse=lambda lam: time_of(-torch.asinh(0.5 * torch.exp(-lam))),
    )


def vp_cosine(offset=0.008):
    """alpha = cos(pi/2 (t + offset)/(1 + offset)), scaled to alpha(0) = 1 (Nichol & Dhariwal 2021, eq. 17);
    offset > 0.

    With x = h t, 1 - alpha = 2 cos(h - x/2) sin(x/2) / sin(h) and tan(x/2) = (1 - alpha) / (cot h +
    sqrt(cot^2 h + sigma^2)).
    """
    _require(offset > 0, "offset", "above 0", offset, "0.008 is the paper's.")
    h = math.pi / 2 / (1 + offset)
    cot = math.tan(math.pi / 2 - h)

    def log_alpha(t):
        lost = 2 * torch.cos(h - h * t / 2) * torch.sin(h * t / 2) / math.sin(h)
        return torch.where(t < 0.5, torch.log1p(-lost), torch.log(torch.sin(h * (1 - t)) / math.sin(h)))

    def inverse(lam):
        lost, variance = -torch.expm1(0.5 * logsigmoid(2 * lam)), torch.sigmoid(-2 * lam)
        return 2 / h * torch.atan(lost / (cot + (cot**2 + variance).sqrt()))

    return _variance_preserving("VP cosine", log_alpha, lambda t: -h / torch.tan(h * (1 - t)), inverse)


def vp_discrete(betas, name="VP discrete"):
    """A table of N betas in (0, 1): entry n is at t = (n + 1)/N with alpha^2 = prod_{m <= n} (1 - beta_m).

    lambda is linear in t between entries; before the first sigma/alpha falls to 0 with t, as in
    `grids.discrete_sigma`. At an entry f and g^2 are those of the interval that begins there. Raises
    ValueError for a table that is no such table.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    _require(
        betas.ndim == 1 and len(betas) >= 2 and bool(((betas > 0) & (betas < 1)).all()),
        "betas",
        "one row of two or more numbers between 0 and 1",
        f"shape {tuple(betas.shape)}",
        "Give the model's own table.",
    )
    log_square = torch.log1p(-betas).cumsum(0)
    table = 0.5 * (log_square - (-torch.expm1(log_square)).log())
    count = len(table)

    def interval(t):
        index = (t * count - 1).clamp_min(0)
        low = index.floor().long().clamp_max(count - 2)
        knots = table.to(t.device)
        return index - low, knots[low], knots[low + 1]

    def log_snr(t):
        share, start, end = interval(t)
        return torch.lerp(start, end, share) - (t * count).clamp_max(1).log()

    def drift(t):
        _, start, end = interval(t)
        slope = torch.where(t * count < 1, -1 / t, (end - start) * count)
        return torch.where(t > 0, slope * torch.sigmoid(-2 * log_snr(t)), 0.0)

    def inverse(lam):
        knots = table.to(lam.device)
        low = torch.searchsorted(-knots, -lam).clamp(1, count - 1) - 1
        inner = (low + 1 + (knots[low] - lam) / (knots[low] - knots[low + 1])) / count
        return torch.where(lam > knots[0], torch.exp(knots[0] - lam) / count, inner)

    return _variance_preserving(name, lambda t: 0.5 * logsigmoid(2 * log_snr(t)), drift, inverse)


def vp_linear_discrete(steps=1000, beta_min=0.1, beta_max=20.0):
    """DDPM's table: betas from beta_min/steps to beta_max/steps, equally spaced (Ho et al. 2020,
    arXiv:2006.11239).
    """
    return vp_discrete(
        torch.linspace(beta_min / steps, beta_max / steps, steps, dtype=torch.float64), "VP linear discrete"
    )


def vp_scaled_linear(steps=1000, first=0.00085, last=0.012):
    """Stable Diffusion's table: the square roots of the betas are equally spaced (Rombach et al. 2022,
    arXiv:2112.10752).
    """
    roots = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64)
    return vp_discrete(roots.square(), "VP scaled linear")


def ve(sigma_min=0.01, sigma_max=50.0):
    """sigma geometric in t from sigma_min, which is above 0, to sigma_max (Song et al. 2021, eq. 9, appendix
    C).
    """
    _require(
        0 < sigma_min < sigma_max,
        "sigma_min",
        f"above 0 and below sigma_max = {sigma_max:g}",
        sigma_min,
        "Swap or raise it.",
    )
    rate = math.log(sigma_max / sigma_min)
    return Process(
        name="VE",
        t_max=1.0,
        log_alpha=torch.zeros_like,
        log_sigma=lambda t: math.log(sigma_min) + rate * t,
        drift=torch.zeros_like,
        diffusion=lambda t: 2 * rate * (sigma_min * torch.exp(rate * t)).square(),
        inverse=lambda lam: (-lam - math.log(sigma_min)) / rate,
    )


def edm(sigma_max=80.0):
    """sigma = t, alpha = 1 (Karras et al. 2022, table 1)."""
    _require(sigma_max > 0, "sigma_max", "above 0", sigma_max, "80 is the paper's.")
    return Process(
        name="EDM",
        t_max=float(sigma_max),
        log_alpha=torch.zeros_like,
        log_sigma=torch.log,
        drift=torch.zeros_like,
        diffusion=lambda t: 2 * t,
        inverse=lambda lam: torch.exp(-lam),
    )


def flow(shift=1.0):
    """Rectified flow, alpha = 1 - sigma, its sigma/alpha multiplied by `shift` > 0 (Esser et al. 2024, eq.
    23).
    """
    _require(shift > 0, "shift", "above 0", shift, "1 leaves time as it is.")

    def bend(t):
        return 1 + (shift - 1) * t

    return Process(
        name="flow",
        t_max=1.0,
        log_alpha=lambda t: torch.log1p(-t) - bend(t).log(),
        log_sigma=lambda t: (shift * t / bend(t)).log(),
        drift=lambda t: -shift / ((1 - t) * bend(t)),
        diffusion=lambda t: 2 * shift**2 * t / ((1 - t) * bend(t).square()),
        inverse=lambda lam: torch.sigmoid(-lam - math.log(shift)),
    )


PROCESSES = {
    "VP linear": vp_linear,
    "VP linear discrete": vp_linear_discrete,
    "VP scaled linear": vp_scaled_linear,
    "VP cosine": vp_cosine,
    "sub-VP": sub_vp,
    "VE": ve,
    "EDM": edm,
    "flow": flow,
}


def to_flow_view(f, g2, eta, t, *, sigma_0=0.0):
    """(alpha, sigma, eps) from (f, g^2, eta), by the trapezoid rule on a dense grid.

    alpha = exp(int f)     sigma = alpha sqrt(sigma_0^2 + int g^2/alpha^2)     eps = eta g
    t (N,) ascends from 0; f, g2, eta are numbers or (N,); sigma_0 is sigma(0). Returns float64 (N,) each.
    Raises ValueError for a grid that does not ascend from 0, and for values that are not finite (stop before
    alpha = 0).
    """
    t = _ascending(t)
    if t[0] != 0:
        raise BadValue(
            "t must start at 0, where alpha = 1, got {got:g}. Put 0 in front of it.",
            got=float(t[0]),
        )
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
    _require(
        bool((alpha > 0).all()),
        "alpha",
        "above 0",
        f"{float(alpha.min()):g}",
        "Stop the grid before pure noise.",
    )
    ratio = (sigma / alpha).square()
    _require(
        bool((ratio.diff() >= 0).all()),
        "sigma / alpha",
        "rising with t",
        "one that falls",
        "Noise is added forward in time.",
    )
    f = _slope(alpha.log(), t)
    g2 = (alpha.square() * _slope(ratio, t)).clamp_min(0)
    return f, g2, torch.where(g2 > 0, eps / g2.sqrt(), 0.0)


def _variance_preserving(name, log_alpha, drift, inverse):
    return Process(
        name=name,
        t_max=1.0,
        log_alpha=log_alpha,
        log_sigma=lambda t: 0.5 * (-torch.expm1(2 * log_alpha(t))).log(),
        drift=drift,
        diffusion=lambda t: -2 * drift(t),
        inverse=inverse,
    )


def _linear_beta(low, high):
    """log alpha(t), f(t), and t(log alpha) for beta = low + t (high - low): log alpha = -(low t/2 + (high -
    low) t^2/4).
    """
    _require(
        0 < low <= high,
        "beta_min",
        f"above 0 and at most beta_max = {high:g}",
        low,
        "0.1 and 20 are the paper's.",
    )
    a, b = (high - low) / 4, low / 2
    return (
        lambda t: -(a * t + b) * t,
        lambda t: -(b + 2 * a * t),
        lambda log_alpha: -2 * log_alpha / (b + (b * b - 4 * a * log_alpha).sqrt()),
    )


def _cumulative(values, t):
    return torch.cat([values.new_zeros(1), torch.cumulative_trapezoid(values, t)])


def _slope(values, t):
    return torch.gradient(values, spacing=(t,), edge_order=2)[0]


def _ascending(t):
    t = torch.as_tensor(t, dtype=torch.float64)
    _require(
        t.ndim == 1 and len(t) >= 3 and bool((t.diff() > 0).all()),
        "t",
        "one row of three or more rising times",
        f"shape {tuple(t.shape)}",
        "Use torch.linspace(0, t_max, 10_001).",
    )
    return t


def _on_grid(t, **values):
    out = {k: torch.as_tensor(v, dtype=torch.float64).expand(len(t)) for k, v in values.items()}
    for k, v in out.items():
        _require(
            bool(torch.isfinite(v).all()),
            k,
            "finite on the grid",
            "a value that is not",
            "Stop the grid before alpha = 0.",
        )
    return list(out.values())


def _require(holds, name, must, was, remedy):
    if not holds:
        raise BadValue(
            "{name} must be {must}, got {got}. {remedy}",
            name=name,
            must=must,
            got=was,
            remedy=remedy,
        )
