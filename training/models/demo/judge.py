"""What figures tell of the demo's pictures: how near they are to the teacher's, how distributed, how varied.

Distances of distributions are energy distances (`reports.distances`) of what the flow teacher's middle block
holds of pictures, no label given (`models.middle`), standardised by the emoji: to the teacher's pictures, and
to the emoji themselves, which are known whole. docs/findings/distances.md tells why these and no others.
"""

from collections.abc import Callable

import torch

from ...reports.distances import Estimate, distance, diversity, known_pairs, rmse, scale_of, share
from ..middle import MiddleBlock
from . import data
from .teacher import DemoTeacher

Features = Callable[[torch.Tensor], torch.Tensor]
FIGURES = ("rmse", "distance_teacher", "distance_data", "diversity")


def eye() -> Features:
    """pixels (N, 3, 32, 32) in [-1, 1] -> features (N, D), what all demo pictures are compared by."""
    block = MiddleBlock(DemoTeacher("flow"))

    def features(pixels):
        pictures = data.from_pixels(pixels.cpu().float().clamp(-1, 1))
        return block(pictures, torch.full((len(pictures),), -1))

    return features


class Judge:
    """Judges pictures beside the teacher's from the same noises.

    reference   the teacher's (N, 3, 32, 32), in [-1, 1]; condition (N,): which of its labels each one has
    """

    def __init__(self, reference: torch.Tensor, condition: torch.Tensor):
        emoji, labels, _ = data.load("all")
        offered = torch.tensor(list(data.label_numbers().values()))
        kept = torch.isin(labels, offered)
        self.features = eye()
        known = self.features(data.to_pixels(emoji[kept]))
        self.scaled = scale_of(known)
        self.known, self.of = self.scaled(known), labels[kept]
        self.labels, self.condition = offered[condition], condition
        self.reference, self.seen = reference, self.see(reference)

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Comparable features (N, D)."""
        return self.scaled(self.features(pixels))

    def __call__(self, pixels: torch.Tensor) -> dict[str, Estimate]:
        """The FIGURES of pictures (N, 3, 32, 32) that were made from the reference's noises and labels.

        rmse is of pixels in 0..1; distances are shares of the mean distance within the reference (of the
        emoji); diversity is a share of the teacher's.
        """
        seen = self.see(pixels)
        return {
            "rmse": rmse(pixels.clamp(-1, 1) / 2, self.reference.clamp(-1, 1) / 2),
            "distance_teacher": distance(seen, self.seen),
            "distance_data": share(*known_pairs(seen, self.labels, self.known, self.of)),
            "diversity": diversity(seen, self.seen, self.condition),
        }

    def floor(self, other: torch.Tensor) -> Estimate:
        """How far other pictures of the teacher's, for the same labels from other noises, seem to be: 0 but
        for chance, whose size the interval tells.
        """
        return distance(self.see(other), self.seen)
