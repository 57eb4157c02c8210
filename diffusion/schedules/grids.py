"""Step grids: where between noise and data the model is called.

`grid` returns `sigmas`, float64 of shape (steps + 1,), strictly descending, from the model's largest noise
level (or where `denoise` says) to 0, for every name and any number of steps. A model is described by
`sigma_of`, a function from time t in (0, 1] to sigma (rising, `sigma_of(1)` the largest), which is all that
differs between flow models with any shift and discrete ones, and by its path, which gives the ratio
sigma/alpha and lambda = log(alpha/sigma).

uniform             t = 1 - i/steps, "trailing" (Lin et al. 2024, arXiv:2305.08891, table 2); what distilled
                    models are made on
log-SNR             equal steps of lambda (Lu et al. 2022, arXiv:2206.00927, sec. 3.4)
log sigma           equal steps of log sigma, which is finite also where alpha = 0
karras              (s_max^(1/rho) + share (s_min^(1/rho) - s_max^(1/rho)))^rho in sigma/alpha (Karras et al.
                    2022, arXiv:2206.00364, eq. 5)
polyexponential     log sigma/alpha by the rho-th power of the share left (Crowson, k-diffusion); rho = 1 is
                    log-SNR
beta                times at the quantiles of Beta(alpha, beta) (Lee et al. 2024, arXiv:2407.12173)
cosine              equal steps of the angle atan(sigma/alpha) (Nichol & Dhariwal 2021, arXiv:2102.09672)
trailing anchors    times among `anchors` equal ones, as evenly as they allow (LCM, Luo et al. 2023,
                    arXiv:2310.04378)
phase edges         the edges of `phases` equal phases; more steps divide the phases (PCM, Wang et al. 2024,
                    arXiv:2405.18407)
AYS SD1, SDXL, SVD  the published tables of Sabour et al. 2024 (arXiv:2404.14507), moved to this model by
                    equal lambda
auto                what `auto.py` chooses; option `dimension`, the numbers in a sample, where they are few

Where a scale is infinite at the start (alpha = 0) that entry is kept and the others are spaced from
lambda = -4.6, 1 % signal.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch

from ..faults import BadValue
from ..paths import Path
from . import auto
from .published import AYS

NEARLY_DATA = 0.02  # the time of the last noise level where a formula needs a smallest one
LEAST_SIGNAL = -4.6  # lambda of 1 % signal
APART = 1e-4  # least relative distance of neighbours
ROUNDING = 1e-6  # relative; nodes hand on float32, which tells levels this far apart from each other
VANISHED = 1e-30  # of a noise level: float32 still tells a thousandth of it from 0
ANCHORS, PHASES = 50, 4
OPTIONS = {
    "karras": {"rho": 7.0},
    "polyexponential": {"rho": 1.0},
    "beta": {"alpha": 0.6, "beta": 0.6},
    "trailing anchors": {"anchors": ANCHORS},
    "phase edges": {"phases": PHASES},
}
NAMES = (
    "uniform",
    "log-SNR",
    "log sigma",
    "karras",
    "polyexponential",
    "beta",
    "cosine",
    "trailing anchors",
    "phase edges",
    *(f"AYS {model}" for model in AYS),
    "auto",
)

SigmaOf = Callable[[torch.Tensor], torch.Tensor]  # times in (0, 1] -> noise levels


def grid(
    name: str,
    steps: int,
    sigma_of: SigmaOf,
    path: Path,
    denoise: float = 1.0,
    shift: float = 1.0,
    *,
    rho: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    anchors: int | None = None,
    phases: int | None = None,
    dimension: int | None = None,
) -> torch.Tensor:
    """The grid of that name.

    steps >= 1; `denoise` in (0, 1] starts at the time t = denoise (image to image); `shift` above 1 moves the
    steps towards the start, t/denoise -> shift t / (1 + (shift - 1) t). The others are options of single
    grids, with the defaults in `OPTIONS`. Raises ValueError for anything else.
    """
    check_steps(steps)
    steps = int(steps)
    if not 0 < denoise <= 1:
        raise BadValue("denoise must be above 0 and at most 1, got {got}.", got=denoise)
    if not 0 < shift < math.inf:
        raise BadValue("shift must be above 0, got {got}. 1 leaves the model's own.", got=shift)
    if name not in NAMES:
        raise BadValue("schedule must be one of {names}, got {got!r}.", names=list(NAMES), got=name)
    options = _checked(name, rho=rho, alpha=alpha, beta=beta, anchors=anchors, phases=phases)
    if name == "auto":
        options["dimension"] = dimension
    elif dimension is not None:
        _refuse_option(name, "dimension")
    if name in TIMES:
        times = denoise * TIMES[name](torch.arange(steps, dtype=torch.float64) / steps, **options)
        sigmas = shifted(sigma_of, shift, denoise)(times).to(torch.float64)
    else:
        sigmas = LEVELS[name](_Range(sigma_of, path, steps, denoise), **options)
        if shift != 1:
            times = time_of(sigma_of, sigmas).clamp_max(denoise)  # published tables may begin above it
            sigmas = shifted(sigma_of, shift, denoise)(times).to(torch.float64)
    sigmas[0] = sigma_of(torch.tensor([denoise], dtype=torch.float64)).to(torch.float64)[0]
    return descending(torch.cat([sigmas, sigmas.new_zeros(1)]))


def check_steps(steps: int) -> None:
    """Raise ValueError when `steps` is not a whole number of 1 or more."""
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise BadValue("steps must be a whole number of 1 or more, got {got}.", got=steps)


def _checked(name, **given):
    """The options of that grid with their defaults; refuses others, and values out of range."""
    options = dict(OPTIONS.get(name, {}))
    for option, value in given.items():
        if value is None:
            continue
        if option not in options:
            _refuse_option(name, option)
        if isinstance(options[option], int):
            if not 0 < value < math.inf or int(value) != value:
                raise BadValue(
                    "{option} of schedule {name} must be above 0 and whole, got {got}.",
                    option=option,
                    name=name,
                    got=value,
                )
        elif not 0 < value < math.inf:
            raise BadValue(
                "{option} of schedule {name} must be above 0, got {got}.", option=option, name=name, got=value
            )
        options[option] = value
    return options


def _refuse_option(name, option):
    known = list(OPTIONS.get(name, {}))
    if known:
        raise BadValue(
            "schedule {name} has no option {option}; it has {known}.", name=name, option=option, known=known
        )
    raise BadValue("schedule {name} has no option {option}; it has none.", name=name, option=option)


# ---- grids that are times, from the share of the steps that are done -------------------------------


def _uniform(share):
    return 1 - share


def _beta(share, alpha, beta):
    return beta_quantile(1 - share, alpha, beta)


def _trailing_anchors(share, anchors):
    return _anchored(share, int(anchors))


def _phase_edges(share, phases):
    return _anchored(share, int(phases))


def _anchored(share, count):
    """Times evenly chosen among count/count, (count-1)/count, ...

    With more steps than anchors each interval is divided.
    """
    steps = len(share)
    if steps <= count:
        return 1 - torch.arange(steps) * count // steps / torch.tensor(count, dtype=torch.float64)
    least, more = divmod(steps, count)
    times = []
    for j in range(count):
        n = least + (j < more)  # the noisiest intervals get one more
        times.append(1 - (j + torch.arange(n, dtype=torch.float64) / n) / count)
    return torch.cat(times)


def beta_quantile(q: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Quantiles of Beta(a, b), a and b above 0, at q in [0, 1]; float64, good to about 1e-6.

    By x = sin^2(angle) the density becomes 2 sin^(2a-1) cos^(2b-1), whose integral is tabulated by the
    midpoint rule.
    """
    # equal steps of w with angle = pi/2 w^2(3-2w): denser at both ends, where a or b below 1/2 leave a pole
    w = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    edges = math.pi / 2 * w * w * (3 - 2 * w)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    mass = middle.sin() ** (2 * a - 1) * middle.cos() ** (2 * b - 1) * width
    total = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    total = total / total[-1]
    i = torch.searchsorted(total, q.clamp(0, 1)).clamp(1, len(total) - 1)
    part = (q - total[i - 1]) / (total[i] - total[i - 1]).clamp_min(1e-300)
    return (edges[i - 1] + part * (edges[i] - edges[i - 1])).sin().square()


