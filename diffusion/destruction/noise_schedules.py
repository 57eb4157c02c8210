"""Noise schedules: how signal and noise change with time t from 0 (data) to t_max (noise).

    x_t = alpha(t) x_0 + sigma(t) eps,    lambda = log(alpha / sigma)

`forward.gaussian` makes them forward processes of images, and the noise of those that blur or pixelate too.

name                 alpha                           sigma
VP linear            exp(-B/2), B = int beta         sqrt(1 - alpha^2)
VP linear discrete   a table of betas, lambda linear in t between its entries
VP scaled linear     the same, Stable Diffusion's table
VP cosine            sin(h(1-t)) / sin(h)            sqrt(1 - alpha^2)
sub-VP               exp(-B/2)                       1 - alpha^2
VE                   1                               low (high/low)^t
EDM                  1                               t
flow                 1 - sigma                       s t/(1 + (s-1) t)

beta = beta_min + t (beta_max - beta_min); h = pi/2/(1 + 0.008); s = shift.

Sources: Song et al. 2021 (arXiv:2011.13456, eq. 9, 11, 12 and appendix C), Nichol & Dhariwal 2021
(arXiv:2102.09672, eq. 17), Karras et al. 2022 (arXiv:2206.00364, table 1), Esser et al. 2024
(arXiv:2403.03206, eq. 23).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import logsigmoid

from ..faults import BadValue

RANGE_SLACK = 1e-6  # rounding that `NoiseSchedule.time` forgives at the ends of lambda's range

Curve = Callable[[torch.Tensor], torch.Tensor]  # a function of float64 tensors, element by element


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """A schedule on [0, t_max]: three functions of float64 tensors; every method takes a number or a tensor.

    log_alpha, log_sigma   of t
    inverse                t of lambda
    Methods return float64 of the input's shape and raise ValueError for a t outside [0, t_max].
    """

    name: str
    t_max: float
    log_alpha: Curve
    log_sigma: Curve
    inverse: Curve

    def alpha(self, t: float | torch.Tensor) -> torch.Tensor:
        """alpha(t), the scale of the signal."""
        return self.log_alpha(self._checked(t)).exp()

    def sigma(self, t: float | torch.Tensor) -> torch.Tensor:
        """sigma(t), the scale of the noise."""
        return self.log_sigma(self._checked(t)).exp()

    def log_snr(self, t: float | torch.Tensor) -> torch.Tensor:
        """lambda(t) = log(alpha / sigma); +inf where there is no noise, -inf where there is no signal."""
        t = self._checked(t)
        return self.log_alpha(t) - self.log_sigma(t)

    def time(self, log_snr: float | torch.Tensor) -> torch.Tensor:
        """The t at which lambda(t) = `log_snr`: inverse of the method `log_snr`.

        Raises ValueError for a lambda that the schedule does not reach.
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


# ---- variance preserved ----------------------------------------------------------------------------


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """beta linear in t, variance preserved: the continuous DDPM (Song et al. 2021, eq. 11)."""
    log_alpha, time_of = _linear_beta(beta_min, beta_max)

    def inverse(lam):
        return time_of(0.5 * logsigmoid(2 * lam))

    return _variance_preserving("VP linear", log_alpha, inverse)


def vp_cosine(offset: float = 0.008) -> NoiseSchedule:
    """alpha = cos(pi/2 (t + offset)/(1 + offset)), scaled to alpha(0) = 1; offset > 0.

    Source: Nichol & Dhariwal 2021, eq. 17.

    With x = h t, 1 - alpha = 2 cos(h - x/2) sin(x/2) / sin(h) and
    tan(x/2) = (1 - alpha) / (cot h + sqrt(cot^2 h + sigma^2)).
    """
    if not offset > 0:
        raise BadValue("offset must be above 0, got {got}. 0.008 is the paper's.", got=offset)
    h = math.pi / 2 / (1 + offset)
    cot = math.tan(math.pi / 2 - h)

    def log_alpha(t):
        lost = 2 * torch.cos(h - h * t / 2) * torch.sin(h * t / 2) / math.sin(h)
        return torch.where(t < 0.5, torch.log1p(-lost), torch.log(torch.sin(h * (1 - t)) / math.sin(h)))

    def inverse(lam):
        lost, variance = -torch.expm1(0.5 * logsigmoid(2 * lam)), torch.sigmoid(-2 * lam)
        return 2 / h * torch.atan(lost / (cot + (cot**2 + variance).sqrt()))

    return _variance_preserving("VP cosine", log_alpha, inverse)


