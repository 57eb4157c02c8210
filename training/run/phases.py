"""The grid along which teacher and student step, and which of its points a run keeps."""

import torch

from ...diffusion.paths import FLOW
from ...diffusion.schedules.grids import grid, shifted


class Phases:
    """The grid on which the teacher is solved, and the kept ones of its points: the phases' edges, `between`
    points inside each, and those from which the student is sampled.

    own, sigma_of   t -> sigma: the model's, and with the run's shift
    fine (n,)       the solver's levels, from noise to 0. The first step, where most of the error of a solver
                    arises, is halved
    kept            which of them are kept
    levels (k,)     sigma of every kept point, float32
    edges           which of the kept are edges of phases
    ends (k - 1,)   for every kept point the edge that ends its phase
    """

    def __init__(self, config, denoiser):
        self.path, self.own, self.sigma_of = (
            denoiser.path,
            denoiser.sigma_of,
            shifted(denoiser.sigma_of, config.shift),
        )
        length = config.image_steps // config.phases
        edges = range(0, config.image_steps + 1, length)
        inside = torch.linspace(0, length, config.between + 2).round().int().tolist()
        sampled = (
            range(0, config.image_steps + 1, config.image_steps // config.steps)
            if config.method == "phased"
            else ()
        )
        kept = sorted({a + k for a in edges[:-1] for k in inside}.union(sampled))
        self.edges = torch.tensor([kept.index(e) for e in edges])
        places = torch.arange(len(kept) - 1)
        self.ends = self.edges[torch.searchsorted(self.edges, places, right=True)]
        times = (
            torch.tensor([0, 0.5, *range(1, config.image_steps)], dtype=torch.float64) / config.image_steps
        )
        self.fine = torch.cat([self.sigma_of(1 - times).to(torch.float64), torch.zeros(1)])
        coarse = self.sigmas_for(config.image_steps)
        self.kept = [int((self.fine - coarse[k]).abs().argmin()) for k in kept]
        self.levels = self.fine[self.kept].float()

    def sigmas_for(self, steps):
        """The grid for sampling in that many steps; with as many steps as phases, the phases' edges."""
        return grid("uniform", steps, self.sigma_of, self.path)


def usual_shift(path, sigma_of):
    """What the training grid is shifted by: 3 in all, of which a flow model's own shift, sigma/(1 - sigma) at
    t = 1/2, is part.
    """
    if path is not FLOW:
        return 3.0
    middle = float(sigma_of(torch.tensor([0.5], dtype=torch.float64)))
    return max(1.0, min(3.0, 3.0 * (1 - middle) / middle))
