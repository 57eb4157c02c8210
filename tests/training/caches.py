"""What the tests of the trajectory cache build: caches of an exact teacher. Imported by name."""

import dataclasses
import time
from pathlib import Path

import torch
from fewstep.diffusion.paths import path
from fewstep.diffusion.schedules.grids import discrete_sigma, flow_sigma, grid
from fewstep.training.trajectories.cache import CacheSpec, TrajectoryCache
from oracles.mixture import line_mixture

MIXTURE = line_mixture(4)
TABLE = torch.linspace(-3.5, 2.7, 100, dtype=torch.float64).exp()


def spec(name="flow", steps=6, **changes):
    sigma_of = flow_sigma() if name == "flow" else discrete_sigma(TABLE)
    sigmas = grid("uniform", steps, sigma_of, path(name))
    made = CacheSpec(
        model="mixture",
        patches="",
        conditioning="c",
        conditions=3,
        guidance="none",
        path=name,
        shape=(4,),
        sigmas=tuple(sigmas.tolist()),
        kept=(0, 2, steps),
        shard=2,
    )
    return dataclasses.replace(made, **changes)


class Teacher:
    """The exact denoiser of a mixture, moved a little by its condition; counts its calls."""

    def __init__(self, name="flow", pause=0.0):
        self.path, self.pause, self.calls = path(name), pause, 0

    def __call__(self, x, sigma, condition):
        self.calls += 1
        time.sleep(self.pause)
        return (MIXTURE.denoise(x.double(), self.path, sigma) + 0.1 * condition[:, None]).float()


def build(folder, wanted, count, teacher=None, **options):
    """Build a cache in one go; (model calls, cache)."""
    teacher = teacher or Teacher(wanted.path)
    cache = TrajectoryCache(folder, wanted, **options)
    *_, last = cache.build(teacher, count)
    assert last == 1
    return teacher.calls, cache


def files(folder):
    found = [f for f in sorted(Path(folder).rglob("*")) if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in found}


def no_teacher(x, sigma, condition):
    raise AssertionError("the model was asked")
