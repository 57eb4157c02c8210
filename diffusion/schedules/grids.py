"""Step grids: where between noise and data the model is asked.

`grid` returns `sigmas`, float64 of shape (steps + 1,), strictly descending, from the model's largest noise
level (or where `denoise` says) to 0, for every name and any number of steps. A model is described by
`sigma_of`, a function from time t in (0, 1] to sigma (rising, `sigma_of(1)` the largest), which is all that
differs between flow models with any shift and discrete ones, and by its path, which gives the ratio
sigma/alpha and lambda = log(alpha/sigma).

uniform            t = 1 - i/steps, "trailing" (Lin et al. 2024, arXiv:2305.08891, table 2); what distilled
                   models are made on
log-SNR            equal steps of lambda (Lu et al. 2022, arXiv:2206.00927, sec. 3.4)
log sigma          equal steps of log sigma, which is finite also where alpha = 0
karras             (s_max^(1/rho) + share (s_min^(1/rho) - s_max^(1/rho)))^rho in sigma/alpha (Karras et al.
                   2022,
                   arXiv:2206.00364, eq. 5)
polyexponential    log sigma/alpha by the rho-th power of the share left (Crowson, k-diffusion); rho = 1 is
                   log-SNR
beta               times at the quantiles of Beta(a, b) (Lee et al. 2024, arXiv:2407.12173)
cosine             equal steps of the angle atan(sigma/alpha) (Nichol & Dhariwal 2021, arXiv:2102.09672)
trailing anchors   times among `anchors` equal ones, as evenly as they allow (LCM, Luo et al. 2023,
                   arXiv:2310.04378)
phase edges        the edges of `phases` equal phases; more steps divide the phases (PCM, Wang et al. 2024,
                   arXiv:2405.18407)
AYS SD1, SDXL, SVD the published tables of Sabour et al. 2024 (arXiv:2404.14507), moved to this model by equal
lambda
auto               what `auto.py` chooses; option `dimension`, the numbers in a sample, where they are few

Where a scale is infinite at the start (alpha = 0) that entry is kept and the others are spaced from lambda =
-4.6, 1 % signal.
"""

import math

import torch

from ..faults import BadValue
from . import auto
from .published import AYS

NEARLY_DATA = 0.02  # the time of the last noise level where a formula needs a smallest one
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


def grid(name, steps, sigma_of, path, denoise=1.0, shift=1.0, **options):
    """The grid of that name.

    steps >= 1; `denoise` in (0, 1] starts at the time t = denoise (image to image); `shift` above 1 moves the
    steps towards the start, t/denoise -> shift t / (1 + (shift - 1) t); options as in `OPTIONS`. Raises
    ValueError for anything else.
    """
    check_steps(steps)
    if not 0 < denoise <= 1:
        raise BadValue("denoise must be above 0 and at most 1, got {got}.", got=denoise)
    if not 0 < shift < math.inf:
        raise BadValue("shift must be above 0, got {got}. 1 leaves the model's own.", got=shift)
    if name not in NAMES:
        raise BadValue("schedule must be one of {names}, got {got!r}.", names=list(NAMES), got=name)
    options = _checked(name, options)
    if name in TIMED:
        times = denoise * TIMED[name](torch.arange(int(steps), dtype=torch.float64) / int(steps), **options)
        sigmas = shifted(sigma_of, shift, denoise)(times).to(torch.float64)
    else:
        sigmas = _spaced(name, int(steps), sigma_of, path, denoise, **options)
        if shift != 1:
            sigmas = shifted(sigma_of, shift, denoise)(time_of(sigma_of, sigmas)).to(torch.float64)
    sigmas[0] = sigma_of(torch.tensor([denoise], dtype=torch.float64)).to(torch.float64)[0]
    return descending(torch.cat([sigmas, sigmas.new_zeros(1)]))


def check_steps(steps):
    """Raise ValueError when `steps` is not a whole number of 1 or more."""
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise BadValue("steps must be a whole number of 1 or more, got {got}.", got=steps)


def _checked(name, options):
    """The options of that grid with their defaults; refuses others, and values out of range."""
    if name == "auto" and set(options) <= {"dimension"}:
        return options
    known = OPTIONS.get(name, {})
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"schedule {name} has no option {key}; it has {', '.join(known) or 'none'}.")
        if not 0 < value < math.inf or (isinstance(known[key], int) and int(value) != value):
            raise ValueError(
                f"{key} of schedule {name} must be above 0{' and whole' * isinstance(known[key], int)}, got {value}."
            )
    return {**known, **options}


# ---- grids that are times --------------------------------------------------------------------------


def _anchored(count, share):
    """Times among count/count, (count-1)/count, ..., evenly chosen; with more steps than anchors each
    interval is divided.
    """
    steps = len(share)
    if steps <= count:
        return 1 - (share * count).floor() / count
    parts = [
        steps // count + (j < steps % count) for j in range(count)
    ]  # the noisiest intervals get one more
    return torch.cat(
        [1 - (j + torch.arange(n, dtype=torch.float64) / n) / count for j, n in enumerate(parts)]
    )


