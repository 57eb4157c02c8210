"""A model of a few hundred weights, for tests of what a run does with any model. Imported by name."""

import torch
from fewstep.diffusion.paths import FLOW
from fewstep.diffusion.predictions import expand, to_x0
from fewstep.diffusion.schedules.grids import flow_sigma
from fewstep.training.models.fingerprint import fingerprint


class Tiny:
    """A flow model of (2, 4, 4) samples under three conditions, random but the same everywhere."""

    def __init__(self, width=24):
        g = torch.Generator().manual_seed(0)
        self.module = torch.nn.Sequential(
            torch.nn.Linear(36, width), torch.nn.SiLU(), torch.nn.Linear(width, 32)
        )
        for p in self.module.parameters():
            p.data = torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5
        self.module.requires_grad_(False).eval()
        self.path, self.sigma_of, self.prediction, self.noise_scale = FLOW, flow_sigma(), "velocity", 1.0
        self.shape, self.conditions = (2, 4, 4), 3
        self.base, self.device = fingerprint(self.module), torch.device("cpu")

    def __call__(self, x, sigma, condition):
        which = torch.nn.functional.one_hot(condition % 4, 4)[:, 1:].to(x)
        seen = torch.cat([x.flatten(1), sigma[:, None], which], 1).to(next(self.module.parameters()).dtype)
        out = self.module(seen).reshape(x.shape).to(x.dtype)
        level = expand(sigma, x)
        return to_x0(out, "velocity", x, 1 - level, level)
