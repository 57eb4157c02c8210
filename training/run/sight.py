"""What a run's pictures are compared by, beyond the same noise: features that exist for any model.

An encoder that was given; else what the model's own middle block holds of a picture; else, where no block can
be found, the latent itself, averaged over places. What was taken is told (`seen_in`). Distances and diversity
are those of `reports.distances`, standardised by other pictures of what is learnt from.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..models.denoiser import Denoiser
from ..models.middle import MiddleBlock
from ..reports import distances
from ..reports.distances import UNKNOWN, Estimate

Encoder = Callable[[torch.Tensor], torch.Tensor]  # pictures (N, ...) in model space -> features (N, D)
ENCODER, BLOCK, LATENT = "encoder", "middle block", "latent"
VARIED, FALL = 0.8, 0.9  # diversity below which pictures are alike; share of the most so far: a fall
MOVED, SPREAD = 0.5, (0.5, 1.5)  # drift above which, spread beyond which, pictures have left the others
PLACES = 8  # along each side, to which a latent is averaged where nothing else sees it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faces:
    """The other faces of quality, beside fidelity, at one measurement.

    distance    of distributions, to the held-out pictures, as a share of the mean distance within them
    diversity   mean distance of two pictures of one prompt, as a share of theirs
    drift       largest move of a channel's mean over all pictures, in deviations of the held-out ones
    spread      deviation of all numbers, as a share of theirs
    """

    distance: Estimate = UNKNOWN
    diversity: Estimate = UNKNOWN
    drift: float = math.nan
    spread: float = math.nan


class Sight:
    """Sees pictures (N, ...) for prompts (N,) by an encoder, if one is given, else by that model.

    seen_in   ENCODER, BLOCK or LATENT: what is used, or will be tried
    """

    def __init__(self, denoiser: Denoiser, encoder: Encoder | None = None):
        self.encoder, self.block = encoder, MiddleBlock(denoiser)
        self.seen_in = ENCODER if encoder else BLOCK

    def sees_as(self, seen_in: str) -> bool:
        """Whether it sees, from here on, as what a run had before it was stopped."""
        same = (seen_in == ENCODER) == (self.seen_in == ENCODER)
        self.seen_in = seen_in if same else self.seen_in
        return same

    def features(self, pictures: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(N, D), on the CPU."""
        if self.seen_in == ENCODER:
            return self.encoder(pictures).float().cpu()
        if self.seen_in == BLOCK:
            try:
                return self.block(pictures, condition)
            except (LookupError, AttributeError, TypeError):  # built like no model known so far
                self.seen_in = LATENT
        latents = pictures.float().cpu()
        return (
            F.adaptive_avg_pool2d(latents.flatten(1, -3), PLACES) if latents.ndim > 3 else latents
        ).flatten(1)


def compare(
    features: torch.Tensor,
    reference: torch.Tensor,
    condition: torch.Tensor,
    scale: tuple[torch.Tensor, torch.Tensor],
    pictures: tuple[torch.Tensor, torch.Tensor],
) -> Faces:
    """The faces of features (N, D) beside a reference's, by that scale; pictures: whose features they are."""
    scaled = distances.scaled_by(*scale)
    ours, theirs = scaled(features), scaled(reference)
    drift, spread = moved(*pictures)
    return Faces(
        distance=distances.distance(ours, theirs),
        diversity=distances.diversity(ours, theirs, condition),
        drift=drift,
        spread=spread,
    )


def moved(drawn: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(drift, spread) of `Faces`: pictures (N, C, ...) that turn white or grey, or burn out, have moved."""
    a, b = (x.double().transpose(0, 1).flatten(1) for x in (drawn, reference))
    drift = (a.mean(1) - b.mean(1)).abs() / b.std(1).clamp_min(1e-12)
    return float(drift.max()), float(a.std() / b.std().clamp_min(1e-12))


def has_left(faces: dict[int, Faces]) -> bool:
    """Whether the last of a run's measurements {update: `Faces`} is of pictures that have left the
    teacher's, and were nearer at first.
    """
    first, last = faces[min(faces)], faces[max(faces)]
    low, high = SPREAD
    moved = last.drift > max(MOVED, 1.5 * first.drift)
    return moved or last.spread < min(low, first.spread / 1.5) or last.spread > max(high, 1.5 * first.spread)


def are_alike(faces: dict[int, Faces]) -> bool:
    """Whether the last of them is of pictures of one prompt that have become alike, beyond its interval."""
    most = max((f.diversity.value for f in faces.values() if f.diversity.known), default=0.0)
    varied = faces[max(faces)].diversity
    return varied.known and varied.high < VARIED and varied.value < FALL * most
