"""What a `job.Job` is to processes that write nothing: rank 0 writes, the others get their state from it."""

from collections.abc import Iterator
from typing import Any

import torch

from ..ranks.ranks import Ranks
from .progress import Progress
from .run import Run

State = tuple[dict[str, torch.Tensor], dict[str, Any]]


def handed_on(ranks: Ranks, found: State | None) -> State | None:
    """The state that rank 0 has found, on all of them."""
    tensors, numbers = found or (None, None)
    tensors = ranks.tensors_of(0, tensors)
    return None if tensors is None else (tensors, ranks.first(numbers))


class Follower:
    """The same to its caller as a `Job`."""

    def __init__(self, run: Run):
        self.run, self.resumed = run, 0
        self.notes: dict[str, Any] = {}

    def __enter__(self) -> "Follower":
        found = handed_on(self.run.ranks, None)
        if found:
            self.run.restore(*found)
            self.resumed = self.run.done
        return self

    def __exit__(self, *ended: object) -> None:
        pass

    def progress(self) -> Iterator[Progress]:
        """The run's `Progress`."""
        yield from self.run.progress()
