"""Reflow: learning straight velocities from the (noise, picture) pairs that a deterministic solver made
(Liu et al. 2022, arXiv:2209.03003, eq. 1; InstaFlow, arXiv:2309.06380).

With x_t = alpha x_0 + sigma eps between a pair's own ends, the network's prediction there is regressed:

    loss = d( prediction of kind k at x_t, its true value ),      k = velocity, t uniform in flow time

Any path's point is the straight line's by a scale, w = x/(alpha + sigma) at tau = sigma/(alpha + sigma), so
that predictions of other kinds (`rectified_diffusion`) differ in weight and in where they look, not in what
they learn: u^ - u = (x^_0 - x_0)/-tau, eps^ - eps = (x^_0 - x_0)(-alpha/sigma).
"""

import torch

from ...diffusion.paths import Path
from ...diffusion.predictions import expand, from_x0
from .consistency_loss import noised
from .distances import squared_error
from .method import Answer, Batch, Context, Method, Metric, draw_samples
from .phases import flow_level
from .registry import register


def pairs(
    student: Answer,
    path: Path,
    x0: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor,
    kind: str,
    *,
    metric: Metric = squared_error,
) -> torch.Tensor:
    """The loss of each sample (B,), in units of predictions of that kind; x0, noise (B, ...), sigma (B,)
    above 0, condition (B,).

    Kinds are those of the variance-preserving scale, alpha^2 + sigma^2 = 1, in which v networks are trained;
    only v depends on it.
    """
    x = noised(x0, noise, path, sigma)
    alpha, level = expand(path.alpha(sigma), x), expand(sigma, x)
    scale = alpha.hypot(level)
    predicted, true = (
        from_x0(v, kind, x / scale, alpha / scale, level / scale) for v in (student(x, sigma, condition), x0)
    )
    return metric(predicted, true)


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`pairs` of what was drawn, in the kind that the method compares, (B,)."""
    pick = batch["pick"]
    return pairs(
        context.student,
        context.path,
        context.data.images[pick],
        context.data.noise[pick],
        batch["sigma"],
        batch["condition"],
        context.kind,
        metric=context.metric,
    )


def draw(context: Context) -> Batch:
    """Pairs, and noise levels uniform in flow time."""
    batch = draw_samples(context)
    return {**batch, "sigma": flow_level(context.phases, batch["u"]).float()}


METHOD = register(
    Method(
        name="reflow",
        title="reflow",
        needs="pairs",
        draw=draw,
        loss=loss,
        level=flow_level,
        kind="velocity",
        in_rounds=True,
    )
)
