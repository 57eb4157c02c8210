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
        return self._asked(x, sigma, condition, "")[:, 0]

    @property
    def apart(self) -> Callable[..., tuple[torch.Tensor, ...]] | None:
        """As the teacher's (`models.denoiser.Teacher`), its rows shared out too; None where it has none."""
        if getattr(self.teacher, "apart", None) is None:
            return None
        return lambda *asked: self._asked(*asked).unbind(1)

    def _asked(self, x, sigma, condition, kinds):
        """(B, predictions, ...): one for each letter of kinds, or the guided one where there is none."""
        if self.ranks.world == 1 or len(x) < self.ranks.world:
            return self._of_teacher(x, sigma, condition, kinds)
        letters = torch.tensor(list(kinds.encode()), dtype=torch.uint8)
        asked = {"x": x, "sigma": sigma, "condition": condition, "kinds": letters}
        return self._shared(self.ranks.tensors_of(0, asked))

    def _shared(self, asked):
        kinds = bytes(asked.pop("kinds").tolist()).decode()
        mine = self.ranks.share(asked)
        return self.ranks.merged(self._of_teacher(**mine, kinds=kinds), len(asked["x"]))

    def _of_teacher(self, x, sigma, condition, kinds):
        if not kinds:
            return self.teacher(x, sigma, condition)[:, None]
        return torch.stack(list(self.teacher.apart(x, sigma, condition, kinds)), 1)

    @torch.no_grad()
    def __enter__(self) -> "Led":
        if not self.ranks.leads:
            while (asked := self.ranks.tensors_of(0, None)) is not None:
                self._shared(asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.ranks.leads and kind is None and self.ranks.world > 1:
            self.ranks.tensors_of(0, None)
