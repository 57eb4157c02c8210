"""Phased first, then matching: from a model to sharp few-step pictures in one run.

Regression along the teacher's trajectories (`phased`) brings the student near in few updates and cheaply,
and averages what it can't decide; `matching` takes it from there. The run goes over where the fidelity stops
falling, which is when STALE measurements in a row are no better by LEAST than the best before, and after
FIRST of the updates at the latest: the learning rate of the phased part falls to 0 until then.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch

from . import matching, phased
from .matching import LR_SHARE
from .method import Batch, Context, Role, Settings
from .phases import kept_level, step_level
from .registry import register
from .times import warm_up_then_cosine

FIRST = 0.5  # of the updates, at most, are phased
STALE, LEAST = 2, 0.01


def turns(settings: Settings, fidelity: Sequence[tuple[int, float]]) -> int | None:
    """The update at which the run goes over, from its measurements so far [(update, RMSE)]; None: not yet."""
    best, stale = math.inf, 0
    for update, value in fidelity:
        stale = 0 if value < best * (1 - LEAST) else stale + 1
        best = min(best, value)
        if update and (stale >= STALE or update >= last_turn(settings)):
            return update
    return None


def last_turn(settings: Settings) -> int:
    """The update after which the run goes over at the latest, and is therefore measured."""
    return math.ceil(FIRST * settings.updates)


def rate(settings: Settings, done: int, turned: int | None) -> float:
    """The student's learning rate: of phased up to FIRST of the updates, then of matching for the rest."""
    if turned is None:
        return settings.lr * warm_up_then_cosine(done, last_turn(settings) + 1)
    return settings.lr * LR_SHARE * warm_up_then_cosine(done - turned, settings.updates - turned)


def draw(context: Context) -> Batch:
    """What the method draws whose turn it is."""
    return (phased if context.turned is None else matching).draw(context)


def loss(context: Context, batch: Batch) -> torch.Tensor:
    """Its loss, (B,)."""
    return (phased if context.turned is None else matching).loss(context, batch)


def roles(settings: Settings) -> tuple[Role, ...]:
    """Those of matching, at its learning rate."""
    return tuple(_slowed(role) for role in matching.roles(settings))


def _slowed(role):
    return dataclasses.replace(role, rate=lambda *asked: LR_SHARE * role.rate(*asked))


METHOD = register(
    dataclasses.replace(
        matching.METHOD,
        name="phased-matching",
        title="phased, then matching",
        draw=draw,
        loss=loss,
        level=kept_level,
        in_phases=True,
        turned_level=step_level,
        lr_share=1.0,
        roles=roles,
        turns=turns,
        last_turn=last_turn,
        rate=rate,
    )
)