TIMES = {
    "uniform": _uniform,
    "beta": _beta,
    "trailing anchors": _trailing_anchors,
    "phase edges": _phase_edges,
}


# ---- grids that are noise levels -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Range:
    """What noise levels are spaced over: `steps` of them, from the time `denoise` down to nearly data."""

    sigma_of: SigmaOf
    path: Path
    steps: int
    denoise: float

    @property
    def ends(self):
        """The largest and the smallest level, float64 (2,)."""
        times = torch.tensor([self.denoise, min(NEARLY_DATA, self.denoise / 2)], dtype=torch.float64)
        return self.sigma_of(times).to(torch.float64)

    @property
    def finite_ends(self):
        """The ends, the largest with at least 1 % signal where the path can end in none."""
        if self.path.sigma_max != 1:
            return self.ends
        return torch.minimum(self.ends, self.path.sigma(torch.tensor(LEAST_SIGNAL, dtype=torch.float64)))

    @property
    def share(self):
        """Equal shares of the way from the first level to the last, 0 and 1 included; float64 (steps,)."""
        return torch.linspace(0, 1, self.steps, dtype=torch.float64)


def _log_snr(levels):
    return _polyexponential(levels, rho=1.0)


def _log_sigma(levels):
    high, low = levels.ends.log()
    return (high + levels.share * (low - high)).exp()


def _karras(levels, rho):
    high, low = (-levels.path.log_snr(levels.finite_ends) / rho).exp()
    root = high + levels.share * (low - high)
    root = root.clamp_min(low * (1 - ROUNDING))  # with a small rho rounding leaves nothing of low
    return levels.path.sigma(-rho * root.log())


def _polyexponential(levels, rho):
    high, low = levels.path.log_snr(levels.finite_ends)
    return levels.path.sigma(low + (1 - levels.share) ** rho * (high - low))