def beta_quantile(q, a, b):
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


TIMED = {
    "uniform": lambda share: 1 - share,
    "beta": lambda share, alpha, beta: beta_quantile(1 - share, alpha, beta),
    "trailing anchors": lambda share, anchors: _anchored(int(anchors), share),
    "phase edges": lambda share, phases: _anchored(int(phases), share),
}


# ---- grids that are noise levels -------------------------------------------------------------------


def _spaced(name, steps, sigma_of, path, denoise, **options):
    """`steps` noise levels from the time `denoise` down to nearly data; the first may be left to the caller."""
    share = (
        torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    )
    ends = sigma_of(torch.tensor([denoise, min(NEARLY_DATA, denoise / 2)], dtype=torch.float64)).to(
        torch.float64
    )
    if name == "auto":
        half = sigma_of(torch.tensor([0.5], dtype=torch.float64))[0]
        own = float(half / path.alpha(half)) if path.name == "flow" else 1.0  # the shift of a flow model
        return auto.sigmas(path, steps, ends[0], options.get("dimension"), own)
    if name.startswith("AYS"):
        return _published(AYS[name.removeprefix("AYS ")], steps, ends[0], path)
    if name == "log sigma":
        high, low = ends.log()
        return (high + share * (low - high)).exp()
    if name == "cosine":
        high, low = torch.atan2(ends[0], path.alpha(ends[0])), 0.0
        angle = high + torch.arange(steps, dtype=torch.float64) / steps * (low - high)
        return path.sigma(-angle.tan().log())
    bounded = (
        torch.minimum(ends, path.sigma(torch.tensor(-4.6, dtype=torch.float64)))
        if path.sigma_max == 1
        else ends
    )
    if name == "karras":
        high, low = (-path.log_snr(bounded) / options["rho"]).exp()
        return path.sigma(-options["rho"] * (high + share * (low - high)).log())
    high, low = path.log_snr(bounded)
    return path.sigma(low + (1 - share) ** options.get("rho", 1.0) * (high - low))


def _published(table, steps, top, path):
    """A published table of sigma/alpha at `steps` + 1 equal places, by log-linear interpolation, from below
    `top`.

    The table ends at its smallest level, from which the last step goes to 0. Levels at or above `top` (image
    to image, or a model with less noise) are compressed to below it.
    """
    snr = -torch.tensor(table, dtype=torch.float64).log()
    place = torch.linspace(0, len(table) - 1, steps + 1, dtype=torch.float64)[:-1]
    low = place.floor().long().clamp_max(len(table) - 2)
    snr = torch.lerp(snr[low], snr[low + 1], place - low)
    first = path.log_snr(top)
    if first > snr[min(1, len(snr) - 1)]:
        end = -math.log(table[-1])
        snr = end - (end - snr) * ((end - first).clamp_min(1e-3) / (end - snr[0]))
    return path.sigma(snr)


def descending(sigmas):
    """`sigmas` with equal or rising neighbours pulled apart by a relative 1e-4; the first and the last entry
    stay.
    """
    out = sigmas.tolist()
    for i in range(1, len(out) - 1):
        out[i] = min(out[i], out[i - 1] * (1 - 1e-4))
    return torch.tensor(out, dtype=torch.float64)


# ---- what a model's times are ----------------------------------------------------------------------


def flow_sigma(shift=1.0):
    """sigma_of for a flow model: sigma(t) = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq.
    23).
    """
    return lambda t: shift * t / (1 + (shift - 1) * t)


def discrete_sigma(sigmas):
    """sigma_of for a discrete model: t = (index + 1) / N into its ascending table (N,), interpolated in log
    sigma.

    Below the table's first entry sigma falls to 0 with t, so that a grid of many steps there still descends.
    """
    log = torch.as_tensor(sigmas).detach().to("cpu", torch.float64).log()

    def sigma_of(t):
        position = t.to(torch.float64) * len(log)
        index = (position - 1).clamp(0, len(log) - 1)
        low, high = index.floor().long(), index.ceil().long()
        return torch.lerp(log[low], log[high], index - low).exp() * position.clamp_max(1)

    return sigma_of


def nearest_index(sigma, table):
    """Indices (B,) of a discrete model's ascending table (N,) that lie nearest to levels (B,) in log sigma;
    int64.
    """
    log = table.log().to(sigma)
    return (sigma.log()[:, None] - log).abs().argmin(1)


def shifted(sigma_of, shift, top=1.0):
    """`sigma_of` with more of its time near the start `top`: t -> shift t / (1 + (shift - 1) t/top), as
    `flow_sigma` does it.
    """
    return sigma_of if shift == 1 else lambda t: sigma_of(shift * t / (1 + (shift - 1) * t / top))


def time_of(sigma_of, sigmas):
    """The times whose noise levels are `sigmas`, by bisection; float64 in [0, 1], 1 for levels above the
    largest.
    """
    wanted = torch.as_tensor(sigmas, dtype=torch.float64)
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(50):
        middle = (low + high) / 2
        above = sigma_of(middle).to(torch.float64) < wanted
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(wanted > 0, (low + high) / 2, 0.0)
