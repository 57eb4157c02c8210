"""Forward processes F_t: every gradual destruction that the kernel can step back.

    x_t = F_t(x0, eps)        t in [0, 1]: 0 leaves x0 as it is, 1 is what sampling starts from

A step back is, where F has noise and the noise can be solved for (`transition`), and where there is none,

    x_s = F_s( x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z )
    x_s = F_s( x0 ) + sqrt(1 - kappa^2) ( x_t - F_t(x0) )

That is the unified diffusion model of Su 2022 (kexue.fm/archives/9262 and 9271), kappa his sigma~. kappa = 1
forgets x_t, kappa = 0 reuses all that x_t says beyond x0. With F = alpha x0 + sigma eps the first line is the
step of `step.py`, and the sampler is the same loop (`samplers.sample` with a process for the path, times for
sigmas). The second line is Cold Diffusion (Bansal et al. 2022, arXiv:2208.09392): kappa = 1 is its algorithm
1, kappa = 0 its algorithm 2; its last step to t = 0 keeps the residual, as there.

What holds. For eps and z from the process's law of noise, and x_t = F_t(x0, eps) with x0 KNOWN, x_s has the
law of F_s(x0, eps): exactly, for any kappa and any t, s. The same is true for x0 DRAWN from p(x0 | x_t). With
the posterior MEAN for x0 it is not true in general:
- where the data is one point, or x_t says which x0 it came from (processes without noise that are one-to-one
  on the data), the mean is x0 and nothing is lost;
- kappa = 0 with F linear in x0 and eps is an Euler step of the flow dx/dt = E[dF_t/dt | x_t], which keeps the
  marginals: the error vanishes with the step. With Gaussian noise it also does for kappa^2 in proportion to
  the step, as a fixed churn gives;
- a fixed kappa > 0 leaves an error however short the steps are, and kappa = 1 loses all of p(x0 | x_t) but
  its mean.

process                      F_t(x0, eps)                          noise
Gaussian                     alpha_t x0 + sigma_t eps              solved; `gaussian` of a schedule by name
Chain(D, .., Gaussian)       alpha_t D_t(x0) + sigma_t eps         solved: hot blur, pixelate + noise, ...
Blur, Pixelate, Mask, Fade   D_t(x0)                               none (`degradations.py`)
DrawnMask                    pixels masked in the order of eps     drawn from what x_t and x0 leave of it
DrawnFade                    (1 - t) x0 + t eps, eps an image      solved

Shapes: x (B, C, H, W), latents of any C; eps and z as x; t, s, kappa are numbers or (B,) tensors. Everything
is differentiable in x0 and x_t where F is. Blur with noise: Daras et al. 2022 (arXiv:2209.05442), Hoogeboom &
Salimans 2022 (arXiv:2209.05557).
"""

import dataclasses
from collections.abc import Sequence

import torch

from ..faults import BadValue
from ..predictions import expand
from ..samplers import Noise
from ..step import blend, check_kappa, step, weights
from .noise_schedules import SCHEDULES, NoiseSchedule

ROUNDING = 1e-6  # by which a time may miss [0, 1]


Time = float | torch.Tensor  # one for all images, or (B,)


def time_of(t: Time) -> torch.Tensor:
    """t as a float64 tensor () or (B,) in [0, 1]; raises ValueError for any other."""
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.ndim > 1:
        raise BadValue(
            "t must be between 0 and 1, a number or one for each image, got shape {shape}. 0 is data, 1 "
            "fully destroyed.",
            shape=tuple(t.shape),
        )
    inside = (t >= -ROUNDING) & (t <= 1 + ROUNDING)
    if not inside.all():
        raise BadValue(
            "t must be between 0 and 1, a number or one for each image, got {got:g}. 0 is data, 1 fully "
            "destroyed.",
            got=float(t[~inside].flatten()[0]),
        )
    return t.clamp(0, 1)


