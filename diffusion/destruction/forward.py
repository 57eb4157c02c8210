"""Forward processes F_t: every gradual destruction that the kernel can step back.

    x_t = F_t(x0, eps)        t in [0, 1]: 0 leaves x0 as it is, 1 is what sampling starts from
    x_s = F_s( x0, sqrt(1 - kappa^2) F_t^{-1}(x0, x_t) + kappa z )            where the noise can be solved
                                                                              for (`transition`)
    x_s = F_s( x0 ) + sqrt(1 - kappa^2) ( x_t - F_t(x0) )                     where there is none

That is the unified diffusion model of Su 2022 (kexue.fm/archives/9262 and 9271), kappa his sigma~. kappa = 1
forgets x_t, kappa = 0 reuses all that x_t says beyond x0. With F = alpha x0 + sigma eps the first line is the
step of `step.py`, and the sampler is the same loop (`samplers.sample` with a process for the path, times for
sigmas). The second line is Cold Diffusion (Bansal et al. 2022, arXiv:2208.09392): kappa = 1 is its algorithm
1, kappa = 0 its algorithm 2; its last step to t = 0 keeps the residual, as there.

What holds. For eps and z from the process's law of noise, and x_t = F_t(x0, eps) with x0 KNOWN, x_s has the
law of F_s(x0, eps):
exactly, for any kappa and any t, s. So it has for x0 DRAWN from p(x0 | x_t). With the posterior MEAN for x0
it has not in general:
- where the data is one point, or x_t says which x0 it came from (processes without noise that are one-to-one
  on the data), the mean
  is x0 and nothing is lost;
- kappa = 0 with F linear in x0 and eps is an Euler step of the flow dx/dt = E[dF_t/dt | x_t], which keeps the
  marginals: the error
  vanishes with the step. So does it, with Gaussian noise, for kappa^2 in proportion to the step, as a fixed
  churn gives;
- a fixed kappa > 0 leaves an error however short the steps are, and kappa = 1 loses all of p(x0 | x_t) but
  its mean.

process                   F_t(x0, eps)                                noise
Gaussian                  alpha_t x0 + sigma_t eps                    solved: `gaussian` of a schedule,
                          `on_path`
Chain(D, .., Gaussian)    alpha_t D_t(x0) + sigma_t eps               solved: hot blur, pixelate + noise, mask
                          + noise, fade + noise
Blur, Pixelate, Mask, Fade          D_t(x0)                           none (`degradations.py`)
DrawnMask                 pixels masked in the order of eps           drawn from what x_t and x0 leave of it
DrawnFade                 (1 - t) x0 + t eps, eps another image       solved

Shapes: x (B, C, H, W), latents of any C; eps and z as x; t, s, kappa are numbers or (B,) tensors. Everything
is differentiable in x0 and x_t where F is. Blur with noise: Daras et al. 2022 (arXiv:2209.05442), Hoogeboom &
Salimans 2022 (arXiv:2209.05557).
"""

import dataclasses
from collections.abc import Callable

import torch

from ..faults import BadValue
from ..predictions import expand
from ..step import blend, check_kappa, step, weights
from .noise_schedules import PROCESSES

ROUNDING = 1e-6  # by which a time may miss [0, 1]


def time_of(t):
    """t as a float64 tensor () or (B,) in [0, 1]; raises ValueError for any other."""
    t = torch.as_tensor(t, dtype=torch.float64)
    inside = (t >= -ROUNDING) & (t <= 1 + ROUNDING)
    if t.ndim > 1 or not inside.all():
        was = f"shape {tuple(t.shape)}" if t.ndim > 1 else f"{float(t[~inside].flatten()[0]):g}"
        raise BadValue(
            "t must be between 0 and 1, a number or one for each image, got {got}. 0 is data, 1 fully "
            "destroyed.",
            got=was,
        )
    return t.clamp(0, 1)


