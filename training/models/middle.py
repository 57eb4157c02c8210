"""Pictures as the model itself sees them: what its middle block holds of them at a low noise level.

Every denoiser has such features, with nothing to download, and they tell more than a small classifier's
(docs/findings/distances.md). The block is found by what happens in a call, not by its name: of the blocks of
the model's lists, the outermost that are called, the middle one in the order of calls. In a transformer that
is the middle of its depth, in a U-Net the bottom.
"""

from typing import Any

import torch
from torch import nn

from ...diffusion.faults import NotFound
from .denoiser import Denoiser, InParts

LEVEL = 0.1  # model time: nearly a picture, and still what the model was trained on


class MiddleBlock:
    """(pictures (N, ...), condition (N,)) -> features (N, D): of each channel mean and deviation over places.

    The noise that is mixed in is the same for row n whatever the pictures are. name: the block's, in the
    module. Raises LookupError where no block can be found.
    """

    def __init__(self, denoiser: Denoiser, seed: int = 0):
        self.denoiser, self.seed = denoiser, seed
        self.sigma = float(denoiser.sigma_of(torch.tensor([LEVEL], dtype=torch.float64))[0])
        self._block: nn.Module | None = None
        self.name = ""

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        if self._block is None:
            self.name, self._block = self._found(pictures[:1], condition[:1])
        features = [None] * len(pictures)
        x = self._noised(pictures)
        kinds = getattr(self.denoiser, "kinds", torch.zeros_like)(condition)
        for kind in kinds.unique():  # among which no model changes the order of rows
            rows = (kinds == kind).nonzero()[:, 0]
            for row, feature in zip(rows.tolist(), self._seen(x[rows], condition[rows])):
                features[row] = feature
        return torch.stack(features).cpu()

    def _seen(self, x, condition):
        """Features (N, D) of noised pictures of one kind; of a video the mean over what its batch was."""
        held: list[torch.Tensor] = []

        def keep(block, inputs, out):
            held.append(_pooled(block, _tensor(out)))

        hook = self._block.register_forward_hook(keep)
        try:
            return self._told(
                held.clear, lambda rows: torch.cat(held).unflatten(0, (rows, -1)).mean(1), x, condition
            )
        finally:
            hook.remove()

    def _told(self, begin, tell, x, condition):
        """`tell(rows)` of each call of the model, put together. begin: before each, as one that memory ended
        may have left something.
        """

        def ask(denoiser, x, condition):
            begin()
            denoiser(x, torch.full((len(x),), self.sigma), condition)
            return tell(len(x))

        if isinstance(self.denoiser, InParts):
            return self.denoiser.each(ask, x, condition)
        return ask(self.denoiser, x, condition)

    def _noised(self, pictures):
        """x at the low level, by a generator of its own."""
        g = torch.Generator().manual_seed(self.seed)
        noise = self.denoiser.noise_scale * torch.randn(pictures.shape, generator=g).to(pictures)
        sigma = torch.tensor(self.sigma, dtype=torch.float64)
        return (self.denoiser.path.alpha(sigma) * pictures.double() + sigma * noise).to(pictures.dtype)

    def _found(self, picture, condition):
        """(name, module) of the middle block, by a call that is watched."""
        module, calls, depth, hooks = self.denoiser.module, [], [0], []

        def begin():
            calls.clear()
            depth[0] = 0

        def before(block, inputs):
            depth[0] += 1

        def after(block, inputs, out):
            depth[0] -= 1
            if not depth[0] and _tensor(out) is not None:
                calls.append(block)

        for block in blocks_of(module):
            hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        try:
            self._told(begin, torch.zeros, self._noised(picture), condition)
        finally:
            for hook in hooks:
                hook.remove()
        if not calls:
            raise NotFound("No block of the model was called.")
        found = calls[len(calls) // 2]
        return next(name for name, block in module.named_modules() if block is found), found


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members of the module's lists that hold two layers or more, each once."""
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential))
    members = {id(block): block for part in lists for block in part}
    return [block for block in members.values() if len(_layers(block)) > 1]


def _layers(block):
    """{layer: how wide its output is} of a block's layers of whatever class; quantised ones are no Linear."""
    leaves = (part for part in block.modules() if not any(part.children()))
    return {part: width for part in leaves if (width := _width(part))}


def _width(layer):
    weight = getattr(layer, "weight", None)
    of_weight = weight.shape[0] if torch.is_tensor(weight) and weight.ndim > 1 else 0
    return getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0) or of_weight


def _tensor(out: Any) -> torch.Tensor | None:
    """The first tensor (B, ...) with places in what a block returned."""
    if torch.is_tensor(out):
        return out if out.ndim > 2 and out.is_floating_point() else None
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, list | tuple) else ()
    return next((found for part in parts if (found := _tensor(part)) is not None), None)


def _pooled(block, out):
    """(B, 2 C): mean and deviation over the places of (B, ..., C), or of (B, C, ...) as pictures have it."""
    layers = _layers(block)
    convolved = any(getattr(layer, "out_channels", 0) for layer in layers)
    first, last = (out.shape[place] in layers.values() for place in (1, -1))
    if out.ndim > 3 and first and (convolved or not last):
        out = out.movedim(1, -1)
    flat = out.float().flatten(1, -2)
    return torch.cat([flat.mean(1), flat.std(1)], 1)