class ForwardProcess:
    """F_t; a process defines `corrupt` and, where it has noise, `solve_noise`; `transition` may be a closed
    form of its own. It is a kind of `paths.Levels`, whose attributes it has.

    sudden    whether what is destroyed is gone as a whole at any t, however little of x0 that is
    """

    name = "forward process"
    noisy = True
    draws = "with kappa"
    sudden = False
    linear = False
    sigma_max = 1.0
    levels = "times"

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        """x_t = F_t(x0, eps); eps may be None where `noisy` is False."""
        raise NotImplementedError

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        """eps = F_t^{-1}(x0, x): F_t(x0, eps) = x. What x leaves open is drawn by fresh(x) -> z, unit noise.

        Raises ValueError where there is no noise at all.
        """
        raise NotImplementedError

    def mix(self, eps: torch.Tensor, z: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
        """sqrt(1 - kappa^2) eps + kappa z: noise of the same law, a share kappa^2 of its variance fresh."""
        return blend((1 - kappa * kappa).clamp_min(0).sqrt(), eps, kappa, z)

    def transition(
        self,
        x: torch.Tensor,
        x0: torch.Tensor,
        t: Time,
        s: Time,
        kappa: float | torch.Tensor = 0.0,
        fresh: Noise | None = None,
    ) -> torch.Tensor:
        """x_s from x_t and x0, by the module's formula; fresh(x) -> z draws unit noise, only where needed.

        Raises ValueError for times or a kappa outside [0, 1], and for noise that is needed and not given.
        """
        kappa = check_kappa(kappa)
        if not self.noisy:
            reached, kept = self.corrupt(x0, None, s), (1 - kappa * kappa).clamp_min(0).sqrt()
            if not kept.any():
                return reached
            return reached + expand(kept, x) * (x - self.corrupt(x0, None, t))
        if fresh is None and (self.draws == "always" or kappa.any()):
            raise BadValue(
                "fresh must be given on the process {name} with kappa {kappa:g}, got None. Pass a function "
                "that draws unit noise.",
                name=self.name,
                kappa=float(kappa.max()),
            )
        if (kappa == 1).all():
            return self.corrupt(x0, fresh(x), s)
        eps = self.solve_noise(x0, x, t, fresh)
        return self.corrupt(x0, self.mix(eps, fresh(x), kappa) if kappa.any() else eps, s)

    def alpha(self, t: Time) -> torch.Tensor:
        """The scale of the signal beside the noise, float64.

        Like the next four, only where one schedule rules the noise.
        """
        raise self._no_lambda()

    def noise(self, t: Time) -> torch.Tensor:
        """sigma_t, the standard deviation of the noise, float64."""
        raise self._no_lambda()

    def log_snr(self, t: Time) -> torch.Tensor:
        """lambda(t) = log(alpha / sigma), by which churn becomes kappa."""
        raise self._no_lambda()

    def tau(self, t: Time) -> torch.Tensor:
        """The coordinate of multistep solvers, `paths.Path.tau`."""
        raise self._no_lambda()

    def level(self, log_snr: torch.Tensor) -> torch.Tensor:
        """The time of a lambda."""
        raise self._no_lambda()

    def check_shares(self, shares: Sequence[float]) -> None:
        """Raise ValueError for a kappa of a run that the process cannot mix."""

    def check_options(self, order: float | str, corrector: bool, mode: str) -> None:
        """Raise ValueError for options of `samplers.sample` that need a step that is linear with numbers."""
        if corrector:
            raise BadValue(
                "corrector must be False on the process {name}, got {got}. Gaussian processes have others.",
                name=self.name,
                got=corrector,
            )
        if mode != "each step":
            raise BadValue(
                "mode must be each step on the process {name}, got {got}. Gaussian processes have others.",
                name=self.name,
                got=mode,
            )
        if order != 1:
            self.tau(torch.ones((), dtype=torch.float64))

    def _no_lambda(self):
        return BadValue(
            "churn must be 0 or inf, and order 1, on the process {name}, which has no log signal-to-noise "
            "ratio. Give kappa, the share of fresh noise, instead.",
            name=self.name,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(ForwardProcess):
    """F_t = alpha_t x0 + sigma_t eps on a noise schedule, over its whole range of times.

    As the path of `samplers.sample` it is the kernel itself, in times: the same coefficients, bit for bit.
    """

    schedule: NoiseSchedule
    linear = True

    @property
    def name(self) -> str:
        """The schedule's."""
        return self.schedule.name

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        return blend(self.alpha(t), x0, self.noise(t), eps)

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        sigma = self.noise(t)
        if not (sigma > 0).all():
            raise BadValue(
                "t must be above 0 on the process {name}, where there is noise to solve for, got {got:g}.",
                name=self.name,
                got=float(torch.as_tensor(t).min()),
            )
        return blend(1 / sigma, x, -self.alpha(t) / sigma, x0)

    def transition(
        self,
        x: torch.Tensor,
        x0: torch.Tensor,
        t: Time,
        s: Time,
        kappa: float | torch.Tensor = 0.0,
        fresh: Noise | None = None,
    ) -> torch.Tensor:
        kappa = check_kappa(kappa)
        if fresh is None and kappa.any():
            raise BadValue(
                "fresh must be given with kappa above 0 on the process {name}, got None.",
                name=self.name,
            )
        return step(x, x0, self, time_of(t), time_of(s), kappa, fresh(x) if kappa.any() else None)

    def alpha(self, t: Time) -> torch.Tensor:
        return self.schedule.alpha(self._scheduled(t))

    def noise(self, t: Time) -> torch.Tensor:
        return self.schedule.sigma(self._scheduled(t))

    def log_snr(self, t: Time) -> torch.Tensor:
        return self.schedule.log_snr(self._scheduled(t))

    def tau(self, t: Time) -> torch.Tensor:
        sigma = self.noise(t)
        explodes = self.schedule.alpha(self.schedule.t_max) == 1
        return sigma if explodes else sigma / (self.alpha(t) + sigma)

    def level(self, log_snr: torch.Tensor) -> torch.Tensor:
        return self.schedule.time(log_snr) / self.schedule.t_max

    def _scheduled(self, t):
        """The schedule's own time."""
        return time_of(t) * self.schedule.t_max


def gaussian(schedule: str = "flow", **options: float) -> Gaussian:
    """The `Gaussian` of a schedule in `noise_schedules.SCHEDULES`, with the options of its function there.

    Raises ValueError for a name that is not there.
    """
    if schedule not in SCHEDULES:
        raise BadValue(
            "schedule must be one of {schedules}, got {got!r}.", schedules=list(SCHEDULES), got=schedule
        )
    return Gaussian(schedule=SCHEDULES[schedule](**options))


class Chain(ForwardProcess):
    """Processes one after another, F_t = last_t( ... second_t(first_t(x0)) ..., eps): all without noise but,
    if any, the last.

    With one destruction before a Gaussian everything is a sum of its values at one or two times, x_t and
    noise, and is computed as such. Raises ValueError for no parts, and for noise before the last: it could
    not be solved for.
    """

    def __init__(self, *parts: ForwardProcess, name: str | None = None):
        if not parts:
            raise BadValue(
                "parts must be one or more processes, of which only the last has noise, got none. Put the "
                "one with noise last."
            )
        early = [p.name for p in parts[:-1] if p.noisy]
        if early:
            raise BadValue(
                "parts must be one or more processes, of which only the last has noise, got {early!r} before "
                "it. Put the one with noise last.",
                early=early,
            )
        self.degradations, self.last = parts[:-1], parts[-1]
        self.name = name or " + ".join(p.name for p in parts)
        self.noisy, self.draws = self.last.noisy, self.last.draws

    def degrade(self, x0: torch.Tensor, t: Time) -> torch.Tensor:
        """What the parts before the last make of x0."""
        for part in self.degradations:
            x0 = part.corrupt(x0, None, t)
        return x0

    def corrupt(self, x0: torch.Tensor, eps: torch.Tensor | None, t: Time) -> torch.Tensor:
        t = time_of(t)
        if not self._is_sum(t):
            return self.last.corrupt(self.degrade(x0, t), eps, t)
        return self._sum(x0, [(self.last.alpha(t), t)], [(self.last.noise(t), eps)])

    def solve_noise(
        self, x0: torch.Tensor, x: torch.Tensor, t: Time, fresh: Noise | None = None
    ) -> torch.Tensor:
        t = time_of(t)
        if not self._is_sum(t) or self.last.noise(t) == 0:
            return self.last.solve_noise(self.degrade(x0, t), x, t, fresh)
        sigma = self.last.noise(t)
        return self._sum(x0, [(-self.last.alpha(t) / sigma, t)], [(1 / sigma, x)])

    def transition(
        self,
        x: torch.Tensor,
        x0: torch.Tensor,
        t: Time,
        s: Time,
        kappa: float | torch.Tensor = 0.0,
        fresh: Noise | None = None,
    ) -> torch.Tensor:
        kappa, t, s = check_kappa(kappa), time_of(t), time_of(s)
        if not self._is_sum(kappa, t, s) or kappa and fresh is None:
            return super().transition(x, x0, t, s, kappa, fresh)
        a, _, k = weights(self.last, t, s, kappa)
        added = [(a, x), (k, fresh(x))] if k else [(a, x)]
        return self._sum(x0, [(self.last.alpha(s), s), (-a * self.last.alpha(t), t)], added)

    def _is_sum(self, *numbers):
        return self.last.linear and len(self.degradations) == 1 and not any(v.ndim for v in numbers)

    def _sum(self, x0, terms, others):
        """The sum of w D_t(x0) over terms [(w, t)] and a x over others [(a, x)]."""
        (degradation,) = self.degradations
        (_, first), *_ = terms
        used = [(float(w), t) for w, t in terms if w] or [(0.0, first)]
        out = degradation.weighted(x0, used)
        for a, x in others:
            out = out.add_(x, alpha=float(a)) if a else out
        return out

    def mix(self, eps: torch.Tensor, z: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
        return self.last.mix(eps, z, kappa)

    def check_shares(self, shares: Sequence[float]) -> None:
        self.last.check_shares(shares)

    def alpha(self, t: Time) -> torch.Tensor:
        return self.last.alpha(t)

    def noise(self, t: Time) -> torch.Tensor:
        return self.last.noise(t)

    def log_snr(self, t: Time) -> torch.Tensor:
        return self.last.log_snr(t)

    def tau(self, t: Time) -> torch.Tensor:
        return self.last.tau(t)

    def level(self, log_snr: torch.Tensor) -> torch.Tensor:
        return self.last.level(log_snr)
