"""A frozen base in pieces: each of several processes holds one, as no card has room for all (PyTorch's FSDP2,
`fully_shard`; Zhao et al. 2023, arXiv:2304.11277). The adapter is whole in each.

The weights of a block are gathered for the length of its call, by all processes, so that each forward and
each backward pass is one of all of them. Shares of a batch and of trajectories differ, so before a pass they
tell each other what they are about to do: whoever has nothing to ask joins in with a sample of zeros, and a
backward pass begins when all have come to it. Teacher and student are the same gathered weights, with the
adapter off and on.

Autograd saves views of gathered weights, which are gone before the backward pass. Blocks that are computed
again in it (`checkpointing`) gather them anew, and their gradient is the whole model's to the last bit; a
graph that is held whole is not, and is refused.
"""

from typing import Any

import torch
from torch import nn

from ...diffusion.faults import BadValue, Failed
from ..models.denoiser import Denoiser
from ..models.memory_errors import is_out_of_memory
from ..ranks.ranks import Ranks
from .checkpointing import blocks

ASK, TRAIN, BACK, IDLE = range(4)  # a pass without gradient, one with it, its backward pass, nothing


def check_sharding(ranks: Ranks, checkpointing: bool | None) -> None:
    """Raise ValueError where the base can't be in pieces; checkpointing: as it was asked for."""
    if ranks.world == 1:
        raise BadValue(
            "shard_base must be left out for one process, which has to hold the whole model. Start several, "
            "with torchrun or --processes."
        )
    if checkpointing is False:
        raise BadValue(
            "checkpointing must be on with shard_base, got false: a graph that is held whole would keep "
            "weights which are no longer there in the backward pass. Leave it out."
        )


class Sharded:
    """A `Denoiser` over pieces of its module. device: where they lie and compute."""

    in_float32 = None  # pieces can't be cast and cast back

    def __init__(self, denoiser: Denoiser, ranks: Ranks, device: torch.device | str):
        self.denoiser, self.ranks = denoiser, ranks
        denoiser.device = torch.device(device)
        _shard(denoiser.module, denoiser.device, ranks.world)
        ranks.meanwhile = self.idle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self._settle(TRAIN if torch.is_grad_enabled() else ASK)
        try:
            return self.denoiser(x, sigma, condition)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise Failed(
                "A pass of a model in pieces must find room in every process, as all are in it, and did not "
                "here. Set micro or chunk lower, or start more processes."
            ) from error

    def before_backward(self) -> None:
        """Come to the backward pass, in which all are to be."""
        self._settle(BACK)

    def idle(self) -> None:
        """Join in what the others ask until none asks any more."""
        self._settle(IDLE)

    def most_parts(self, count: int) -> int:
        """The largest of such numbers of all processes."""
        return int(self.ranks.merged(torch.tensor([count]), self.ranks.world).max())

    @torch.no_grad()
    def _settle(self, kind):
        while True:
            wanted = self.ranks.merged(torch.tensor([kind]), self.ranks.world).tolist()
            if kind == ASK:
                return
            if ASK not in wanted:
                break
            sigma = self.denoiser.sigma_of(torch.tensor([0.5], dtype=torch.float64)).float()
            self.denoiser(torch.zeros(1, *self.denoiser.shape), sigma, torch.zeros(1, dtype=torch.int64))
        if set(wanted) != {kind}:
            raise Failed("All processes must make the same passes of a model in pieces, and one made others.")


def _shard(module: nn.Module, device: torch.device, world: int) -> None:
    """Leave this process its piece of every weight; each block is gathered by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    module.requires_grad_(False)
    parts = blocks(module)
    for part in parts if parts != [module] else ():
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
