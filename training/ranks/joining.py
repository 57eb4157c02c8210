"""Joining the processes that torchrun has started, by what it leaves in the environment."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import torch

from ...diffusion.faults import BadValue, Failed, NotInstalled
from .ranks import ALONE, Ranks

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that were started together."""
    return environment.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in environment


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process tells the user what holds for all of them: the first on its machine."""
    return not several(environment) or environment.get("LOCAL_RANK", "0") == "0"


def _say(text):
    print(f"fewstep: {text}", file=sys.stderr)


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ, say: Callable[[str], None] = _say) -> Iterator[Ranks]:
    """The `Ranks` of this process, which was started alone or by torchrun; within, what ends one ends all.
    One of them says why.

    "cuda" is from here on the card of this process's number on its machine. Raises ValueError for what
    torchrun should have set, and ImportError where this PyTorch has no `distributed`.
    """
    if not several(environment):
        yield ALONE
        return
    if not torch.distributed.is_available():
        raise NotInstalled(
            "Several processes need a PyTorch with torch.distributed, and this one is built without. Run one "
            "process, or install PyTorch from pytorch.org."
        )
    ranks = _group(environment)
    try:
        with ranks.together():
            yield ranks
            for _ in ranks.all_come():
                pass
    except BaseException as error:
        ranks.close(error, say)
        raise
    ranks.close(None, say)


def check_card(ranks: Ranks, device: str) -> None:
    """Raise ValueError where this process has no card of its own to run on."""
    cards = torch.cuda.device_count() if device == "cuda" else ranks.world
    if ranks.local >= cards:
        raise BadValue(
            "each process must have a card of its own, and process {rank} is number {local} on its machine, "
            "which has {cards}. Start fewer processes.",
            rank=ranks.rank,
            local=ranks.local + 1,
            cards=cards,
        )


def _group(environment):
    import torch.distributed as dist

    from .group import Group

    rank, world, local, neighbours, port = (
        _number(name, environment) for name in NAMES if name != "MASTER_ADDR"
    )
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    host = environment["MASTER_ADDR"]
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world))
        beats = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
    except (RuntimeError, ValueError) as error:
        raise Failed(
            "Process {rank} of {world} must reach process 0 at {host}, port {port}, and can't ({error}). "
            "Where another program has the port, choose another MASTER_PORT; else check name and firewall.",
            rank=rank,
            world=world,
            host=host,
            port=port,
            error=" ".join(str(error).split())[:200],
        ) from error
    # on one machine those whom torchrun starts again may find the store of those before them
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0") if neighbours == world else "0"
    return Group(
        *(dist.PrefixStore(f"fewstep/{attempt}", s) for s in (store, beats)),
        rank,
        world,
        local=local,
        neighbours=neighbours,
    )


def _number(name, environment):
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise BadValue(
            "{name} must be set by torchrun for each of several processes, got {got!r}. Start them with "
            "torchrun, or give --processes.",
            name=name,
            got=environment.get(name),
        ) from None
