"""A mixture in the plane, and small networks that learn it, for the analytic gates: does a student that is
trained from scratch come as near to the data as its teacher at 50 steps?

The teacher is the exact denoiser. The error of a sampler is the sliced 2-Wasserstein distance of its samples
to fresh data; both are quasi-random, so that the distance between two sets of data, the floor, is a ninth of
the teacher's error (0.003 and 0.028).
"""

import copy
import functools
import math

import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.predictions import expand, to_x0
from fewstep.diffusion.samplers import sample
from fewstep.diffusion.schedules.grids import grid
from fewstep.training.trajectories.noises import start
from oracles.mixture import line_mixture

TEACHER_STEPS, SHIFT = 50, 3.0
MIXTURE = line_mixture(dimensions=2, std=0.3)
COUNT, POOL, BATCH = 8192, 32768, 256  # samples of a measurement, to learn from, of an update


def by_angle(path, top):
    """sigma_of with the angle atan(sigma/alpha) in proportion to time, up to `top`."""
    return lambda t: (torch.tan if path is VARIANCE_EXPLODING else torch.sin)(t * top)


MODELS = {  # path, prediction, sigma_of
    "epsilon": (VARIANCE_EXPLODING, "epsilon", by_angle(VARIANCE_EXPLODING, math.atan(14.6))),
    "v": (VARIANCE_PRESERVING, "v", by_angle(VARIANCE_PRESERVING, 1.55)),
    "flow": (FLOW, "velocity", lambda t: t),
    "zero-SNR": (VARIANCE_PRESERVING, "v", by_angle(VARIANCE_PRESERVING, math.pi / 2)),
    "zero-SNR in ComfyUI": (VARIANCE_EXPLODING, "v", by_angle(VARIANCE_EXPLODING, math.atan(4518.0))),
}


def levels(name, steps):
    """The uniform shifted grid."""
    path, _, sigma_of = MODELS[name]
    return grid("uniform", steps, sigma_of, path, shift=SHIFT)


# ---- the measure ---------------------------------------------------------------------------------


def normal(count, seed):
    """Quasi-random unit noise (count, 2), float64."""
    return torch.special.ndtri(
        torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    )


def fresh_data(seed):
    """COUNT quasi-random samples of the mixture, each part with its share."""
    edges = [0, *(MIXTURE.weights.cumsum(0) * COUNT).round().int().tolist()]
    return torch.cat(
        [
            MIXTURE.centre + p * MIXTURE.direction + MIXTURE.std * normal(b - a, seed + k)
            for k, (p, a, b) in enumerate(zip(MIXTURE.positions, edges, edges[1:]))
        ]
    )


def distance(x, y):
    """Sliced 2-Wasserstein over 16 directions of the half plane."""
    angles = torch.arange(16, dtype=torch.float64) * math.pi / 16
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(
        ((x.double() @ directions).sort(0).values - (y.double() @ directions).sort(0).values)
        .square()
        .mean()
        .sqrt()
    )


@functools.cache
def shared():
    """(fresh data, starting noise, noise for a second step)."""
    return (
        fresh_data(10),
        normal(COUNT, 1),
        normal(COUNT, 2)[torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))],
    )


@torch.no_grad()
def error(name, denoiser, steps, churn=0.0):
    path, (data, noise, again), sigmas = MODELS[name][0], shared(), levels(name, steps)
    *_, last = sample(denoiser, start(noise, sigmas, path).float(), sigmas, path, churn=churn, noise=again.to)
    return distance(last.x, data)


def exact_denoiser(name):
    """(x, sigma, condition) -> x0 of the mixture, in float64."""
    return lambda x, sigma, condition=None: MIXTURE.denoise(x.double(), MODELS[name][0], sigma).to(x)


@functools.cache
def teachers_error(name, steps=TEACHER_STEPS):
    return error(name, exact_denoiser(name), steps)


def ratio(name, net, steps, churn=0.0):
    """The error of a network in so many steps, in multiples of the teacher's."""
    own = error(name, lambda x, sigma: net(x, torch.full((len(x),), sigma)), steps, churn)
    return own / teachers_error(name)


# ---- the network and its training ----------------------------------------------------------------


class Net(torch.nn.Module):
    """(x (B, 2), sigma (B,), condition) -> x0, through a network output of the model's own kind.

    An epsilon network begins with the input for an answer, which at high noise it nearly is.
    """

    def __init__(self, path, kind, width=128):
        super().__init__()
        self.path, self.kind = path, kind
        sizes = [6, width, width, width]
        layers = [
            layer for a, b in zip(sizes, sizes[1:]) for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())
        ]
        self.body = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))
        self.gate = torch.nn.Linear(
            4, 2
        )  # how much of the body and of the input there is in the output, at each level
        torch.nn.init.zeros_(self.gate.weight)
        self.gate.bias.data = torch.tensor([0.0, float(kind == "epsilon")])

    def forward(self, x, sigma, condition=None):
        a, s = expand(self.path.alpha(sigma), x), expand(sigma, x)
        scale = a.hypot(s)
        scaled, a, s = x / scale, a / scale, s / scale  # the variance-preserving scale
        level = torch.cat([s / (a + s), ((a + 1e-4) / (s + 1e-4)).log() / 4, a, s], 1)
        gain, skip = self.gate(level).chunk(2, 1)
        out = gain.exp() * self.body(torch.cat([scaled, level], 1)) + skip * scaled
        if self.kind == "velocity":  # depends on the scale; v is that of this one
            return to_x0(out, self.kind, x, 1 - sigma[:, None], sigma[:, None])
        return to_x0(out, self.kind, scaled, a, s)


def train(name, loss_of, updates, lr=0.02):
    """The average of a network's weights over its training; loss_of(net, generator) -> (B,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(*MODELS[name][:2])
    average, generator = copy.deepcopy(net).requires_grad_(False), torch.Generator().manual_seed(0)
    weights = list(net.parameters())
    optimiser = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.99), fused=True)
    for k in range(updates):
        optimiser.param_groups[0]["lr"] = lr * min((k + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * k / updates))
        optimiser.zero_grad()
        loss_of(net, generator).mean().backward()
        optimiser.step()
        torch._foreach_lerp_(
            list(average.parameters()), [w.detach() for w in weights], 1 - min(0.99, (1 + k) / (10 + k))
        )
    return average
