"""Loss weightings of the literature, all as functions of lambda.

    lambda = log(alpha / sigma) is HALF the log signal-to-noise ratio, here as everywhere in this package.
    Kingma & Gao and much of the literature write l = log(alpha^2 / sigma^2) = 2 lambda: their e^-l is e^(-2
    lambda) here, and a density over l is half the density over lambda.

Every loss on every prediction kind, under any noise of training, is one total weighting of the squared error
of eps:

    loss = integral of w(lambda) E |eps - eps^|^2 dlambda
    w    = mse_factor(kind) x density over lambda x the loss's own weight

w is invariant; how noise is drawn only changes its variance (Kingma & Gao 2023, arXiv:2303.00848, sec. 3).

weighting          prediction kind   density over lambda      w(lambda) up to a constant
eps-MSE            epsilon           cosine                   sech(lambda)
x0-MSE             x0                cosine                   e^(-2 lambda) sech(lambda)
v-MSE + cosine     v                 cosine                   e^-lambda
flow matching      velocity          uniform flow time        e^-lambda at shift 1
EDM                edm               log-normal sigma/alpha   N(lambda; 1.2, 1.2^2) (e^(-2 lambda) + d^2)
SD3 logit-normal   velocity          logit-normal flow time   N(lambda; -m - log shift, s^2) (1 + e^-lambda)^2
min-SNR            x0, clipped       cosine                   min(1, gamma e^(-2 lambda)) sech(lambda)
sigmoid            epsilon           none: w itself           sigmoid(b - 2 lambda)

`shift` multiplies sigma/alpha, the flow models' time shift: it moves a density by -log(shift).
Everything is float64.
"""

import math

import torch

from .faults import BadValue
from .paths import VARIANCE_PRESERVING, Path
from .predictions import KINDS


