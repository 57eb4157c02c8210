"""A path as a forward process, so that runs in times can be held against the same runs in sigmas."""

import dataclasses
from collections.abc import Callable

import torch
from fewstep.diffusion.destruction.forward import Gaussian
from fewstep.diffusion.paths import Path


@dataclasses.dataclass(frozen=True)
class PathSchedule:
    """The noise schedule of a `paths.Path` whose sigma rises with time in [0, 1] as `sigma_of` says."""

    path: Path
    sigma_of: Callable
    time_of_sigma: Callable | None
    t_max = 1.0

    @property
    def name(self):
        return self.path.name

    def sigma(self, t):
        return torch.as_tensor(self.sigma_of(t), dtype=torch.float64)

    def alpha(self, t):
        return self.path.alpha(self.sigma(t))

    def log_snr(self, t):
        return self.path.log_snr(self.sigma(t))

    def time(self, log_snr):
        if self.time_of_sigma is None:
            raise ValueError("time_of_sigma must be given to `on_path` for the mode 'raise first', got None.")
        return self.time_of_sigma(self.path.sigma(log_snr))


class OnPath(Gaussian):
    """The Gaussian process of a `PathSchedule`."""

    def tau(self, t):
        return self.schedule.path.tau(self.noise(t))


def on_path(path, sigma_of, time_of_sigma=None):
    """The Gaussian process of a path whose sigma rises with time as `sigma_of` says (`grids.flow_sigma`,
    `grids.discrete_sigma`).

    time_of_sigma, its inverse, is needed by the mode "raise first" alone.
    """
    return OnPath(schedule=PathSchedule(path, sigma_of, time_of_sigma))
