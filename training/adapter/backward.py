"""Exact gradients on any architecture.

A model that never writes over what autograd has saved gets a plain graph, at no cost; one that does, an
`exact_graph`. With checkpointing a block is recomputed on copies of its inputs (`checkpointing`); a layer
whose weights don't stay where it computes is called again with its weights fetched anew (`streaming`).
`proof` shows that a gradient is right, `saved_bytes` what its graph holds.
"""

import contextlib
from collections.abc import Callable, Iterable

import torch

from .checkpointing import blocks, recomputed, replaced
from .exact_graph import exact_graph
from .saved_bytes import saved_bytes
from .streaming import fetched_again


class Backward:
    """Loss and gradient of a function of `module`, whatever the module writes over.

    parameters: the leaves that want gradients; they may lie outside the module (a LoRA's). checkpointing:
    keep only the inputs of the module's `blocks`, and compute each block again in the backward pass.
    streamed: gives the layers of the module whose weights are fetched for each call; asked every time, since
    they may be others by then.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: Iterable[torch.Tensor],
        checkpointing: bool = False,
        streamed: Callable[[], list[torch.nn.Module]] = list,
    ):
        self.module, self.parameters, self.streamed = module, list(parameters), streamed
        self.blocks = blocks(module) if checkpointing else []
        self.overwrites = False  # the model was seen to write over saved activations

    def __call__(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`compute()` () without its graph; its gradient is added to the parameters' .grad.

        compute is called once, or twice when the model is first seen to write over saved activations. When it
        raises, .grad is as it was.
        """
        kept = [p.grad for p in self.parameters]
        try:
            loss = self._attempt(compute)
        except BaseException:
            for p, grad in zip(self.parameters, kept):
                p.grad = grad
            raise
        for p, grad in zip(self.parameters, kept):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
        return loss

    def _attempt(self, compute):
        if not self.overwrites:
            try:
                return self._run(compute, contextlib.nullcontext)
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                self.overwrites = True
        # outside of `except`, which would keep the failed graph in memory
        return self._run(compute, exact_graph)

    def _run(self, compute, graph):
        for p in self.parameters:
            p.grad = None
        with (
            graph(),
            replaced(self.streamed(), fetched_again),
            replaced(self.blocks, lambda forward: recomputed(forward, graph)),
        ):
            loss = compute()
            loss.backward()
        return loss.detach()

    def saved_bytes(self, compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
        """(loss, bytes) of `saved_bytes` for this module, its parameters, its checkpointing and streaming."""
        weights = [*self.module.parameters(), *self.module.buffers(), *self.parameters]
        return saved_bytes(compute, weights, self.blocks, self.streamed())
