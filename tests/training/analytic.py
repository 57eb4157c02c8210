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
    """A fine descending grid of the model: up to 20, nearly pure noise, pure noise twice, and ComfyUI's 4518
    for it.
    """
    t = torch.linspace(1, 0, 257, dtype=torch.float64)
    return {
        "epsilon": 20 * t**4,
        "v": (t * 1.55).sin(),
        "flow": t,
        "zero-SNR": (t * math.pi / 2).sin(),
        "zero-SNR in ComfyUI": (t * math.atan(4518)).tan(),
    }[name]


def as_model(function, path, kind):
    """`function(x, sigma) -> x0`, through a network output of this kind and back; v in the
    variance-preserving scale.
    """

    def call(x, sigma, condition):
        a, s = expand(path.alpha(sigma), x), expand(sigma, x)
        scale = a.hypot(s) if kind == "v" else 1
        return to_x0(
            from_x0(function(x, sigma), kind, x / scale, a / scale, s / scale),
            kind,
            x / scale,
            a / scale,
            s / scale,
        )

    return call


def numbers(x):
    """A condition (B,) that tells the samples of a batch apart; these models ask for none."""
    return torch.arange(len(x))
