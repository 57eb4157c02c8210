"""Step grids: where between noise and data the model is asked.

Each function returns `sigmas`, float64 of shape (steps + 1,), strictly descending, from the model's largest noise level
to 0. A model is described by `sigma_of`, a function from time t in (0, 1] to sigma (rising, `sigma_of(1)` the largest),
which is all that differs between flow models with any shift and discrete ones.

uniform      t = 1 - i/steps, "trailing" (Lin et al. 2024, arXiv:2305.08891, table 2); what distilled models are made on
log-SNR      equal steps of lambda (Lu et al. 2022, arXiv:2206.00927, sec. 3.4); an infinite start is skipped over
karras       sigma/alpha = (s_max^(1/rho) + i/(steps-1) (s_min^(1/rho) - s_max^(1/rho)))^rho, rho = 7
             (Karras et al. 2022, arXiv:2206.00364, eq. 5)
"""

import torch

NAMES = ("uniform", "log-SNR", "karras")
NEARLY_DATA = 0.02      # the time of the last noise level where a formula needs a smallest one


def grid(name, steps, sigma_of, path, denoise=1.0):
    """The grid of that name.

    steps >= 1; `denoise` in (0, 1] starts at the time t = denoise (image to image). Raises ValueError for anything else.
    """
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number of 1 or more, got {steps}.")
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, got {denoise}.")
    if name not in NAMES:
        raise ValueError(f"schedule must be one of {', '.join(NAMES)}, got {name!r}.")
    steps = int(steps)
    times = torch.linspace(denoise, 0, steps + 1, dtype=torch.float64)[:-1]
    sigmas = sigma_of(times).to(torch.float64)
    if name != "uniform" and steps > 1:
        ends = sigma_of(torch.tensor([denoise, min(NEARLY_DATA, denoise / 2)], dtype=torch.float64)).to(torch.float64)
        sigmas = _between(name, ends, steps, path)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _between(name, ends, steps, path):
    """`steps` noise levels from ends[0] to ends[1], equally spaced in lambda or by Karras' rule."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    start = ends[:1]
    # At alpha = 0 both scales are infinite: keep that entry and space the others from the level with 1 % of signal.
    bounded = torch.minimum(ends, path.sigma(torch.tensor(-4.6, dtype=torch.float64))) if path.sigma_max == 1 else ends
    if name == "log-SNR":
        high, low = path.log_snr(bounded)
        sigmas = path.sigma(high + share * (low - high))
    else:
        high, low = (bounded / path.alpha(bounded)) ** (1 / 7)
        sigmas = path.sigma(-7 * (high + share * (low - high)).log())
    return torch.cat([start, sigmas[1:]])


def flow_sigma(shift=1.0):
    """sigma_of for a flow model: sigma(t) = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    return lambda t: shift * t / (1 + (shift - 1) * t)


def discrete_sigma(sigmas):
    """sigma_of for a discrete model: t = (index + 1) / N into its ascending table (N,), interpolated in log sigma.

    Below the table's first entry sigma falls to 0 with t, so that a grid of many steps there still descends.
    """
    log = torch.as_tensor(sigmas).detach().to("cpu", torch.float64).log()

    def sigma_of(t):
        position = t.to(torch.float64) * len(log)
        index = (position - 1).clamp(0, len(log) - 1)
        low, high = index.floor().long(), index.ceil().long()
        return torch.lerp(log[low], log[high], index - low).exp() * position.clamp_max(1)

    return sigma_of


def shifted(sigma_of, shift):
    """`sigma_of` with more of its time near the noise: t -> shift t / (1 + (shift - 1) t), as `flow_sigma` does it."""
    return lambda t: sigma_of(shift * t / (1 + (shift - 1) * t))
