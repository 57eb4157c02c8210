"""The running average of an adapter, in the computer's memory, where the copies live that nothing computes
on: a card has its room for weights, gradients and the optimiser.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

GROUP = 16 << 20  # float32 numbers that are brought at once, as a copy on the device: 64 MiB


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies in the computer's memory, in locked pages where there is CUDA and the system grants them."""
    copies = []
    for tensor in tensors:
        try:
            pinned = torch.cuda.is_available()
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        except RuntimeError:  # no more pages may be locked
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        copies.append(copy.copy_(tensor.detach()))
    return copies


class Average:
    """a_k += w (p_k - a_k) of weights p that may lie elsewhere. They come in few transfers; from CUDA while
    the card goes on, and the average moves in a thread of its own.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self.parameters, self._values = parameters, on_host(parameters)
        self._groups = [] if all(p.device.type == "cpu" for p in parameters) else _groups(parameters)
        self._arrived = on_host([torch.empty(sum(p.numel() for p in group)) for group in self._groups])
        self._beside = bool(self._groups) and torch.cuda.is_available() and parameters[0].is_cuda
        self._thread = ThreadPoolExecutor(1, "fewstep-average") if self._beside else None
        self._moving: Future | None = None

    @property
    def values(self) -> list[torch.Tensor]:
        """The average as it is, one and the same list each time."""
        if self._moving is not None:
            self._moving.result()
            self._moving = None
        return self._values

    @torch.no_grad()
    def follow(self, weight: float) -> None:
        """Move towards the weights by that share of the way."""
        values = self.values
        if not self._groups:
            for average, p in zip(values, self.parameters):
                average.lerp_(p, weight)
            return
        for group, arrived in zip(self._groups, self._arrived):
            arrived.copy_(torch.cat([p.flatten() for p in group]), non_blocking=self._beside)
        if self._beside:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.parameters[0].device))
            self._moving = self._thread.submit(self._move, weight, copied)
        else:
            self._move(weight)

    def _move(self, weight, copied=None):
        if copied is not None:
            copied.synchronize()
        arrived = [part for group in zip(self._groups, self._arrived) for part in _apart(*group)]
        with torch.no_grad():
            for average, p in zip(self._values, arrived, strict=True):
                average.lerp_(p, weight)

    def close(self) -> None:
        """End the thread; the average stays."""
        _ = self.values
        if self._thread is not None:
            self._thread.shutdown()


def _groups(parameters):
    """The parameters in order, in groups of at most GROUP numbers, or of one that has more."""
    groups, size = [[]], 0
    for p in parameters:
        if groups[-1] and size + p.numel() > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(p)
        size += p.numel()
    return groups


def _apart(group, flat):
    """The parts of a flat copy of a group, in its shapes."""
    sizes = [p.numel() for p in group]
    return [part.view(p.shape) for part, p in zip(flat.split(sizes), group)]