def _cosine(levels):
    high, low = torch.atan2(levels.ends[0], levels.path.alpha(levels.ends[0])), 0.0
    angle = high + torch.arange(levels.steps, dtype=torch.float64) / levels.steps * (low - high)
    return levels.path.sigma(-angle.tan().log())


def _published(levels, table):
    """A published table of sigma/alpha at steps + 1 equal places, by log-linear interpolation.

    The last of them, at the table's smallest level, is where the grid has its 0: that level is not visited,
    and neither is it in ComfyUI. Where the model or `denoise`
    starts below the table's second level, all are compressed to lie below that start.
    """
    snr = -torch.tensor(table, dtype=torch.float64).log()
    place = torch.linspace(0, len(table) - 1, levels.steps + 1, dtype=torch.float64)[:-1]
    low = place.floor().long().clamp_max(len(table) - 2)
    snr = torch.lerp(snr[low], snr[low + 1], place - low)
    first = levels.path.log_snr(levels.ends[0])
    if first > snr[min(1, len(snr) - 1)]:
        end = -math.log(table[-1])
        snr = end - (end - snr) * ((end - first).clamp_min(1e-3) / (end - snr[0]))
    return levels.path.sigma(snr)


def _auto(levels, dimension):
    own = 1.0
    if levels.path.name == "flow":
        half = levels.sigma_of(torch.tensor([0.5], dtype=torch.float64))[0]
        own = float(half / levels.path.alpha(half))  # the model's own shift
    return auto.sigmas(levels.path, levels.steps, levels.ends[0], dimension, own)


LEVELS = {
    "log-SNR": _log_snr,
    "log sigma": _log_sigma,
    "karras": _karras,
    "polyexponential": _polyexponential,
    "cosine": _cosine,
    **{f"AYS {model}": functools.partial(_published, table=table) for model, table in AYS.items()},
    "auto": _auto,
}


def descending(sigmas: torch.Tensor) -> torch.Tensor:
    """`sigmas` made strictly descending; the first, which is above the last, and the last, 0 or more, stay.

    Equal or rising neighbours are pulled apart by a relative 1e-4. Entries that then are not above the last,
    or so small that float32 may lose them, or no numbers, are spread evenly down to it.
    """
    out = sigmas.tolist()
    for i in range(1, len(out) - 1):
        out[i] = min(out[i], out[i - 1] * (1 - APART))
    least = max(out[-1] * (1 + ROUNDING), VANISHED)
    lost = [i for i in range(1, len(out) - 1) if not out[i] > least]
    if lost:
        out = _spread(out, lost[0] - 1)
    return torch.tensor(out, dtype=torch.float64)


def _spread(levels, start):
    """`levels` with equal steps from entry `start`, or from one before it that leaves room, to the last."""
    last = len(levels) - 1

    def step(i):
        return (levels[i] - levels[last]) / (last - i)

    while start and step(start) < ROUNDING * levels[start]:
        start -= 1
    spread = [levels[last] + step(start) * (last - i) for i in range(start + 1, last)]
    return [*levels[: start + 1], *spread, levels[last]]


# ---- what a model's times are ----------------------------------------------------------------------


def flow_sigma(shift: float = 1.0) -> SigmaOf:
    """A flow model's sigma_of: s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""

    def sigma_of(t):
        return shift * t / (1 + (shift - 1) * t)

    return sigma_of


def discrete_sigma(sigmas: torch.Tensor | Sequence[float]) -> SigmaOf:
    """A discrete model's sigma_of: t = (index + 1) / N in its ascending table (N,), linear in log sigma.

    Below the table's first entry sigma falls to 0 with t, so that a grid of many steps there still descends.
    """
    log = torch.as_tensor(sigmas).detach().to("cpu", torch.float64).log()

    def sigma_of(t):
        position = t.to(torch.float64) * len(log)
        index = (position - 1).clamp(0, len(log) - 1)
        low, high = index.floor().long(), index.ceil().long()
        return torch.lerp(log[low], log[high], index - low).exp() * position.clamp_max(1)

    return sigma_of


def nearest_index(sigma: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Indices (B,), int64, of a discrete model's ascending table (N,) nearest in log sigma to levels (B,)."""
    log = table.log().to(sigma)
    return (sigma.log()[:, None] - log).abs().argmin(1)


def shifted(sigma_of: SigmaOf, shift: float, top: float = 1.0) -> SigmaOf:
    """`sigma_of` with more time near its start `top`: t -> shift t / (1 + (shift - 1) t/top).

    As in `flow_sigma`, where `top` is 1.
    """
    if shift == 1:
        return sigma_of

    def shifted_sigma_of(t):
        return sigma_of(shift * t / (1 + (shift - 1) * t / top))

    return shifted_sigma_of


def time_of(sigma_of: SigmaOf, sigmas: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """The times of the levels `sigmas`, by bisection; float64 in [0, 1], 1 for levels above the largest."""
    wanted = torch.as_tensor(sigmas, dtype=torch.float64)
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(50):
        middle = (low + high) / 2
        above = sigma_of(middle).to(torch.float64) < wanted
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(wanted > 0, (low + high) / 2, 0.0)
