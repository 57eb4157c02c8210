"""Where a model writes over what autograd has saved: seen in one call, and from then on copied there alone.

A first call runs in an `exact_graph`, which looks at every operation and is slow. What it finds are places: a
module, and which of the tensors that are saved while it runs are written over later, by whatever operation.
In later calls those are copied as they are saved, and nothing else is looked at; a model that writes over
nothing costs nothing. A call that takes another way is noticed by PyTorch's version counters.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator

import torch
from torch import nn

from ...diffusion.faults import Failed
from .checkpointing import replaced
from .exact_graph import Mark, Saved, exact_graph, storage_of
from .kinds import copied, detached

NOTICED = "modified by an inplace operation"  # what PyTorch says of a saved tensor of another version
END = object()


class Overwrites:
    """The places of a module, and of the code that calls it.

    found   {module, None for that code: the numbers of saved tensors, counted from 0 in every call}
    """

    def __init__(self, module: nn.Module):
        self.modules = list(module.modules())
        self.found: dict[nn.Module | None, set[int]] = {}

    @contextlib.contextmanager
    def copied(self) -> Iterator[None]:
        """Within: the modules that were found copy what they save at their places."""
        with contextlib.ExitStack() as stack:
            for module, numbers in self.found.items():
                if module is not None:
                    stack.enter_context(replaced([module], lambda forward, n=numbers: _copying(forward, n)))
            yield

    def copied_around(self) -> contextlib.AbstractContextManager:
        """Within: so does the code that calls them."""
        return _copies(self.found[None]) if None in self.found else contextlib.nullcontext()

    def learn(self, log: "Log") -> bool:
        """Add the places that a log shows; returns whether any is new."""
        frames = {frame for frame, _, mark in log.saves() if mark.written} | self.found.keys()
        before = sum(map(len, self.found.values())), len(self.found)
        for frame, number, mark in log.saves(frames):
            if mark.written:
                self.found.setdefault(frame, set()).add(number)
        return (sum(map(len, self.found.values())), len(self.found)) != before


class Log:
    """What is saved in one call, and by which module, told by a watched call and its `graph`."""

    def __init__(self):
        self.events: list = []  # a module where it begins, END, and a Mark for each saved tensor

    def graph(self) -> contextlib.AbstractContextManager:
        """An `exact_graph` that tells of what it saves."""
        return exact_graph(self._mark)

    def _mark(self):
        self.events.append(mark := Mark())
        return mark

    @contextlib.contextmanager
    def watching(self, modules: Collection[nn.Module]) -> Iterator[None]:
        """Within: these tell where they begin and end."""
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(replaced([module], lambda forward, m=module: self._told(forward, m)))
            yield

    def _told(self, forward, module):
        def run(*args, **kwargs):
            self.events.append(module)
            try:
                return forward(*args, **kwargs)
            finally:
                self.events.append(END)

        return run

    def saves(self, frames: Collection | None = None) -> Iterator[tuple[nn.Module | None, int, Mark]]:
        """(innermost module of `frames`, of all if that is None; number there; mark) of each saved tensor."""
        inside, begun = [(None, itertools.count())], []
        for event in self.events:
            if isinstance(event, Mark):
                frame, numbers = inside[-1]
                yield frame, next(numbers), event
            elif event is not END:
                begun.append(frames is None or event in frames)
                if begun[-1]:
                    inside.append((event, itertools.count()))
            elif begun.pop():
                inside.pop()


def _copying(forward: Callable, numbers: set[int]) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with _copies(numbers):
            return forward(*args, **kwargs)

    return run


def _copies(numbers):
    """Within: saved tensors of those numbers are copies, one for all that save the same."""
    number, copies = itertools.count(), {}

    def pack(tensor):
        if next(number) not in numbers:
            return _Checked(tensor)
        place = storage_of(tensor), tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride()
        if place not in copies:  # with the tensor, so that no other takes its address
            copies[place] = detached(tensor), copied(detached(tensor))
        return _Checked(copies[place][1])

    return torch.autograd.graph.saved_tensors_hooks(pack, _Checked.get)


class _Checked(Saved):
    """A tensor that is never written over where the call takes the way that was seen."""

    def get(self):
        if self.tensor._version != self.version:
            raise Failed("A saved tensor was modified by an inplace operation.")
        return self.tensor
