"""A model that writes over saved activations as Flux does, and the same function without writes. Imported by
name.
"""

import dataclasses

import torch
from fewstep.training.adapter.backward import Backward
from torch import nn
from torch.nn import functional as F

WIDTH, TOKENS = 8, 6


@dataclasses.dataclass(frozen=True)
class Modulation:
    gate: torch.Tensor
    scale: list


class Block(nn.Module):
    """A residual block as Flux has it, in place or out of place; its arguments hide in a dict, a dataclass
    and keywords.
    """

    def __init__(self, overwrite):
        super().__init__()
        self.overwrite = overwrite
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, streams, modulation, *, options):
        x = streams["image"]
        change = self.down(F.gelu(self.up(self.norm(x) * modulation.scale[0])))
        change = change * modulation.gate * (1 + options["number"])
        if self.overwrite:
            x += change
            x[:, 2:] += x.sin().mean()  # through a slice
        else:
            x = x + change
            x = torch.cat([x[:, :2], x[:, 2:] + x.sin().mean()], 1)
        return {"image": x, "parts": (x[:, :2], x[:, 2:]), "where": x > 0}


class Net(nn.Module):
    """Blocks, and between them a write over the last block's output."""

    def __init__(self, overwrite, depth=3):
        super().__init__()
        torch.manual_seed(0)
        self.overwrite = overwrite
        self.modulate = nn.Linear(WIDTH, 2 * WIDTH)
        self.blocks = nn.ModuleList(Block(overwrite) for _ in range(depth))

    def forward(self, x):
        gate, scale = self.modulate(x.mean(1, keepdim=True)).chunk(2, -1)
        options, x, kept = {"number": 0}, x.clone(), 0.0
        for i, block in enumerate(self.blocks):
            options["number"] = i  # one dict for all, changed between them
            out = block({"image": x}, Modulation(gate, [scale]), options=options)
            first, rest = out["parts"]
            kept = kept + (first.square().sum() + rest[out["where"][:, 2:]].sum())
            if self.overwrite:
                first += 1  # a view that a block has returned
                x = torch.cat([first, rest], 1)
                x[:, 3:] *= 1.5
            else:
                x = torch.cat([first + 1, rest], 1)
                x = torch.cat([x[:, :3], x[:, 3:] * 1.5], 1)
        return (x * kept.tanh()).square().mean() + kept / 100


def case(overwrite):
    net = Net(overwrite)
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    return net, list(net.parameters()), lambda: net(x)


def gradient(net, parameters, compute, **options):
    loss = Backward(net, parameters, **options)(compute)
    return loss, torch.cat([p.grad.flatten() for p in parameters])


def reference():
    net, parameters, compute = case(overwrite=False)
    loss = compute()
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
