"""The methods: what each draws from the data for a batch, and the loss of what was drawn.

A batch is a dict of tensors (B, ...), so that it can be cut into micro-batches: `draw` uses the run's
generator, `loss` none. `u` in [0, 1) says where in time each sample looks, from noise to data (`draws`),
below 0 where none was drawn.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from .objectives.consistency import consistency, consistency_training, noised
from .objectives.pairs import pairs, windows
from .objectives.restoration import restoration
from .solver import solver_step
from .times import levels_at

NEAREST = 1e-3  # to the data that pairs are looked at, in time: the predictions of all kinds are finite there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """draw(run) -> batch and loss(run, batch) -> (B,).

    needs   of the data: "trajectories", "pairs" (noise and image) or "images"
    level   (phases, u) -> the noise level that u stands for, which the weighting goes by
    kind    of prediction that the loss compares; "own" for the model's
    """

    draw: Callable
    loss: Callable
    needs: str
    level: Callable
    kind: str = "x0"


def _draw(run):
    """What all begin with: which samples of the data, and where in time."""
    config = run.config
    pick = torch.randint(len(run.data.condition), (config.batch,), generator=run.generator)
    u, weight = run.times.draw(config.batch, run.generator)
    return {"pick": pick, "condition": run.data.condition[pick], "u": u, "weight": weight * run.weighting(u)}


def _draw_phased(run):
    """Levels of the kept grid; the first `one_step` of the batch look from pure noise to the image."""
    batch, last, share = _draw(run), len(run.phases.levels) - 1, run.config.one_step
    index = (batch["u"] * last).long().clamp_max(last - 1)
    after, end = index + 1, run.phases.ends[index]
    whole = torch.arange(len(index)) < (max(1, round(share * len(index))) if share else 0)
    index[whole], after[whole], end[whole], batch["weight"][whole], batch["u"][whole] = (
        0,
        last,
        last,
        1.0,
        -1.0,
    )
    return {**batch, "index": index, "after": after, "end": end}


def _phased(run, batch):
    pick, index, after, levels = batch["pick"], batch["index"], batch["after"], run.phases.levels
    return consistency(
        run.student(batch),
        run.target(batch),
        run.path,
        run.data.anchors[pick, index],
        run.data.anchors[pick, after],
        levels[index],
        levels[after],
        levels[batch["end"]],
        metric=run.metric,
    )


def _draw_neighbours(run):
    """Neighbours in a uniform grid of `intervals`, and the end of their phase; fresh noise."""
    config, batch = run.config, _draw(run)
    count = levels_at(run.done, config.updates, config.intervals) if config.curriculum else config.intervals
    length = math.ceil(count / config.phases)
    grid = run.sigmas_for(length * config.phases).float()
    index = (batch["u"] * (len(grid) - 1)).long().clamp_max(len(grid) - 2)
    noise = run.denoiser.noise_scale * torch.randn(len(index), *run.denoiser.shape, generator=run.generator)
    return {
        **batch,
        "noise": noise,
        "t": grid[index],
        "s": grid[index + 1],
        "e": grid[(index // length + 1) * length],
    }


def _consistency(run, batch):
    x_t = noised(run.data.images[batch["pick"]], batch["noise"], run.path, batch["t"])
    with torch.no_grad():
        x_s = solver_step(
            run.teacher(batch), x_t, run.path, batch["t"], batch["s"], run.config.solver, run.config.substeps
        )
    return consistency(
        run.student(batch),
        run.target(batch),
        run.path,
        x_t,
        x_s,
        batch["t"],
        batch["s"],
        batch["e"],
        metric=run.metric,
    )


def _training(run, batch):
    return consistency_training(
        run.student(batch),
        run.target(batch),
        run.path,
        run.data.images[batch["pick"]],
        batch["noise"],
        batch["t"],
        batch["s"],
        batch["e"],
        metric=run.metric,
    )


def shifted_level(phases, u):
    """Noise level at the time 1 - u of the run's shifted grid."""
    return phases.sigma_of(1 - u.double())


def kept_level(phases, u):
    """Noise level at u of the way through the kept levels, linear in flow time between them."""
    times = phases.path.flow_time(phases.levels.double())
    place = u.double() * (len(times) - 1)
    low = place.long().clamp_max(len(times) - 2)
    return phases.path.at_flow_time(torch.lerp(times[low], times[low + 1], place - low))


def flow_level(phases, u):
    """Noise level at which flow time is (1 - u) of the largest."""
    top = phases.path.flow_time(phases.own(torch.ones(1, dtype=torch.float64)))
    return phases.path.at_flow_time(((1 - u.double()) * top).clamp_min(NEAREST))


def own_level(phases, u):
    """Noise level at which the model's own time is 1 - u."""
    return phases.own((1 - u.double()).clamp_min(NEAREST))


def _draw_pairs(run):
    batch = _draw(run)
    return {**batch, "sigma": run.method.level(run.phases, batch["u"]).float()}


def _pairs(run, batch):
    pick = batch["pick"]
    return pairs(
        run.student(batch),
        run.path,
        run.data.images[pick],
        run.data.noise[pick],
        batch["sigma"],
        run.kind,
        metric=run.metric,
    )


def _windows(run, batch):
    place = batch["u"].clamp_max(1 - NEAREST) * run.config.phases
    window = place.long().clamp_max(run.config.phases - 1)
    a, b = run.phases.edges[window], run.phases.edges[window + 1]
    return windows(
        run.student(batch),
        run.path,
        run.data.anchors[batch["pick"], a],
        run.data.anchors[batch["pick"], b],
        run.phases.levels[a],
        run.phases.levels[b],
        place - window,
        metric=run.metric,
    )


def _draw_restoration(run):
    """Pictures and how far they are destroyed."""
    batch = _draw(run)
    noise = run.noise_scale * torch.randn(len(batch["pick"]), *run.denoiser.shape, generator=run.generator)
    return {**batch, "noise": noise, "t": (1 - batch["u"]).double()}


def _restoration(run, batch):
    return restoration(
        run.asked_at(batch),
        run.process,
        run.data.images[batch["pick"]],
        batch["noise"],
        batch["t"],
        metric=run.metric,
    )


METHODS = {
    "phased": Method(draw=_draw_phased, loss=_phased, needs="trajectories", level=kept_level),
    "consistency": Method(draw=_draw_neighbours, loss=_consistency, needs="images", level=shifted_level),
    "consistency-training": Method(
        draw=_draw_neighbours, loss=_training, needs="images", level=shifted_level
    ),
    "reflow": Method(draw=_draw_pairs, loss=_pairs, needs="pairs", level=flow_level, kind="velocity"),
    "rectified-diffusion": Method(draw=_draw_pairs, loss=_pairs, needs="pairs", level=own_level, kind="own"),
    "windowed-reflow": Method(
        draw=_draw, loss=_windows, needs="trajectories", level=kept_level, kind="velocity"
    ),
    "restoration": Method(draw=_draw_restoration, loss=_restoration, needs="images", level=shifted_level),
}
