"""What every familiar knob of stochasticity is in churn c, for one step, and back.

With h = lambda_s - lambda_t of the step sigma_t -> sigma_s (`lambda_step`) and lambda = log(alpha/sigma):

knob                                        churn c
DPM-Solver++ SDE eta                        c = eta
the reverse SDE's eta (`sde.py`)            c = eta^2, as h -> 0
DDIM eta; ancestral eta on VP and VE        -log(1 - eta^2 (1 - e^(-2h))) / 2h
ancestral eta on a flow                     (lambda(sigma_d) - lambda_s) / h, sigma_d = sigma_s (1 +
                                            (sigma_s/sigma_t - 1) eta)
TCD gamma                                   (lambda_d - lambda_s) / h, d the level of the time (1 - gamma) s
EDM gamma, noise added before the step      log(1 + gamma) / h
unified diffusion model's sigma~ (kappa)    -log(1 - kappa^2) / 2h
LCM, consistency sampling                   inf

The step over-shoots to lambda_d = lambda_s + c h and is noised back. All of it needs a finite h: from pure
noise or into data no finite churn says what these knobs do, and kappa (`step.py`) does. Numbers or tensors of
one shape in, float64 tensors out.
"""

import torch
from fewstep.diffusion.paths import FLOW

ROUNDING = 1e-9  # share of sigma_s by which a computed sigma_d may miss 0 or sigma_s


def lambda_step(path, sigma_t, sigma_s):
    """h = lambda_s - lambda_t > 0 of the step sigma_t -> sigma_s.

    Raises ValueError where h is infinite (alpha_t = 0 or sigma_s = 0) or not above 0.
    """
    return _checked_step(path.log_snr(_float64(sigma_s)) - path.log_snr(_float64(sigma_t)))


def kappa_to_churn(kappa, h):
    """c = -log(1 - kappa^2) / 2h, kappa in [0, 1] the share of fresh noise; inf for kappa = 1.

    kappa is sigma~ of the unified diffusion model (Su, kexue.fm/archives/9262). Raises ValueError for kappa
    outside [0, 1].
    """
    kappa = _ranged("kappa", kappa, 1.0, "It is a share.")
    return -torch.log1p(-kappa.square()) / (2 * _checked_step(h))


def churn_to_kappa(churn, h):
    """kappa = sqrt(1 - e^(-2 c h)): inverse of `kappa_to_churn`, and what `step.fresh_share` gives inside a
    run.
    """
    return (-torch.expm1(-2 * _churn(churn) * _checked_step(h))).sqrt()


def ddim_eta_to_churn(eta, h):
    """c = -log(1 - eta^2 (1 - e^(-2h))) / 2h; eta = 1 is c = 1.

    DDIM's eta (Song et al. 2021, arXiv:2010.02502, eq. 16) and the ancestral samplers' eta on variance
    preserving and variance exploding paths. Above eta = 1/sqrt(1 - e^(-2h)) all noise is fresh: inf, as the
    ancestral samplers clip it (DDIM is not defined there). Raises ValueError for a negative eta.
    """
    eta, h = _ranged("eta", eta, torch.inf, "0 adds no noise, 1 is the DDPM step."), _checked_step(h)
    return -torch.log1p((eta.square() * torch.expm1(-2 * h)).clamp_min(-1)) / (2 * h)


def churn_to_ddim_eta(churn, h):
    """eta = sqrt((1 - e^(-2 c h)) / (1 - e^(-2h))): inverse of `ddim_eta_to_churn`; above 1 where c > 1."""
    h = _checked_step(h)
    return (torch.expm1(-2 * _churn(churn) * h) / torch.expm1(-2 * h)).sqrt()


def overshoot_to_churn(path, sigma_t, sigma_s, sigma_d):
    """c = (lambda_d - lambda_s) / h for a step that goes down to sigma_d <= sigma_s and is noised back to
    sigma_s.

    inf for sigma_d = 0. Raises ValueError for a sigma_d below 0 or above sigma_s.
    """
    t, s, d = (_float64(v) for v in (sigma_t, sigma_s, sigma_d))
    if not ((d >= 0) & (d <= s * (1 + ROUNDING))).all():
        raise ValueError(
            f"sigma_d must be between 0 and sigma_s = {_text(s)}, got {_text(d)}. It is the level that the "
            "step over-shoots to."
        )
    return (path.log_snr(d) - path.log_snr(s)).clamp_min(0) / lambda_step(path, t, s)


