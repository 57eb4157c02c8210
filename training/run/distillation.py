"""A few-step student's task: to draw from noise, in few steps without guidance, what its teacher draws."""

import math

import torch

from ..methods.method import Method
from ..methods.phases import Phases
from .config import DistilConfig
from .probe import HeldOut
from .student import Adapter, Student


class Distillation:
    """How the student is sampled and compared, as its recipe will say.

    churn          of sampling in the recipe's steps. One phase that ends at the data: what is sampled in
                   several steps is then a consistency function, which wants fresh noise
    noise_scale    of the noise that training adds to pictures
    """

    seen = None  # no forward process but the model's own noise

    def __init__(self, student: Student, config: DistilConfig, method: Method, phases: Phases):
        self.student, self.config, self.phases = student, config, phases
        to_the_data = method.kind == "x0" and config.phases == 1 < config.steps and not phases.end
        usual = math.inf if to_the_data else 0.0
        self.churn = usual if method.churn is None else method.churn(config)
        self.noise_scale = student.denoiser.noise_scale

    def sigmas_for(self, steps: int) -> torch.Tensor:
        """The grid for sampling in that many steps."""
        return self.phases.sigmas_for(steps)

    def draw(self, held: HeldOut, adapter: Adapter) -> torch.Tensor:
        """What those adapter weights make of held-out noise, sampled as the recipe says."""
        sigmas = self.sigmas_for(self.config.steps)
        return self.student.sample(held.noise, held.condition, sigmas, adapter=adapter, churn=self.churn)

    def before(self, held: HeldOut) -> torch.Tensor:
        """What the model itself makes of held-out noise in as many steps, guided."""
        return self.student.sample_base(held.noise, held.condition, self.phases.plain(self.config.steps))

    def finished(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The pictures that the teacher sees in latents (B, ...) at the end of the run's part of the way."""
        end = self.phases.end
        if not end:
            return latents
        with torch.no_grad():
            levels = torch.full((len(latents),), end)
            return self.student.teacher_in_parts(latents, levels, condition)

    def told(self) -> dict:
        """What the recipe tells of the task."""
        return {}
