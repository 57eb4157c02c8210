"""The mathematics that samplers and training share. Needs torch only.

Notation, fixed here and used everywhere:

    x_t = alpha_t x_0 + sigma_t eps     the forward process; t = 1 or the largest sigma is noise, 0 is data
    lambda = log(alpha / sigma)         half the log signal-to-noise ratio
    eps, v, velocity                    eps; alpha eps - sigma x_0; eps - x_0
    denoiser (x_t, sigma, cond) -> x0   the posterior mean of x_0
    sigmas (steps + 1,)                 a descending step grid; its last entry is 0
    churn c >= 0                        share of each lambda-step that is over-shot and noised back
    kappa in [0, 1]                     share of fresh noise in a step, which churn becomes (`step.py`)
    NFE                                 number of function evaluations: model calls for one image

A *path* (`paths.py`) gives alpha as a function of sigma. A *forward process* (`destruction/forward.py`) is
any x_t = F_t(x_0, eps), t in [0, 1], that the samplers' one step can go back along: noise, blur, squares,
masks, fades. Step arithmetic is done in float64 and results have the caller's dtype. Every random draw comes
from an explicit `torch.Generator`.

Where things are:

    step, paths, predictions            the one step; alpha of sigma; conversions between predictions
    moves, multistep, samplers          the plan of a run; higher orders; the one loop
    probe                               what any sampler makes of its predictions
    weightings                          loss weightings as functions of lambda
    faults, frozen                      errors as values; fields of frozen dataclasses
    schedules/                          step grids: by name, automatic, published, drawn, edited
    solvers/                            solvers as rows of weights, and their fit to a model's trajectories
    destruction/                        forward processes, and the noise schedules of the Gaussian ones
"""
