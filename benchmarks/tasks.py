"""What `solvers.py` measures on: exact denoisers and the demo teachers with guidance, noises, and what they
converge to.
"""

import dataclasses
import math
from collections.abc import Callable

import exact
import torch
from fewstep.diffusion.paths import Path
from fewstep.diffusion.samplers import batch_noise, solve
from fewstep.diffusion.solvers.linear import CONDITIONAL
from fewstep.training.models.demo import data
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import guided

TEACHERS = {  # name: (packaged teacher, CFG)
    "teacher-flow": ("flow", 2.0),
    "teacher-epsilon": ("epsilon", 2.0),
    "teacher-flow-cfg4": ("flow", 4.0),
    "teacher-epsilon-cfg4": ("epsilon", 4.0),
}
CASES = (*exact.CASES, *TEACHERS)
NOISES = 64
HELD_OUT = 4  # labels of the teachers that are measured here, and never fitted on


def family(name):
    """The kind of case, which decides its settings."""
    if name in TEACHERS:
        return "teacher"
    return "emoji" if name.startswith("emoji") else "mixture"


class GuidedTeacher:
    """A packaged teacher with guidance, on conditions (N,) of its own; the first rows where fewer are asked.

    cost: model calls of a guided prediction
    """

    def __init__(self, kind, cfg, condition=None):
        self.teacher, self.cfg = DemoTeacher(kind), cfg
        self.condition, self.cost = condition, 1 if cfg == 1 else 2

    def __call__(self, x, sigma):
        """x0 at one level, a number."""
        level = torch.full((len(x),), float(sigma))
        return guided(self.teacher, x.float(), level, self.condition[: len(x)], self.cfg).to(x.dtype)

    def ask(self, x, sigma, kinds):
        """A prediction of x0 for each letter of kinds (`diffusion.solvers.linear`)."""
        level, condition = torch.full((len(x),), float(sigma)), self.condition[: len(x)]
        which = [condition if kind == CONDITIONAL else torch.full_like(condition, -1) for kind in kinds]
        return [self.teacher(x.float(), level, each).to(x.dtype) for each in which]


@dataclasses.dataclass(frozen=True)
class Task:
    """A denoiser (x, sigma) -> x0 of a model type, unit noise (N, C, H, W), and what it converges to.

    cost  model calls of a prediction, 2 where it is guided
    """

    name: str
    type: str
    path: Path
    sigma_of: Callable
    denoise: Callable
    noise: torch.Tensor
    deviation: float
    reference: torch.Tensor
    accuracy: float
    cloud: exact.Cloud | None
    cost: int = 1

    @property
    def cfg(self):
        """The guidance of its predictions, 1 for none."""
        return getattr(self.denoise, "cfg", 1.0)

    def errors(self, images):
        """RMSE of each image to its converged one, in units of the data's deviation, float64 (N,)."""
        off = images.double() - self.reference[: len(images)].double()
        found = off.flatten(1).square().mean(1).sqrt() / self.deviation
        return found.nan_to_num(1e6, 1e6)


class FitTeacher:
    """What a solver is fitted on: the task's denoiser, or the teacher on the labels that aren't measured."""

    noise_scale, base, apart = 1.0, "", None

    def __init__(self, task):
        self.task, self.cfg, self.conditions = task, 1.0, 1
        self.path, self.sigma_of = task.path, task.sigma_of
        self.shape = tuple(task.noise.shape[1:])
        if task.name in TEACHERS:
            self.teacher, self.cfg = task.denoise.teacher, task.denoise.cfg
            self.conditions = self.teacher.conditions - HELD_OUT
            self.apart = self._apart
        guidance = f"CFG {self.cfg:g}"
        self.identity = {"model": task.name, "patches": "", "conditioning": "", "guidance": guidance}

    def __call__(self, x, sigma, condition):
        if self.cfg == 1:
            return self.task.denoise(x, float(sigma[0]))  # all rows of a solver's call are at one level
        return guided(self.teacher, x, sigma.to(torch.float32), condition + HELD_OUT, self.cfg)

    def _apart(self, x, sigma, condition, kinds):
        which = [
            condition + HELD_OUT if kind == CONDITIONAL else torch.full_like(condition, -1) for kind in kinds
        ]
        return [self.teacher(x, sigma.to(torch.float32), each) for each in which]


def task(name, noises=None):
    """The task of a case, its reference solved."""
    count, generator = noises or NOISES, torch.Generator().manual_seed(1)
    if name in TEACHERS:
        kind, cfg = TEACHERS[name]
        denoise = GuidedTeacher(kind, cfg, torch.arange(count) % HELD_OUT)
        teacher, cloud, cost = denoise.teacher, None, denoise.cost
        path, sigma_of, shape = teacher.path, teacher.sigma_of, teacher.shape
        low = float(sigma_of(torch.tensor([1e-3])))
        deviation = float(data.load("train")[0].std())
        limits, kind = {"tolerance": 1e-3, "steps": 100, "most": 400}, f"teacher {kind}"
    else:
        case = exact.case(name)
        denoise, kind, cloud, cost = case.denoise, case.type, case.cloud, 1
        path, sigma_of, shape = case.path, case.sigma_of, case.cloud.shape
        low, deviation = case.low, case.deviation
        limits = {"most": 2000} if family(name) == "emoji" else {}
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    top = float(sigma_of(torch.ones(1, dtype=torch.float64)))
    first = start(noise, top, top, path)
    with torch.no_grad():
        reference, accuracy = exact.converged(denoise, first, path, top, low, deviation, **limits)
    return Task(name, kind, path, sigma_of, denoise, noise, deviation, reference, accuracy, cloud, cost)


def sampled(denoise, noise, sigmas, sigma_of, path, seed=0, **options):
    """Images of our kernel along a grid, on the host's starting state; seed: of fresh noise."""
    top = float(sigma_of(torch.ones(1, dtype=torch.float64)))
    first = start(noise, float(sigmas[0]), top, path)
    return solve(denoise, first, sigmas, path, noise=batch_noise(seed), **options)


def start(noise, sigma, sigma_max, path):
    """What the host makes of unit noise over an empty latent (`noise_scaling` of comfy.model_sampling)."""
    if path.sigma_max < math.inf:
        return sigma * noise
    return noise * (math.hypot(1, sigma) if math.isclose(sigma, sigma_max, rel_tol=1e-5) else sigma)
