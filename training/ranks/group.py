"""Several processes of one run.

Gradients are added up by hand, once an update, in one flat tensor: a run makes several passes of one model an
update, with its adapter on and off, and a LoRA's gradient is small. Behind the gradient in that tensor, at no
further cost: every sample's loss, whether each rank's gradient was finite, and now and then 24 bits of a hash
of each rank's adapter, which has to be the same.

    bytes an update that each rank puts in = 4 (parameters + batch + 2 world)

A wait is never blind: it ends when another process has ended (`watch`).
"""

import contextlib
import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ...diffusion.faults import BadValue, Failed, Message, message_of
from .links import Links, Lost
from .ranks import Ranks, Tensors
from .watch import FINISHED, STOPPED, Ended, Watch

COMPARED = 25  # updates from one comparison of the adapters to the next
VERDICT = 20.0  # seconds that the watch gets, at most, to find out who has died


class Group(Ranks):
    """One of several processes.

    store, beats   two clients of one store: of its links, and of its watch
    sent           bytes that it has put into sums of gradients
    """

    def __init__(self, store: Any, beats: Any, rank: int, world: int, *, local: int = 0, neighbours: int = 1):
        self.rank, self.world, self.local, self.neighbours, self.sent = rank, world, local, neighbours, 0
        self.watch = Watch(beats, rank, world)
        try:
            self.links = Links(store, rank, world, self.check)
        except BaseException:
            self.watch.leave(STOPPED)
            raise

    def share(self, batch: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: values[self.rank :: self.world] for name, values in batch.items()}

    @torch.no_grad()
    def summed(
        self, parameters: Sequence[torch.Tensor], losses: torch.Tensor, count: int, done: int
    ) -> torch.Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        behind = torch.zeros(count + 2 * self.world)
        behind[self.rank : count : self.world] = losses
        behind[count + self.world + self.rank] = _hash(parameters, done)
        flat = torch.cat([*(g.reshape(-1) for g in grads), behind.to(grads[0])])
        flat[self.rank - 2 * self.world] = 0.0 if flat.isfinite().all() else 1.0
        self.sent += flat.numel() * flat.element_size()
        sizes = [*(p.numel() for p in parameters), count, self.world, self.world]
        *parts, whole, odd, hashes = self.links.sum(flat).split(sizes)
        for p, part in zip(parameters, parts):
            p.grad = part.view(p.shape)
        self.odd = tuple(odd.cpu().nonzero()[:, 0].tolist())
        _compare(hashes.tolist(), done)
        return whole.float().cpu()

    def merged(self, part: torch.Tensor, count: int) -> torch.Tensor:
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.rank :: self.world] = part
        return self.links.sum(whole)

    def first(self, value: Any) -> Any:
        return self.links.first(value)

    def all(self, value: Any) -> list:
        return self.links.all(value)

    def tensors_of(self, owner: int, tensors: Tensors | None) -> Tensors | None:
        return self.links.tensors_of(owner, tensors)

    def check_same(self, what: Mapping[str, Any]) -> None:
        everywhere = self.links.all([self.host, dict(what)])
        first = everywhere[0][1]
        for rank, (host, theirs) in enumerate(everywhere):
            odd = next((name for name in first if theirs.get(name) != first[name]), None)
            if odd is not None:
                raise BadValue(
                    "all processes must be given the same {what}, and process {rank} on {host} has {theirs} "
                    "where process 0 has {first}. Give both the same.",
                    what=odd,
                    rank=rank,
                    host=host,
                    theirs=_shown(theirs.get(odd)),
                    first=_shown(first[odd]),
                )

    def check(self) -> None:
        if self.watch.note is not None:
            raise self.watch.ended(self.local)

    def all_come(self) -> Iterator[None]:
        if self.meanwhile is not None:
            self.meanwhile()
        yield from self.links.all_come()

    def tell(self, **row: Any) -> None:
        self.watch.told.update(row)

    def table(self) -> list[dict[str, Any]]:
        rows = {**self.watch.rows, self.rank: self.watch.told}
        return [{"rank": rank, **rows[rank]} for rank in sorted(rows)]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            _deaf()
            why = _why(error, self.watch, self.local)
            if why is error:
                raise
            raise why from error

    def close(self, error: BaseException | None, say: Callable[[str], None]) -> None:
        """Leave the others; error: what ended this one, None where all is done; say: tell the user."""
        if isinstance(error, Ended) and error.tells:
            say(str(error))
        self.watch.leave(FINISHED if error is None else STOPPED)
        if error is None:
            dist.destroy_process_group()


def _hash(parameters, done):
    """24 bits, which float32 holds exactly; 0 where nothing is compared."""
    if done % COMPARED:
        return 0
    digest = hashlib.blake2b(digest_size=3)
    for p in parameters:
        digest.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return int.from_bytes(digest.digest(), "big")


def _compare(hashes, done):
    other = next((rank for rank, found in enumerate(hashes) if found != hashes[0]), None)
    if other is not None:
        raise Failed(
            "The adapter must be the same in all processes, and that of process {rank} is another than that "
            "of process 0 after {done} updates. What was learnt up to the last state is kept; check that "
            "machine's memory and versions.",
            rank=other,
            done=done,
        )


def _deaf():
    """Ignore further signals to end: torchrun sends them to who is ending already, and saves its state."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _why(error, watch, local):
    """What ended this process, of an exception that leaves it."""
    if watch.note is None and (not isinstance(error, Exception) or _is_lost(error)):
        # rank 0 finds out for all; who was told to end need not wait for that
        watch.doubt(VERDICT, watch.rank == 0 or not isinstance(error, Exception))
    if watch.note is None and isinstance(error, Exception):
        watch.fail(_said(error))
    if watch.note is None:
        return error
    ended = watch.ended(local)
    ordered = not isinstance(error, Exception) and not isinstance(ended, Exception)
    return error if ordered else ended


def _is_lost(error):
    """Whether it is a collective that did not come about, of our own or of a model in pieces."""
    return isinstance(error, (Lost, dist.DistError)) or (
        isinstance(error, RuntimeError) and not isinstance(error, Failed) and "gloo" in str(error)
    )


def _said(error):
    if _is_lost(error):
        return Message(
            "the connection to the other processes broke ({error}). What was learnt up to the last state is "
            "kept; start the same again to go on.",
            error=error,
        )
    return message_of(error)


def _shown(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