class ForwardProcess:
    """F_t; a process defines `corrupt` and, where it has noise, `solve_noise`; `transition` may be a closed
    form of its own.

    noisy     whether F depends on eps
    draws     when a step needs fresh noise: "never", "with kappa", "always"
    sudden    whether what is destroyed is gone as a whole at any t, however little of x0 that is
    linear    whether a step is a x_t + b x0 + k z with numbers a, b, k: the kernel works those out beforehand
    """

    name = "forward process"
    noisy = True
    draws = "with kappa"
    sudden = False
    linear = False
    sigma_max = 1.0
    levels = "times"

    def corrupt(self, x0, eps, t):
        """x_t = F_t(x0, eps); eps may be None where `noisy` is False."""
        raise NotImplementedError

    def solve_noise(self, x0, x, t, fresh=None):
        """eps = F_t^{-1}(x0, x): F_t(x0, eps) = x. What x leaves open is drawn by fresh(x) -> z, unit noise.

        Raises ValueError where there is no noise at all.
        """
        raise NotImplementedError

    def mix(self, eps, z, kappa):
        """sqrt(1 - kappa^2) eps + kappa z: noise of the same law, a share kappa^2 of its variance fresh."""
        return blend((1 - kappa * kappa).clamp_min(0).sqrt(), eps, kappa, z)

    def transition(self, x, x0, t, s, kappa=0.0, fresh=None):
        """x_s from x_t and x0, the module's formula; fresh(x) -> z draws unit noise, and only where it is
        needed.

        Raises ValueError for times or a kappa outside [0, 1], and for noise that is needed and not given.
        """
        kappa = check_kappa(kappa)
        if not self.noisy:
            out, kept = self.corrupt(x0, None, s), (1 - kappa * kappa).clamp_min(0).sqrt()
            return out if not kept.any() else out + expand(kept, x) * (x - self.corrupt(x0, None, t))
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

    def alpha(self, t):
        """The scale of the signal beside the noise, float64; like the next four only where one schedule rules
        the noise.
        """
        raise self._no_lambda()

    def noise(self, t):
        """sigma_t, the standard deviation of the noise, float64."""
        raise self._no_lambda()

    def log_snr(self, t):
        """lambda(t) = log(alpha / sigma), by which churn becomes kappa."""
        raise self._no_lambda()

    def tau(self, t):
        """The coordinate of multistep solvers, `paths.Path.tau`."""
        raise self._no_lambda()

    def level(self, log_snr):
        """The time of a lambda."""
        raise self._no_lambda()

    def check_shares(self, shares):
        """Raise ValueError for a kappa of a run that the process cannot mix."""

    def check_options(self, order, corrector, mode):
        """Raise ValueError for options of `samplers.sample` that need a step that is linear with numbers."""
        for name, value, must in (("corrector", corrector, False), ("mode", mode, "each step")):
            if value != must:
                raise BadValue(
                    "{name} must be {must} on the process {name2}, got {got}. Gaussian processes have "
                    "others.",
                    name=name,
                    must=must,
                    name2=self.name,
                    got=value,
                )
        if order != 1:
            self.tau(torch.ones((), dtype=torch.float64))

    def _no_lambda(self):
        return ValueError(
            f"churn must be 0 or inf, and order 1, on the process {self.name}, which has no log signal-to-noise "
            "ratio. Give kappa, the share of fresh noise, instead."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(ForwardProcess):
    """F_t = alpha_t x0 + sigma_t eps; `gaussian` and `on_path` make it. All fields are functions of float64
    tensors in [0, 1].

    Given to `samplers.sample` for the path it is the kernel itself, in times: the same coefficients, bit for
    bit.
    """

    name: str
    signal: Callable  # alpha
    strength: Callable  # sigma
    snr: Callable  # lambda
    coordinate: Callable  # tau
    inverse: Callable  # t of lambda
    linear = True

    def corrupt(self, x0, eps, t):
        return blend(self.alpha(t), x0, self.noise(t), eps)

    def solve_noise(self, x0, x, t, fresh=None):
        sigma = self.noise(t)
        if not (sigma > 0).all():
            raise BadValue(
                "t must be above 0 on the process {name}, where there is noise to solve for, got {got:g}.",
                name=self.name,
                got=float(torch.as_tensor(t).min()),
            )
        return blend(1 / sigma, x, -self.alpha(t) / sigma, x0)

    def transition(self, x, x0, t, s, kappa=0.0, fresh=None):
        kappa = check_kappa(kappa)
        if fresh is None and kappa.any():
            raise BadValue(
                "fresh must be given with kappa above 0 on the process {name}, got None.",
                name=self.name,
            )
        return step(x, x0, self, time_of(t), time_of(s), kappa, fresh(x) if kappa.any() else None)

    def alpha(self, t):
        return self.signal(time_of(t))

    def noise(self, t):
        return self.strength(time_of(t))

    def log_snr(self, t):
        return self.snr(time_of(t))

    def tau(self, t):
        return self.coordinate(time_of(t))

    def level(self, log_snr):
        return self.inverse(log_snr)


def gaussian(schedule="flow", **options):
    """The `Gaussian` of a noise schedule of `processes.PROCESSES`, over its whole range of times; options are
    the schedule's.

    Raises ValueError for a name that is not there.
    """
    if schedule not in PROCESSES:
        raise BadValue(
            "schedule must be one of {processes}, got {got!r}.",
            processes=list(PROCESSES),
            got=schedule,
        )
    p = PROCESSES[schedule](**options)
    alpha, sigma = (lambda t: p.alpha(t * p.t_max)), (lambda t: p.sigma(t * p.t_max))
    explodes = bool(p.alpha(p.t_max) == 1)
    return Gaussian(
        name=p.name,
        signal=alpha,
        strength=sigma,
        snr=lambda t: p.log_snr(t * p.t_max),
        coordinate=sigma if explodes else lambda t: sigma(t) / (alpha(t) + sigma(t)),
        inverse=lambda log_snr: p.time(log_snr) / p.t_max,
    )


def on_path(path, sigma_of, time_of_sigma=None):
    """The `Gaussian` of a `paths.Path` whose sigma rises with time as `sigma_of` says (`grids.flow_sigma`,
    `grids.discrete_sigma`).

    time_of_sigma, its inverse, is needed by the mode "raise first" alone.
    """

    def inverse(log_snr):
        if time_of_sigma is None:
            raise BadValue("time_of_sigma must be given to `on_path` for the mode 'raise first', got None.")
        return time_of_sigma(path.sigma(log_snr))

    def sigma(t):
        return torch.as_tensor(sigma_of(t), dtype=torch.float64)

    return Gaussian(
        name=path.name,
        signal=lambda t: path.alpha(sigma(t)),
        strength=sigma,
        snr=lambda t: path.log_snr(sigma(t)),
        coordinate=lambda t: path.tau(sigma(t)),
        inverse=inverse,
    )


class Chain(ForwardProcess):
    """Processes one after another, F_t = last_t( ... second_t(first_t(x0)) ..., eps): all without noise but,
    if any, the last.

    With one destruction before a Gaussian all is a sum of its values at one or two times, x_t and noise, and
    done as such. Raises ValueError for no parts, and for noise before the last: it could not be solved for.
    """

    def __init__(self, *parts, name=None):
        early = [p.name for p in parts[:-1] if p.noisy]
        if not parts or early:
            raise ValueError(
                f"parts must be one or more processes, of which only the last has noise, got {early or 'none'}"
                f"{' before it' if early else ''}. Put the one with noise last."
            )
        self.degradations, self.last = parts[:-1], parts[-1]
        self.name = name or " + ".join(p.name for p in parts)
        self.noisy, self.draws = self.last.noisy, self.last.draws

    def degrade(self, x0, t):
        """What the parts before the last make of x0."""
        for part in self.degradations:
            x0 = part.corrupt(x0, None, t)
        return x0

    def corrupt(self, x0, eps, t):
        t = time_of(t)
        if not self._is_sum(t):
            return self.last.corrupt(self.degrade(x0, t), eps, t)
        return self._sum(x0, [(self.last.alpha(t), t)], [(self.last.noise(t), eps)])

    def solve_noise(self, x0, x, t, fresh=None):
        t = time_of(t)
        if not self._is_sum(t) or self.last.noise(t) == 0:
            return self.last.solve_noise(self.degrade(x0, t), x, t, fresh)
        sigma = self.last.noise(t)
        return self._sum(x0, [(-self.last.alpha(t) / sigma, t)], [(1 / sigma, x)])

    def transition(self, x, x0, t, s, kappa=0.0, fresh=None):
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
        out = self.degradations[0].weighted(
            x0, [(float(w), t) for w, t in terms if w] or [(0.0, terms[0][1])]
        )
        for a, x in others:
            out = out.add_(x, alpha=float(a)) if a else out
        return out

    def mix(self, eps, z, kappa):
        return self.last.mix(eps, z, kappa)

    def check_shares(self, shares):
        self.last.check_shares(shares)

    def alpha(self, t):
        return self.last.alpha(t)

    def noise(self, t):
        return self.last.noise(t)

    def log_snr(self, t):
        return self.last.log_snr(t)

    def tau(self, t):
        return self.last.tau(t)

    def level(self, log_snr):
        return self.last.level(log_snr)
