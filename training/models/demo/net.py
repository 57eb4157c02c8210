"""The demo teachers' network: a small transformer over 4x4 patches with a convolutional stem and head.

Both teachers share it. Inside, the state is always the variance-preserving mix
`x = alpha x_0 + sigma eps` with `alpha^2 + sigma^2 = 1`, told by its angle `theta = atan2(sigma, alpha)`,
and the trunk predicts `v = alpha eps - sigma x_0` (Salimans & Ho 2022, arXiv:2202.00512, eq. 9). What goes in
and comes out follows ComfyUI's conventions:

kind        input                              timestep                 output
flow        (1-t) x_0 + t eps                  1000 t                   velocity eps - x_0
epsilon     (x_0 + s eps) / sqrt(s^2 + 1)      index 0..999 of s        eps

Every layer is made by `operations`, so a host can hand in its own Linear and Conv2d (offloading, patches).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ....diffusion.faults import BadValue

SIZE, PATCH, CHANNELS = 32, 4, 3
KINDS = ("flow", "epsilon")
TIMESTEPS, SIGMA_MAX = 1000, 40.0


def discrete_sigmas() -> torch.Tensor:
    """sigma / alpha of the epsilon teacher at its 1000 indices, ascending, float64: the cosine schedule
    between 1/40 and 40.

    alpha = cos(theta), sigma = sin(theta) with theta uniform over the indices (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 17, made for pictures this small; cut off at both ends as in Hoogeboom et al. 2023,
    arXiv:2301.11093, sec. 2).
    """
    end = math.atan(SIGMA_MAX)
    return torch.linspace(math.pi / 2 - end, end, TIMESTEPS, dtype=torch.float64).tan()


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled, shifted and gated by the condition (adaLN-single)."""

    def __init__(
        self,
        width: int,
        heads: int,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ):
        super().__init__()
        made = {"dtype": dtype, "device": device}
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, **made)
        self.proj = operations.Linear(width, width, **made)
        self.up = operations.Linear(width, 3 * width, **made)
        self.down = operations.Linear(3 * width, width, **made)
        self.table = nn.Parameter(torch.zeros(6, width, **made))

    def attention(self, h: torch.Tensor) -> torch.Tensor:
        """Of tokens (B, N, width)."""
        b, n, w = h.shape
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w))

    def forward(self, h: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, width); modulation (B, 6, width)."""
        table = self.table.to(h)
        scale1, shift1, gate1, scale2, shift2, gate2 = (modulation + table).chunk(6, 1)
        h = h + gate1 * self.attention(_norm(h) * (1 + scale1) + shift1)
        return h + gate2 * self.down(F.gelu(self.up(_norm(h) * (1 + scale2) + shift2), approximate="tanh"))


def _norm(h):
    return F.layer_norm(h, h.shape[-1:])


class EmojiNet(nn.Module):
    """`(x, timesteps, context) -> prediction`.

    x (B, 3, 32, 32); timesteps (B,); context (B, tokens, labels): weights of labels, all zero for "no label".
    """

    def __init__(
        self,
        kind: str = "flow",
        labels: int = 1,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        stem: int = 16,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        operations: Any = nn,
        **_: Any,  # what a host gives to all networks alike
    ):
        super().__init__()
        if kind not in KINDS:
            raise BadValue("kind must be one of {kinds}, got {got!r}.", kinds=list(KINDS), got=kind)
        made = {"dtype": dtype, "device": device}
        self.dtype, self.kind, self.labels, self.stem_width = dtype, kind, labels, stem
        self.stem = operations.Conv2d(CHANNELS, stem, 3, padding=1, **made)
        self.patch = operations.Linear(stem * PATCH**2, width, **made)
        self.position = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2, width, **made))
        self.frequencies = 16
        self.time = operations.Linear(2 * self.frequencies + 1, width, **made)
        self.label = operations.Linear(labels, width, **made)
        self.condition = operations.Linear(width, width, **made)
        self.modulation = operations.Linear(width, 6 * width, **made)
        self.blocks = nn.ModuleList(Block(width, heads, operations, **made) for _ in range(depth))
        self.unpatch = operations.Linear(width, stem * PATCH**2, **made)
        self.refine = operations.Conv2d(2 * stem, stem, 3, padding=1, **made)
        self.out = operations.Conv2d(stem, CHANNELS, 3, padding=1, **made)
        if kind == "epsilon":
            self.register_buffer("sigmas", discrete_sigmas().float(), persistent=False)

    def angle(self, timesteps: torch.Tensor) -> torch.Tensor:
        """theta = atan2(sigma, alpha) in [0, pi/2] of ComfyUI's timestep, shape (B,)."""
        if self.kind == "flow":
            t = timesteps.float() / 1000
            return torch.atan2(t, 1 - t)
        table = discrete_sigmas().to(timesteps.device, torch.float32).log()
        i = timesteps.float().clamp(0, len(table) - 1)
        low = i.floor().long()
        high = i.ceil().long()
        return torch.lerp(table[low], table[high], i - low).exp().atan()

    def trunk(self, x: torch.Tensor, theta: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """v of the variance-preserving state x at angle theta."""
        dtype, b = x.dtype, x.shape[0]
        unit = theta * (2 / math.pi)
        phase = unit[:, None] * (math.pi * torch.arange(1, self.frequencies + 1, device=x.device))
        features = torch.cat([unit[:, None], phase.cos(), phase.sin()], 1).to(dtype)
        c = self.time(features) + self.label(context.sum(1).to(dtype))
        c = F.silu(self.condition(F.silu(c)))
        modulation = self.modulation(c).view(b, 6, -1)
        stem = self.stem(x)
        n = SIZE // PATCH
        patches = stem.view(b, self.stem_width, n, PATCH, n, PATCH).permute(0, 2, 4, 1, 3, 5)
        tokens = patches.reshape(b, n * n, -1)
        h = self.patch(tokens) + self.position.to(x)
        for block in self.blocks:
            h = block(h, modulation)
        h = self.unpatch(_norm(h)).view(b, n, n, self.stem_width, PATCH, PATCH)
        h = h.permute(0, 3, 1, 4, 2, 5).reshape(b, self.stem_width, SIZE, SIZE)
        return self.out(F.silu(self.refine(F.silu(torch.cat([h, stem], 1)))))

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: Any = None,
        **_: Any,  # what a host gives to all networks alike
    ) -> torch.Tensor:
        if tuple(x.shape[1:]) != (CHANNELS, SIZE, SIZE):
            raise BadValue(
                "The demo teacher works on {size}x{size} RGB (latent {channels}x{size}x{size}), got {got}. "
                "Set the empty latent to {size}x{size} pixels.",
                size=SIZE,
                channels=CHANNELS,
                got="x".join(map(str, x.shape[1:])),
            )
        if context is None:
            context = x.new_zeros(x.shape[0], 1, self.labels)
        if context.shape[-1] != self.labels:
            raise BadValue(
                "conditioning must have {labels} numbers a token (label weights), got {got}. Use the "
                "conditioning of the node that loads the demo teacher.",
                labels=self.labels,
                got=context.shape[-1],
            )
        theta = self.angle(timesteps)
        cos, sin = (f(theta).to(x.dtype).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
        if self.kind == "epsilon":
            return sin * x + cos * self.trunk(x, theta, context)
        x = x * (cos + sin)  # 1/sqrt((1-t)^2 + t^2) = cos + sin
        return (sin - cos) * x + (sin + cos) * self.trunk(x, theta, context)


def initialise(net: EmojiNet, seed: int = 0) -> EmojiNet:
    """Seeded initial weights, in place: 1/sqrt(fan-in) normals, gates and output zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            gate = name.endswith("table") or name == "modulation.weight"
            if gate or name.startswith("out.") or name.endswith("bias"):
                p.zero_()
            elif name == "position":
                p.copy_(0.02 * torch.randn(p.shape, generator=g))
            else:
                gain = 0.5 if name.endswith(("proj.weight", "down.weight")) else 1.0
                p.copy_(torch.randn(p.shape, generator=g) * (gain / p[0].numel() ** 0.5))
    return net
