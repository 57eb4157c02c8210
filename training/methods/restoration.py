"""Restoration: the student learns the picture from what a forward process has left of it.

    loss = d( f(x_t, t), x0 ),   x_t = F_t(x0, eps)

which with d = squared error is -log q(x0 | x_t) of a Gaussian of fixed width, the model that a unified
diffusion process asks for (Su 2022, kexue.fm/archives/9262, eq. 5); its best answer is the mean of all
pictures that could have become x_t.
"""

from collections.abc import Callable

import torch

from ...diffusion.destruction.forward import ForwardProcess
from .distances import squared_error
from .method import Batch, Context, Method, Metric, draw_samples
from .phases import shifted_level


def restoration(
    student: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    process: ForwardProcess,
    x0: torch.Tensor,
    eps: torch.Tensor | None,
    t: torch.Tensor | float,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """Losses (B,) of student(x_t, t) -> x0 on pictures x0 (B, C, H, W) destroyed to the times t (B,) in
    [0, 1].
    """
    return metric(student(process.corrupt(x0, eps, t), t), x0)


def draw(context: Context) -> Batch:
    """Pictures, and how far they are destroyed."""
    batch = draw_samples(context)
    noise = torch.randn(len(batch["pick"]), *context.shape, generator=context.generator)
    return {**batch, "noise": context.noise_scale * noise, "t": (1 - batch["u"]).double()}


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`restoration` of what was drawn, (B,)."""

    def student(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return context.seen.ask(
            lambda asked, sigma: context.student(asked, sigma, batch["condition"]), x, t
        )

    return restoration(
        student,
        context.seen.process,
        context.data.images[batch["pick"]],
        batch["noise"],
        batch["t"],
        metric=context.metric,
    )


METHOD = Method(
    name="restoration",
    title="restoration",
    needs="images",
    draw=draw,
    loss=loss,
    level=shifted_level,
    task="restoration",
)