def vp_discrete(betas: torch.Tensor | Sequence[float], name: str = "VP discrete") -> NoiseSchedule:
    """A table of N betas in (0, 1): entry n is at t = (n + 1)/N with alpha^2 = prod_{m <= n} (1 - beta_m).

    lambda is linear in t between entries; before the first sigma/alpha falls to 0 with t, as in
    `grids.discrete_sigma`. Raises ValueError for a table that is no such table.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise BadValue(
            "betas must be one row of two or more numbers between 0 and 1, got shape {shape}. Give the "
            "model's own table.",
            shape=tuple(betas.shape),
        )
    log_square = torch.log1p(-betas).cumsum(0)
    table = 0.5 * (log_square - (-torch.expm1(log_square)).log())  # lambda of the entries
    count = len(table)

    def log_snr(t):
        index = (t * count - 1).clamp_min(0)
        low = index.floor().long().clamp_max(count - 2)
        knots = table.to(t.device)
        return torch.lerp(knots[low], knots[low + 1], index - low) - (t * count).clamp_max(1).log()

    def log_alpha(t):
        return 0.5 * logsigmoid(2 * log_snr(t))

    def inverse(lam):
        knots = table.to(lam.device)
        low = torch.searchsorted(-knots, -lam).clamp(1, count - 1) - 1
        inner = (low + 1 + (knots[low] - lam) / (knots[low] - knots[low + 1])) / count
        return torch.where(lam > knots[0], torch.exp(knots[0] - lam) / count, inner)

    return _variance_preserving(name, log_alpha, inverse)


def vp_linear_discrete(steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """DDPM's table: betas from beta_min/steps to beta_max/steps, equally spaced.

    Source: Ho et al. 2020 (arXiv:2006.11239).
    """
    betas = torch.linspace(beta_min / steps, beta_max / steps, steps, dtype=torch.float64)
    return vp_discrete(betas, "VP linear discrete")


def vp_scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> NoiseSchedule:
    """Stable Diffusion's table: the square roots of the betas are equally spaced.

    Source: Rombach et al. 2022 (arXiv:2112.10752).
    """
    roots = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64)
    return vp_discrete(roots.square(), "VP scaled linear")


def _variance_preserving(name, log_alpha, inverse):
    """The schedule with sigma = sqrt(1 - alpha^2)."""

    def log_sigma(t):
        return 0.5 * (-torch.expm1(2 * log_alpha(t))).log()

    return NoiseSchedule(name=name, t_max=1.0, log_alpha=log_alpha, log_sigma=log_sigma, inverse=inverse)


def _linear_beta(low, high):
    """log alpha(t) and t(log alpha) for beta = low + t (high - low):
    log alpha = -(low t/2 + (high - low) t^2/4).
    """
    if not 0 < low <= high:
        raise BadValue(
            "beta_min must be above 0 and at most beta_max = {beta_max:g}, got {got}. 0.1 and 20 are the "
            "paper's.",
            beta_max=high,
            got=low,
        )
    a, b = (high - low) / 4, low / 2

    def log_alpha(t):
        return -(a * t + b) * t

    def time_of(log_alpha):
        return -2 * log_alpha / (b + (b * b - 4 * a * log_alpha).sqrt())

    return log_alpha, time_of


# ---- others ----------------------------------------------------------------------------------------


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """beta linear in t and sigma = 1 - alpha^2, less noise than VP (Song et al. 2021, eq. 12).

    lambda inverts by 2 sinh(log alpha) = alpha - 1/alpha = -e^-lambda.
    """
    log_alpha, time_of = _linear_beta(beta_min, beta_max)

    def log_sigma(t):
        return (-torch.expm1(2 * log_alpha(t))).log()

    def inverse(lam):
        return time_of(-torch.asinh(0.5 * torch.exp(-lam)))

    return NoiseSchedule(name="sub-VP", t_max=1.0, log_alpha=log_alpha, log_sigma=log_sigma, inverse=inverse)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
    """sigma geometric in t from sigma_min > 0 to sigma_max (Song et al. 2021, eq. 9, appendix C)."""
    if not 0 < sigma_min < sigma_max:
        raise BadValue(
            "sigma_min must be above 0 and below sigma_max = {sigma_max:g}, got {got}. Swap or raise it.",
            sigma_max=sigma_max,
            got=sigma_min,
        )
    rate = math.log(sigma_max / sigma_min)

    def log_sigma(t):
        return math.log(sigma_min) + rate * t

    def inverse(lam):
        return (-lam - math.log(sigma_min)) / rate

    return NoiseSchedule(
        name="VE", t_max=1.0, log_alpha=torch.zeros_like, log_sigma=log_sigma, inverse=inverse
    )


def edm(sigma_max: float = 80.0) -> NoiseSchedule:
    """sigma = t, alpha = 1 (Karras et al. 2022, table 1)."""
    if not sigma_max > 0:
        raise BadValue("sigma_max must be above 0, got {got}. 80 is the paper's.", got=sigma_max)

    def inverse(lam):
        return torch.exp(-lam)

    return NoiseSchedule(
        name="EDM",
        t_max=float(sigma_max),
        log_alpha=torch.zeros_like,
        log_sigma=torch.log,
        inverse=inverse,
    )


def flow(shift: float = 1.0) -> NoiseSchedule:
    """Rectified flow, alpha = 1 - sigma, with sigma/alpha times `shift` > 0 (Esser et al. 2024, eq. 23)."""
    if not shift > 0:
        raise BadValue("shift must be above 0, got {got}. 1 leaves time as it is.", got=shift)

    def bend(t):
        return 1 + (shift - 1) * t

    def log_alpha(t):
        return torch.log1p(-t) - bend(t).log()

    def log_sigma(t):
        return (shift * t / bend(t)).log()

    def inverse(lam):
        return torch.sigmoid(-lam - math.log(shift))

    return NoiseSchedule(name="flow", t_max=1.0, log_alpha=log_alpha, log_sigma=log_sigma, inverse=inverse)


SCHEDULES = {
    "VP linear": vp_linear,
    "VP linear discrete": vp_linear_discrete,
    "VP scaled linear": vp_scaled_linear,
    "VP cosine": vp_cosine,
    "sub-VP": sub_vp,
    "VE": ve,
    "EDM": edm,
    "flow": flow,
}
