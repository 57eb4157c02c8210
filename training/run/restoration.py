"""The task of a restorer: to undo a forward process (de-blur, de-pixelate, in-paint, de-noise).

    config = DistilConfig(method="restoration", process=[{"kind": "pixelate", "largest": 8}], steps=2)
    run = Run(denoiser, config, data=Data(...))

A run of it differs from a distillation in the pictures that are learnt from (given, or the teacher's own), in
what the network is asked (`methods.restoration`), and in what fidelity is: the distance of restored to whole
pictures.
"""

import torch

from ...diffusion.schedules.grids import descending
from ..formats.processes import process_of
from ..methods.method import Method
from ..methods.phases import Phases
from ..methods.restoration import Seen, restore, times_for
from ..models.denoiser import Denoiser, for_sampler
from ..trajectories.sampling import CHUNK, scaled_noise
from .config import DistilConfig
from .probe import HeldOut
from .student import Adapter, Student


class Restoration:
    """How a restorer is sampled and compared; the same functions as `distillation.Distillation` has."""

    churn = 0.0

    def __init__(self, student: Student, config: DistilConfig, method: Method, phases: Phases):
        self.student, self.config = student, config
        self.seen = seen_by(student.denoiser, config)
        ends_in_noise = config.process[-1]["kind"] == "gaussian"
        self.noise_scale = student.denoiser.noise_scale if ends_in_noise else 1.0

    def sigmas_for(self, steps: int) -> torch.Tensor:
        """The noise levels at which the network is asked in that many steps, and 0."""
        levels = self.seen(times_for(steps)[:-1])[0]
        return descending(torch.cat([levels, levels.new_zeros(1)]))

    def destroyed(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What sampling begins with: F_1 of pictures (B, ...), with that unit noise."""
        process = self.seen.process
        return process.corrupt(images, self.noise_scale * noise if process.noisy else None, 1.0)

    @torch.no_grad()
    def restored(
        self,
        adapter: Adapter | None,
        x: torch.Tensor,
        condition: torch.Tensor,
        steps: int,
        kappa: float = 0.0,
        seed: int = 0,
    ) -> torch.Tensor:
        """Pictures (B, ...) restored in `steps` steps from x at time 1; adapter: its weights or None."""
        lora, parts = self.student.lora, []
        with lora.off() if adapter is None else lora.using(adapter):
            for i in range(0, len(x), CHUNK):
                call = for_sampler(self.student.asked, condition[i : i + CHUNK])
                fresh = scaled_noise(seed + i, self.noise_scale)
                run = restore(call, self.seen, x[i : i + CHUNK], times_for(steps), kappa, fresh)
                parts.append([state.x for state in run][-1])
        return torch.cat(parts)

    def draw(self, held: HeldOut, adapter: Adapter) -> torch.Tensor:
        """What those adapter weights make of the held-out pictures once they are destroyed."""
        x = self.destroyed(held.reference, held.noise)
        return self.restored(adapter, x, held.condition, self.config.steps)

    def before(self, held: HeldOut) -> torch.Tensor:
        """The destroyed pictures."""
        return self.destroyed(held.reference, held.noise)

    def finished(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What is restored is a picture already."""
        return latents

    def told(self) -> dict:
        """What the recipe tells of the task."""
        return {"process": [dict(part) for part in self.config.process]}


def seen_by(denoiser: Denoiser, config: DistilConfig) -> Seen:
    """The config's forward process as that model sees it."""
    return Seen(process_of(config.process), denoiser.path, denoiser.sigma_of)
