"""The processes that make one run together, by their ranks 0, 1, ... of `world`. Here: one, which is alone.

All of them draw the same random numbers for the whole batch and hold the same adapter, optimiser and history,
bit for bit. Sample i of a batch is rank i % world's. What each finds of the gradient is added up once an
update, after which all go on alike; so a run needs to know of no more than the few functions here, and one
process and many give the same result but for the order in which gradients are summed.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


class Ranks:
    """One process.

    rank, world   its number, and how many there are
    local, neighbours   the same on this machine
    odd           those whose last gradient was not finite, where they are several
    meanwhile     what one does that waits for the others, where they need it for what they do
    """

    rank, world, local, neighbours = 0, 1, 0, 1
    odd: tuple[int, ...] = ()
    meanwhile: Callable[[], None] | None = None

    @property
    def host(self) -> str:
        """This machine's name."""
        return socket.gethostname()

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, batch: Mapping[str, torch.Tensor]) -> Tensors:
        """Its part of a batch of tensors (B, ...)."""
        return dict(batch)

    def summed(
        self, parameters: Sequence[torch.Tensor], losses: torch.Tensor, count: int, done: int
    ) -> torch.Tensor:
        """Add up all ranks' gradients in the parameters' .grad; returns the losses (count,) of all.

        losses: of its own part. done: updates so far. Raises RuntimeError where the parameters differ.
        """
        return losses

    def merged(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """The rows (count, ...) of which each rank has its share."""
        return part

    def first(self, value: Any) -> Any:
        """What rank 0 says, a value as JSON has it."""
        return value

    def all(self, value: Any) -> list:
        """What each says, in order, a value as JSON has it."""
        return [value]

    def tensors_of(self, owner: int, tensors: Tensors | None) -> Tensors | None:
        """The tensors that one of them has, on the CPU."""
        return tensors

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raise ValueError that names what first differs, where one of them was given something else."""

    def check(self) -> None:
        """Raise what ended another."""

    def all_come(self) -> Iterator[None]:
        """Wait until all have come here, yielding meanwhile."""
        yield from ()

    def tell(self, **row: Any) -> None:
        """Say how it stands, for `table`."""

    def table(self) -> list[dict[str, Any]]:
        """How each stands, by what it last told."""
        return []

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within: what ends one ends all of them, by one message."""
        yield


ALONE = Ranks()
