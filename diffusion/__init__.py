"""The mathematics that samplers and training share. Needs torch only.

Notation, fixed here and used everywhere:

    x_t = alpha_t x_0 + sigma_t eps     the forward process; t = 1 or the largest sigma is noise, 0 is data
    lambda = log(alpha / sigma)         half the log signal-to-noise ratio
    eps, v, velocity                    eps; alpha eps - sigma x_0; eps - x_0
    denoiser (x_t, sigma, cond) -> x0   the posterior mean of x_0
    sigmas (steps + 1,)                 a descending step grid; its last entry is 0
    churn c >= 0                        share of each lambda-step that is over-shot and noised back
                                        (`step.py`)
    NFE                                 number of function evaluations: model calls for one image

A *path* (`paths.py`) gives alpha as a function of sigma. A *forward process* (`forward.py`) is any x_t =
F_t(x_0, eps), t in [0, 1], that the samplers' one step can go back along: noise, blur, squares, masks, fades,
tokens. Step arithmetic is done in float64 and results have the caller's dtype. Every random draw comes from
an explicit `torch.Generator`.
"""
