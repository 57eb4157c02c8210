"""Consistency distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2) on points that are drawn fresh.

Noise on a picture gives x_t, and the teacher solves a short step to x_s, the neighbour in a uniform grid of
`intervals`, at every draw; e is the end of their phase.
"""

import math

import torch

from .consistency_loss import consistency, noised
from .method import Batch, Context, Method, draw_samples
from .phases import shifted_level
from .registry import register
from .teacher_step import solver_step
from .times import levels_at


def draw_neighbours(context: Context) -> Batch:
    """Neighbours t > s in a uniform grid of `intervals`, and the end e of their phase; fresh noise."""
    settings, batch = context.settings, draw_samples(context)
    count = settings.intervals
    if settings.curriculum:
        count = levels_at(context.done, settings.updates, settings.intervals)
    length = math.ceil(count / settings.phases)
    grid = context.phases.sigmas_for(length * settings.phases).float()
    index = (batch["u"] * (len(grid) - 1)).long().clamp_max(len(grid) - 2)
    noise = torch.randn(len(index), *context.shape, generator=context.generator)
    return {
        **batch,
        "noise": context.noise_scale * noise,
        "t": grid[index],
        "s": grid[index + 1],
        "e": grid[(index // length + 1) * length],
    }


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`consistency` of the points that the teacher's step connects, (B,)."""
    x_t = noised(context.data.images[batch["pick"]], batch["noise"], context.path, batch["t"])
    with torch.no_grad():
        x_s = solver_step(
            context.teacher,
            x_t,
            context.path,
            batch["t"],
            batch["s"],
            batch["condition"],
            solver=context.settings.solver,
            substeps=context.settings.substeps,
        )
    return consistency(
        context.student,
        context.target,
        context.path,
        x_t,
        x_s,
        batch["t"],
        batch["s"],
        batch["e"],
        batch["condition"],
        metric=context.metric,
    )


METHOD = register(
    Method(
        name="consistency",
        title="consistency",
        needs="images",
        draw=draw_neighbours,
        loss=loss,
        level=shifted_level,
        in_parts=True,
        asks_teacher=lambda settings: True,
    )
)