def churn_to_overshoot(path, sigma_t, sigma_s, churn):
    """sigma_d, the level of lambda_s + c h: inverse of `overshoot_to_churn`."""
    return path.sigma(path.log_snr(_float64(sigma_s)) + _churn(churn) * lambda_step(path, sigma_t, sigma_s))


def tcd_gamma_to_churn(path, sigma_t, sigma_s, gamma, time_of, sigma_of):
    """c of TCD's gamma in [0, 1]: the step goes down to the time (1 - gamma) s (Zheng et al. 2024,
    arXiv:2402.19159).

    time_of, sigma_of   the model's time of a sigma and sigma of a time, which TCD's knob depends on; an
                        implementation that rounds times to a table's entries puts its rounding here
    Raises ValueError for gamma outside [0, 1].
    """
    gamma = _ranged("gamma", gamma, 1.0, "0 adds no noise.")
    return overshoot_to_churn(path, sigma_t, sigma_s, sigma_of((1 - gamma) * time_of(_float64(sigma_s))))


def churn_to_tcd_gamma(path, sigma_t, sigma_s, churn, time_of):
    """gamma = 1 - time(sigma_d) / time(sigma_s): inverse of `tcd_gamma_to_churn` for times not rounded."""
    return 1 - time_of(churn_to_overshoot(path, sigma_t, sigma_s, churn)) / time_of(_float64(sigma_s))


def flow_eta_to_churn(eta, sigma_t, sigma_s):
    """c of the rectified-flow ancestral eta: sigma_d = sigma_s (1 + (sigma_s/sigma_t - 1) eta) on the flow
    path.

    This is `eta` of ComfyUI's euler_ancestral on flow models; eta = 1 is not c = 1. inf where sigma_d = 0.
    Raises ValueError for an eta below 0 or one that leads below sigma_d = 0, above 1/(1 - sigma_s/sigma_t).
    """
    t, s = _float64(sigma_t), _float64(sigma_s)
    lambda_step(FLOW, t, s)
    eta = _ranged("eta", eta, (1 + ROUNDING) / (1 - s / t), "More leads below data.")
    left = 1 + (s / t - 1) * eta
    return overshoot_to_churn(FLOW, t, s, torch.where(left > ROUNDING, s * left, 0.0))


def churn_to_flow_eta(churn, sigma_t, sigma_s):
    """eta = (1 - sigma_d/sigma_s) / (1 - sigma_s/sigma_t): inverse of `flow_eta_to_churn`."""
    t, s = _float64(sigma_t), _float64(sigma_s)
    return (1 - churn_to_overshoot(FLOW, t, s, churn) / s) / (1 - s / t)


def edm_gamma_to_churn(gamma, h):
    """c = log(1 + gamma) / h: sigma/alpha is raised by 1 + gamma before the step (Karras et al. 2022,
    arXiv:2206.00364, algorithm 2, gamma = S_churn/N), mode "raise first" of `moves.plan`. Raises
    ValueError for a negative gamma.
    """
    return torch.log1p(_ranged("gamma", gamma, torch.inf, "0 adds no noise.")) / _checked_step(h)


def churn_to_edm_gamma(churn, h):
    """gamma = e^(c h) - 1: inverse of `edm_gamma_to_churn`."""
    return torch.expm1(_churn(churn) * _checked_step(h))


def _float64(value):
    return torch.as_tensor(value, dtype=torch.float64)


def _text(value):
    return ", ".join(f"{v:g}" for v in value.flatten().tolist())


def _ranged(name, value, highest, remedy):
    value, highest = _float64(value), _float64(highest)
    if not ((value >= 0) & (value <= highest)).all():
        limit = "0 or more" if highest.isinf().all() else f"between 0 and {_text(highest)}"
        raise ValueError(f"{name} must be {limit}, got {_text(value)}. {remedy}")
    return value


def _churn(churn):
    return _ranged("churn", churn, torch.inf, "0 adds no noise, 1 is the DDPM step.")


def _checked_step(h):
    h = _float64(h)
    if not ((h > 0) & torch.isfinite(h)).all():
        raise ValueError(
            f"h must be above 0 and finite, got {_text(h)}. Leave out the step from pure noise and the one "
            "into data; give kappa for those."
        )
    return h
