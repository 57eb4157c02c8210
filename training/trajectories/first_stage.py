"""What a model of the second part of the way starts from: the states in which the first one leaves off.

The first model draws from noise down to the level where the second begins, at its guidance, as accurately as
trajectories are drawn. The states are kept in a `TrajectoryCache`, as those trajectories are.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from ...diffusion.faults import BadValue
from ...diffusion.schedules.grids import shifted, time_of
from ..models.denoiser import Teacher
from .cache import CacheSpec, TrajectoryCache
from .sampling import SHARD


class FirstStage:
    """The states (N, ...) at `level` that `teacher` draws from noise; `key` tells them from others.

    steps, shift   of its grid: uniform times, shifted as a run's
    Raises ValueError where the teacher has no such level.
    """

    def __init__(
        self, teacher: Teacher, level: float, steps: int, shift: float, seed: int, folder: str | Path
    ):
        self.teacher = teacher
        self.sigmas = _leading(teacher, level, steps, shift)
        spec = CacheSpec(
            **teacher.identity,
            conditions=teacher.conditions,
            path=teacher.path.name,
            shape=tuple(teacher.shape),
            sigmas=tuple(self.sigmas.tolist()),
            kept=(0, len(self.sigmas) - 1),
            noise_scale=teacher.noise_scale,
            seed=seed,
            shard=SHARD,
            predictions=False,
        )
        self.key, self.cache = spec.key, TrajectoryCache(folder, spec)

    def build(self, count: int) -> Iterator[float]:
        """Draw what is missing of the first `count` states; yields the share of the work that is done."""
        yield from self.cache.build(self.teacher, count)

    def states(self, count: int) -> torch.Tensor:
        """The first `count` states, once they are built."""
        try:
            return self.cache.read(count)[0][:, -1].clone()
        finally:
            self.cache.close()


def _leading(teacher: Teacher, level: float, steps: int, shift: float) -> torch.Tensor:
    """Levels from the teacher's noise to `level`, equal steps of the shifted times, the first one halved."""
    sigma_of = shifted(teacher.sigma_of, shift)
    low = float(time_of(sigma_of, [level])[0])
    if not 0 < low < 1 or level <= 0:
        raise BadValue(
            "first_stage must sample from above the noise level {level:g} at which the other model begins. "
            "Wire the model of the steps before it.",
            level=level,
        )
    share = torch.tensor([0, 0.5, *range(1, steps)], dtype=torch.float64) / steps
    inner = sigma_of(1 - (1 - low) * share).to(torch.float64)
    return torch.cat([inner, torch.tensor([level], dtype=torch.float64)])
