"""Phased consistency (PCM, Wang et al. 2024, arXiv:2405.18407, eq. 8) on the teacher's cached trajectories.

The trajectory is cut into phases, and the student is consistent within each: the points x_t and x_s of
`consistency` are neighbours among the kept points of one accurate trajectory, and e is the end of their
phase. One phase is latent consistency distillation (LCM). A share of each batch may learn the whole way from
pure noise to the picture (Luhman & Luhman 2021, arXiv:2101.02388).
"""

import torch

from .consistency_loss import consistency
from .method import Batch, Context, Method, draw_samples
from .phases import kept_level
from .registry import register


def draw(context: Context) -> Batch:
    """Levels of the kept grid; the first `one_step` of the batch look from pure noise to the picture."""
    batch, last, share = draw_samples(context), len(context.phases.levels) - 1, context.settings.one_step
    index = (batch["u"] * last).long().clamp_max(last - 1)
    after, end = index + 1, context.phases.ends[index]
    count = max(1, round(share * len(index))) if share else 0
    whole_way = torch.arange(len(index)) < count
    index[whole_way], after[whole_way], end[whole_way] = 0, last, last
    batch["weight"][whole_way], batch["u"][whole_way] = 1.0, -1.0
    return {**batch, "index": index, "after": after, "end": end}


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """`consistency` of two kept points of a trajectory, (B,)."""
    pick, index, after = batch["pick"], batch["index"], batch["after"]
    anchors, levels = context.data.anchors, context.phases.levels
    return consistency(
        context.student,
        context.target,
        context.path,
        anchors[pick, index],
        anchors[pick, after],
        levels[index],
        levels[after],
        levels[batch["end"]],
        batch["condition"],
        metric=context.metric,
    )


METHOD = register(
    Method(
        name="phased",
        title="phased",
        needs="trajectories",
        draw=draw,
        loss=loss,
        level=kept_level,
        on_the_grid=True,
        in_parts=True,
    )
)
