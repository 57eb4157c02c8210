"""Rectified diffusion (Wang et al. 2024, arXiv:2410.07303, algorithm 1): reflow's pairs, in the model's own
prediction kind and in its own time.
"""

from .method import Batch, Context, Method, draw_samples
from .phases import own_level
from .reflow import loss
from .registry import register


def draw(context: Context) -> Batch:
    """Pairs, and noise levels uniform in the model's own time."""
    batch = draw_samples(context)
    return {**batch, "sigma": own_level(context.phases, batch["u"]).float()}


METHOD = register(
    Method(
        name="rectified-diffusion",
        title="rectified diffusion",
        needs="pairs",
        draw=draw,
        loss=loss,
        level=own_level,
        kind="own",
        in_rounds=True,
    )
)
