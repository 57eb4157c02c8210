"""Consistency training (Song et al. 2023, arXiv:2303.01469, algorithm 3): no teacher is asked.

x_s has the same picture and noise as x_t. Written for a rectified flow, x_t = (1-t) x_0 + t eps and
x_s = x_t - (t-s)(eps - x_0), an Euler step with the sample's own velocity, it is the loss of consistency
distillation. For pictures of another origin than the teacher.
"""

import torch

from ...diffusion.paths import Path
from .consistency import draw_neighbours
from .consistency_loss import consistency, noised
from .distances import squared_error
from .method import Answer, Batch, Context, Method, Metric
from .phases import shifted_level
from .registry import register


def consistency_training(
    student: Answer,
    target: Answer,
    path: Path,
    x0: torch.Tensor,
    noise: torch.Tensor,
    sigma_t: torch.Tensor,
    sigma_s: torch.Tensor,
    sigma_e: torch.Tensor,
    condition: torch.Tensor,
    *,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """`consistency` (B,) of a picture and noise (B, ...) that belong together for this one draw."""
    x_t, x_s = noised(x0, noise, path, sigma_t), noised(x0, noise, path, sigma_s)
    return consistency(student, target, path, x_t, x_s, sigma_t, sigma_s, sigma_e, condition, metric=metric)


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`consistency_training` of what was drawn, (B,)."""
    return consistency_training(
        context.student,
        context.target,
        context.path,
        context.data.images[batch["pick"]],
        batch["noise"],
        batch["t"],
        batch["s"],
        batch["e"],
        batch["condition"],
        metric=context.metric,
    )


METHOD = register(
    Method(
        name="consistency-training",
        title="consistency training",
        needs="images",
        draw=draw_neighbours,
        loss=loss,
        level=shifted_level,
        in_parts=True,
    )
)
