"""Models of every kind over one exact mixture, with which the objectives are tested."""

import math

import torch
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.predictions import expand, from_x0, to_x0
from oracles.mixture import line_mixture

MODELS = {
    "epsilon": (VARIANCE_EXPLODING, "epsilon"),
    "v": (VARIANCE_PRESERVING, "v"),
    "flow": (FLOW, "velocity"),
    "zero-SNR": (VARIANCE_PRESERVING, "v"),
    "zero-SNR in ComfyUI": (VARIANCE_EXPLODING, "v"),
}
MIXTURE = line_mixture()


def levels(name):
    """A fine descending grid of the model."""
    t = torch.linspace(1, 0, 257, dtype=torch.float64)
    grids = {
        "epsilon": 20 * t**4,
        "v": (t * 1.55).sin(),  # from nearly pure noise on
        "flow": t,
        "zero-SNR": (t * math.pi / 2).sin(),
        "zero-SNR in ComfyUI": (t * math.atan(4518)).tan(),  # 4518 is what ComfyUI takes for pure noise
    }
    return grids[name]


def as_model(function, path, kind):
    """`function(x, sigma) -> x0`, through a network output of this kind and back.

    v is that of the variance-preserving scale.
    """

    def call(x, sigma, condition):
        a, s = expand(path.alpha(sigma), x), expand(sigma, x)
        scale = a.hypot(s) if kind == "v" else 1
        given = (x / scale, a / scale, s / scale)
        output = from_x0(function(x, sigma), kind, *given)
        return to_x0(output, kind, *given)

    return call


def numbers(x):
    """A condition (B,) that tells the samples of a batch apart; these models ask for none."""
    return torch.arange(len(x))
