"""The running average of an adapter, in the computer's memory, where the copies live that nothing computes
on: a card has its room for weights, gradients and the optimiser.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch


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
    """a_k += w (p_k - a_k) of weights p that lie elsewhere. From CUDA they are copied while the card goes on,
    and the average moves in a thread of its own.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self.parameters = parameters
        self._values, self._staged = on_host(parameters), None
        self._moving: Future | None = None
        if torch.cuda.is_available() and any(p.is_cuda for p in parameters):
            self._staged = on_host(parameters)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="fewstep-average")

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
        if self._staged is None:
            for average, p in zip(values, self.parameters):
                average.lerp_(p.detach().cpu(), weight)
            return
        for staged, p in zip(self._staged, self.parameters):
            staged.copy_(p, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.parameters[0].device))
        self._moving = self._thread.submit(self._move, arrived, weight)

    def close(self) -> None:
        """End the thread; the average stays."""
        if self._staged is not None:
            _ = self.values
            self._thread.shutdown()

    def _move(self, arrived, weight):
        arrived.synchronize()
        for average, staged in zip(self._values, self._staged):
            average.lerp_(staged, weight)
