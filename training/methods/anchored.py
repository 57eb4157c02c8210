"""Anchored matching (DP-DMD, arXiv:2602.03139): the first step is pulled to where the teacher's own
trajectory is at its end, later steps are matched (`matching`).

Composition and diversity are decided at the first step, where regression does well and the two scores know
least. With z the cached trajectory, x its start and x_s = a x + b x0 the first step, the student's x0 there
learns (z_s - a x)/b, weighted by `anchor`. In one step nothing would be left to match. The two scores learn
the steps at which they are asked, all but the first.
"""

import dataclasses
import functools

import torch

from ...diffusion.predictions import expand
from ...diffusion.step import weights
from . import matching
from .matching import matched, places
from .method import Batch, Context
from .registry import register


def draw(context: Context) -> Batch:
    """As of matching, with the cached trajectory's end of the step where a sample looks at the first."""
    batch = places(context)
    first = batch["from"] == 0
    pulled = _pulled(context, {name: part[first] for name, part in batch.items()})
    if first.all():
        return pulled
    rest = matched(context, {name: part[~first] for name, part in batch.items()})
    out = {}
    for name, part in rest.items():
        out[name] = part.new_full((len(first), *part.shape[1:]), 0)
        out[name][~first], out[name][first] = part, pulled[name].to(part)
    return out


def _pulled(context: Context, batch: Batch) -> Batch:
    phases, path = context.phases, context.path
    start, end = (phases.sampled[batch[name]] for name in ("from", "to"))
    anchors, pick = context.data.anchors, batch["pick"]
    x, sigma = anchors[pick, start], phases.levels[start]
    a, b, _ = weights(path, sigma, phases.levels[end])
    target = (anchors[pick, end] - expand(a, x) * x) / expand(b, x)
    untold = {name: torch.full((len(pick),), torch.nan) for name in matching.TOLD}
    weight = context.settings.anchor * batch["weight"]
    return {**batch, "x": x, "sigma": sigma, "target": target, "weight": weight, **untold}


METHOD = register(
    dataclasses.replace(
        matching.METHOD,
        name="anchored",
        title="anchored matching",
        draw=draw,
        roles=functools.partial(matching.roles, matched_from=1),
        least_steps=2,
    )
)
