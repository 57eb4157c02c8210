"""What joins several processes: PyTorch's collectives for tensors, the store of their rendezvous for small
values, as JSON. All of them call the same functions in the same order. Nothing is pickled.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from ...diffusion.faults import Failed

SHORTEST = 5e-5  # seconds between the first two looks at what is waited for, as most of it comes at once
PAUSE, COMING = 5e-4, 0.01  # and between the later ones: at a collective, and at who has come
Tensors = dict[str, torch.Tensor]


class Lost(RuntimeError):
    """A collective that did not come about."""


class Links:
    """store: that of the rendezvous; check: raises what has ended another, asked for during every wait."""

    def __init__(self, store: Any, rank: int, world: int, check: Callable[[], None]):
        self.store, self.rank, self.world, self.check, self._turn = store, rank, world, check, 0
        # where there is no NCCL (Windows) what is on a card goes by the CPU
        self.direct = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.direct else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world,
        )

    def sum(self, flat: torch.Tensor) -> torch.Tensor:
        """The sum over all, in place where it can be."""
        self.check()
        if not flat.is_cuda:
            self._finish(dist.all_reduce(flat, async_op=True))
            return flat
        if not self.direct:
            return self.sum(flat.cpu()).to(flat.device)
        # a process that has gone breaks this one at once, where NCCL would wait for it on the card
        self._finish(dist.all_reduce(torch.zeros(1), async_op=True))
        self._finish(dist.all_reduce(flat, async_op=True))
        return flat

    def tensors_of(self, owner: int, tensors: Tensors | None) -> Tensors | None:
        """The tensors that one of them has, on the CPU."""
        key, mine = self._key(), self.rank == owner
        if mine:
            tensors = tensors and {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
            form = tensors and [[n, list(t.shape), str(t.dtype)[6:]] for n, t in tensors.items()]
            self.store.set(key, json.dumps(form))
        form = json.loads(self._get(key))
        if form is None:
            return None
        found = {}
        for name, shape, dtype in form:
            found[name] = tensors[name] if mine else torch.empty(shape, dtype=getattr(torch, dtype))
            if found[name].numel():
                flat = found[name].view(-1).view(torch.uint8)
                self._finish(dist.broadcast(flat, src=owner, async_op=True))
        return found

    def first(self, value: Any) -> Any:
        """What rank 0 says."""
        key = self._key()
        if self.rank == 0:
            self.store.set(key, json.dumps(value))
        return json.loads(self._get(key))

    def all(self, value: Any) -> list:
        """What each says."""
        key = self._key()
        self.store.set(f"{key}/{self.rank}", json.dumps(value))
        return [json.loads(self._get(f"{key}/{rank}")) for rank in range(self.world)]

    def all_come(self) -> Iterator[None]:
        """Wait until all have come here, however long that takes, yielding meanwhile."""
        key = self._key()
        self.store.add(key, 1)
        pauses = _pauses(COMING)
        while self.store.add(key, 0) < self.world:
            self.check()
            yield
            time.sleep(next(pauses))

    def _key(self):
        self._turn += 1
        return f"turn/{self._turn}"

    def _get(self, key):
        pauses = _pauses(COMING)
        while not self.store.check([key]):
            self.check()
            time.sleep(next(pauses))
        return self.store.get(key)

    def _finish(self, work):
        """Wait for a collective, or for what ended another process."""
        pauses = _pauses(PAUSE)
        try:
            while not work.is_completed():
                self.check()
                time.sleep(next(pauses))
            work.wait()
        except RuntimeError as error:
            if isinstance(error, Failed):
                raise
            raise Lost(str(error)) from error


def _pauses(longest):
    """Seconds from one look to the next, each twice the one before."""
    pause = SHORTEST
    while True:
        yield pause
        pause = min(2 * pause, longest)
