"""Which fresh noise a picture gets: its own, told by its starting noise, in whatever batch or part of a run.

A row's key is a hash of the signs of its starting noise, which no cast and no scale changes: picture n of a
batch, picked by `batch_index` or drawn with a seed of its own, has the key that it has alone.

A row without starting noise (a sampling node that adds none) goes on with a run that was split. Its key is
that of the row which a sampler of this pack left at this level with these values, in this session, whatever
the seed and the place in the batch; otherwise that of the noise which the host draws from the seed for this
place.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.sample
import numpy as np
import torch

LEFT = 256  # rows of split runs that are remembered
SAMPLED = 1024  # values of a row that tell it
SLACK = 0.01  # relative: what casts between two sampling nodes may change; another row differs by much more


class Keys(NamedTuple):
    """The keys of a batch's rows, and the level at which their run began, None where that isn't known."""

    rows: Sequence[bytes]
    began: float | None


class _Row(NamedTuple):
    """A row as a run, which began at a higher level, left it above 0."""

    level: float
    values: torch.Tensor
    key: bytes
    began: float | None


_left: deque[_Row] = deque(maxlen=LEFT)


def keys_of(model: Any, x: torch.Tensor, level: float, seed: int) -> Keys:
    """The keys of x (B, ...) at the level where a sampler function begins.

    model: what the host hands to the function, which holds the starting noise as `noise`. A guider with
    `by_seed` set, a probe's, has noise that depends on the seed alone.
    """
    if getattr(model.inner_model, "by_seed", False):
        return Keys(numbered(seed, None, len(x)), level)
    noise = getattr(model, "noise", None)
    if noise is not None and bool(noise.any()):
        return Keys(_by_signs(noise), level)
    before = [_left_as(row, level) for row in _sampled(x)]
    usual = _by_signs(_host_noise(x, seed))
    rows = [row.key if row else key for row, key in zip(before, usual)]
    return Keys(rows, before[0].began if before[0] else None)


def leave(x: torch.Tensor, level: float, keys: Keys) -> None:
    """Remember the rows of a run that stopped at a level above 0, so that another can go on with them."""
    if level > 0:
        rows = zip(_sampled(x), keys.rows)
        _left.extend(_Row(level, values.clone(), key, keys.began) for values, key in rows)


def numbered(seed: int, places: Sequence[int] | None, count: int) -> list[bytes]:
    """Keys by the seed and each row's place in its batch, for noise that no starting noise tells."""
    places = range(count) if places is None else places
    return [f"{int(seed)} {int(place)}".encode() for place in places]


def _by_signs(noise: torch.Tensor) -> list[bytes]:
    signs = (noise > 0).flatten(1).cpu().numpy()
    return [hashlib.blake2b(np.packbits(row).tobytes(), digest_size=16).digest() for row in signs]


def _host_noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    """What the host's noise nodes draw from that seed for a batch of this shape."""
    like = torch.empty(x.shape, dtype=torch.float32)
    return comfy.sample.prepare_noise_inner(like, torch.Generator().manual_seed(seed))


def _sampled(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // SAMPLED)].float().cpu()


def _left_as(values: torch.Tensor, level: float) -> _Row | None:
    """The nearest row that was left at this level, None where none is near enough."""
    known = [row for row in _left if row.level == level and row.values.shape == values.shape]
    away = [float((row.values - values).norm() / values.norm().clamp_min(1e-12)) for row in known]
    return known[away.index(min(away))] if away and min(away) < SLACK else None