def mse_factor(
    kind: str, lam: float | torch.Tensor, path: Path = VARIANCE_PRESERVING, sigma_data: float = 0.5
) -> torch.Tensor:
    """Squared error of a prediction kind over that of eps, for one error of x_0; lam any shape.

    x0        e^(-2 lambda)
    epsilon   1
    v         alpha^2 (e^(-2 lambda) + 1)^2, which is e^(-2 lambda) + 1 where variance is preserved
    velocity  (e^-lambda + 1)^2
    score     1 / sigma^2
    edm       e^(-2 lambda) / d^2 + 1

    Only v and score depend on the path. Raises ValueError for a kind that is not one of `predictions.KINDS`.
    Source: Kingma & Gao 2023 (arXiv:2303.00848, table 1) for x0, v and EDM; Gao et al. 2024
    (diffusionflow.github.io).
    """
    lam = _float64(lam)
    if kind not in KINDS:
        raise BadValue("kind must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)
    if kind == "epsilon":
        return torch.ones_like(lam)
    if kind == "x0":
        return torch.exp(-2 * lam)
    if kind == "velocity":
        return (torch.exp(-lam) + 1).square()
    if kind == "edm":
        return torch.exp(-2 * lam) / sigma_data**2 + 1
    sigma = path.sigma(lam)
    if kind == "score":
        return 1 / sigma.square()
    return (sigma * (torch.exp(-lam) + torch.exp(lam))).square()  # alpha = sigma e^lambda


def cosine_density(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """p(lambda) of alpha = cos(pi t/2), t uniform in (0, 1): sech(lambda) / pi (Kingma & Gao 2023).

    `shift` is that of Hoogeboom et al. 2023 (arXiv:2301.11093), resolution over the reference resolution.
    """
    return 1 / (math.pi * torch.cosh(_shifted(lam, shift)))


def uniform_flow_density(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """p(lambda) of flow time uniform in (0, 1): sigmoid(lambda) sigmoid(-lambda), the logistic density."""
    lam = _shifted(lam, shift)
    return torch.sigmoid(lam) * torch.sigmoid(-lam)


def logit_normal_density(
    lam: float | torch.Tensor, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> torch.Tensor:
    """p(lambda) of logit(t) ~ N(mean, std^2), t the flow time: N(lambda; -mean, std^2) (Esser et al. 2024,
    arXiv:2403.03206, eq. 19). std > 0, else ValueError."""
    return _normal(_shifted(lam, shift), -mean, std, "std")


def edm_density(
    lam: float | torch.Tensor, p_mean: float = -1.2, p_std: float = 1.2, shift: float = 1.0
) -> torch.Tensor:
    """p(lambda) of log(sigma/alpha) ~ N(p_mean, p_std^2): N(lambda; -p_mean, p_std^2) (Karras et al. 2022,
    arXiv:2206.00364, table 1). p_std > 0, else ValueError."""
    return _normal(_shifted(lam, shift), -p_mean, p_std, "p_std")


def eps_mse(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """eps-MSE under cosine noise (Nichol & Dhariwal 2021, arXiv:2102.09672, without the variational term)."""
    return mse_factor("epsilon", lam) * cosine_density(lam, shift)


def x0_mse(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """x0-MSE under cosine noise."""
    return mse_factor("x0", lam) * cosine_density(lam, shift)


def v_mse_cosine(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """v-MSE under cosine noise, variance preserved: 2/pi e^-lambda at shift 1.

    Source: Salimans & Ho 2022 (arXiv:2202.00512).
    """
    return mse_factor("v", lam) * cosine_density(lam, shift)


def flow_matching(lam: float | torch.Tensor, shift: float = 1.0) -> torch.Tensor:
    """Velocity MSE, flow time uniform: e^-lambda at shift 1 (Lipman et al. 2022, arXiv:2210.02747)."""
    return mse_factor("velocity", lam) * uniform_flow_density(lam, shift)


def edm(
    lam: float | torch.Tensor,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    sigma_data: float = 0.5,
    shift: float = 1.0,
) -> torch.Tensor:
    """MSE of EDM's F under its log-normal noise; the loss weight is 1/c_out^2 (Karras et al., table 1)."""
    return mse_factor("edm", lam, sigma_data=sigma_data) * edm_density(lam, p_mean, p_std, shift)


def sd3_logit_normal(
    lam: float | torch.Tensor, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> torch.Tensor:
    """Velocity MSE under logit-normal flow time (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""
    return mse_factor("velocity", lam) * logit_normal_density(lam, mean, std, shift)


def sigmoid(lam: float | torch.Tensor, bias: float = 0.0) -> torch.Tensor:
    """sigmoid(bias - 2 lambda), whatever noise is drawn.

    Source: Kingma & Gao 2023; Hoogeboom et al. 2024 (arXiv:2410.19324). `bias` is in units of l = 2 lambda,
    as in the papers: the weight is one half at l = bias.
    """
    return torch.sigmoid(bias - 2 * _float64(lam))


def min_snr(lam: float | torch.Tensor, gamma: float = 5.0, shift: float = 1.0) -> torch.Tensor:
    """min(SNR, gamma) on the x0-MSE under cosine noise, with SNR = e^(2 lambda).

    Source: Hang et al. 2023 (arXiv:2303.09556). Raises ValueError unless gamma > 0.
    """
    if not gamma > 0:
        raise BadValue(
            "gamma must be above 0, got {got}. 5 is the paper's; inf leaves the eps-MSE.", got=gamma
        )
    clipped = (gamma * mse_factor("x0", lam)).clamp_max(1)  # min(SNR, gamma) e^(-2 lambda)
    return clipped * cosine_density(lam, shift)


WEIGHTINGS = {
    "eps-MSE": eps_mse,
    "x0-MSE": x0_mse,
    "v-MSE + cosine": v_mse_cosine,
    "flow matching": flow_matching,
    "EDM": edm,
    "SD3 logit-normal": sd3_logit_normal,
    "sigmoid": sigmoid,
    "min-SNR": min_snr,
}


def weighting(name: str, lam: float | torch.Tensor) -> torch.Tensor:
    """w(lambda), the total weighting of that name on the squared error of eps per unit of lambda, at its
    defaults; lam any shape.

    Raises ValueError for a name that is not one of `WEIGHTINGS`.
    """
    if name not in WEIGHTINGS:
        raise BadValue(
            "weighting must be one of {weightings}, got {got!r}.",
            weightings=list(WEIGHTINGS),
            got=name,
        )
    return WEIGHTINGS[name](lam)


def _float64(lam):
    return torch.as_tensor(lam, dtype=torch.float64)


def _shifted(lam, shift):
    """lambda as it was before the shift."""
    if not shift > 0:
        raise BadValue("shift must be above 0, got {got}. 1 moves nothing.", got=shift)
    return _float64(lam) + math.log(shift)


def _normal(lam, mean, std, name):
    if not std > 0:
        raise BadValue("{name} must be above 0, got {got}. It is a standard deviation.", name=name, got=std)
    return torch.exp(-0.5 * ((lam - mean) / std).square()) / (std * math.sqrt(2 * math.pi))
