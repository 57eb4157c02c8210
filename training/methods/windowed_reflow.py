"""Windowed reflow: the pieces of cached trajectories made straight.

This is PeRFlow (Yan et al. 2024, arXiv:2405.07510, algorithm 1). Between a trajectory's points at the ends a
and b of a window, w = x/(alpha + sigma) is interpolated linearly in tau = sigma/(alpha + sigma), and the
velocity to learn is the chord's.
"""

import torch

from ...diffusion.paths import Path
from ...diffusion.predictions import expand
from .distances import squared_error
from .method import Answer, Batch, Context, Method, Metric, draw_samples
from .phases import NEAREST, edge_level
from .registry import register


def windows(
    student: Answer,
    path: Path,
    x_a: torch.Tensor,
    x_b: torch.Tensor,
    sigma_a: torch.Tensor,
    sigma_b: torch.Tensor,
    share: torch.Tensor,
    condition: torch.Tensor,
    *,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """The loss of each sample (B,), in units of velocities.

    x_a, x_b (B, ...): the trajectory at the window's ends sigma_a > sigma_b (B,); share (B,) in [0, 1): the
    way from a to b; condition (B,).
    """
    tau_a, tau_b = path.flow_time(sigma_a.double()), path.flow_time(sigma_b.double())
    w_a, w_b = (x / expand(path.alpha(s) + s, x) for x, s in ((x_a, sigma_a), (x_b, sigma_b)))
    velocity = (w_a - w_b) / expand(tau_a - tau_b, w_a)
    tau = tau_a.lerp(tau_b, share.double())
    w, sigma = w_a + expand(share, w_a) * (w_b - w_a), path.at_flow_time(tau).to(sigma_a)
    x = w * expand(path.alpha(sigma) + sigma, w)
    return metric((w - student(x, sigma, condition)) / expand(tau, w), velocity)


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`windows` at the place of each sample's u among the phases, (B,)."""
    phases = context.phases
    count = len(phases.edges) - 1
    place = batch["u"].clamp_max(1 - NEAREST) * count
    window = place.long().clamp_max(count - 1)
    a, b = phases.edges[window], phases.edges[window + 1]
    return windows(
        context.student,
        context.path,
        context.data.anchors[batch["pick"], a],
        context.data.anchors[batch["pick"], b],
        phases.levels[a],
        phases.levels[b],
        place - window,
        batch["condition"],
        metric=context.metric,
    )


METHOD = register(
    Method(
        name="windowed-reflow",
        title="windowed reflow",
        needs="trajectories",
        draw=draw_samples,
        loss=loss,
        level=edge_level,
        kind="velocity",
        in_parts=True,
    )
)
