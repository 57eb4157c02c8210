"""A model that rank 0 asks and all answer: for searches that only one process makes, a fit's for instance.

with Led(teacher, ranks) as led:        # the others answer in here until rank 0 leaves
    if ranks.leads: ...                 # led(x, sigma, condition) -> x0
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from .ranks import Ranks

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Led:
    """`teacher` of the same face, whose rows (B, ...) are shared out; within, for the others: their work."""

    def __init__(self, teacher: Answer, ranks: Ranks):
        self.teacher, self.ranks = teacher, ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        if self.ranks.world == 1 or len(x) < self.ranks.world:
            return self.teacher(x, sigma, condition)
        asked = {"x": x, "sigma": sigma, "condition": condition}
        return self._answered(self.ranks.tensors_of(0, asked))

    def _answered(self, asked):
        return self.ranks.merged(self.teacher(**self.ranks.share(asked)), len(asked["x"]))

    @torch.no_grad()
    def __enter__(self) -> "Led":
        if not self.ranks.leads:
            while (asked := self.ranks.tensors_of(0, None)) is not None:
                self._answered(asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.ranks.leads and kind is None and self.ranks.world > 1:
            self.ranks.tensors_of(0, None)
