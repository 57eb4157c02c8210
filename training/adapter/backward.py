"""Exact gradients on any architecture.

A model that never writes over what autograd has saved gets a plain graph, at no cost; of one that does, what
it writes over is copied, and nothing else (`overwrites`). With checkpointing a block is recomputed on copies
of its inputs (`checkpointing`); a layer whose weights don't stay where it computes is called again with its
weights fetched anew (`streaming`). `proof` shows that a gradient is right, `live_bytes` what it takes.
"""

import contextlib
from collections.abc import Callable, Iterable

import torch

from .checkpointing import blocks, recomputed, replaced
from .exact_graph import exact_graph
from .kinds import detached
from .overwrites import NOTICED, Log, Overwrites
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
        self.places = Overwrites(module)
        self.seen = False  # a first call was looked at
        self.always = False  # the model writes where no place can be told: every operation is looked at

    @property
    def overwrites(self) -> bool:
        """Whether the model was seen to write over what autograd had saved."""
        return self.always or bool(self.places.found)

    def __call__(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`compute()` () without its graph; its gradient is added to the parameters' .grad.

        compute is called once, or twice when the model writes over saved activations where no call before it
        did. When it raises, .grad is as it was.
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
        if self.always:
            return self._run(compute, exact_graph(), contextlib.nullcontext(), exact_graph)
        if self.seen:
            try:
                copied = self.places.copied_around(), self.places.copied()
                return self._run(compute, *copied, contextlib.nullcontext)
            except RuntimeError as error:
                if NOTICED not in str(error):
                    raise
        # outside of `except`, which would keep the failed graph in memory
        log = Log()
        loss = self._run(compute, log.graph(), log.watching(self.places.modules), log.graph)
        self.always = not self.places.learn(log) and self.seen
        self.seen = True
        return loss

    def _run(self, compute, around, inside, recomputing):
        """around: context of the whole call; inside: of the module's; recomputing: of each block's again."""
        for p in self.parameters:
            p.grad = None
        with (
            around,
            replaced(self.streamed(), fetched_again),
            inside,
            replaced(self.blocks, lambda forward: recomputed(forward, recomputing)),
        ):
            loss = compute()
            loss.backward()
        return detached(loss)
