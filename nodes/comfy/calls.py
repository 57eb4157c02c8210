"""How often a model is really asked: what caches leave out is not counted.

One *model call* is one sample of one image going through the whole network once. So guidance with a
negative prompt costs two a step, batched or not, and a batch of images costs what one of them does. A call
that a cache answers (EasyCache, LazyCache) costs nothing, and one in which blocks are skipped (TeaCache,
first-block caches, DeepCache) the share of the network's weights that it did use.

It is counted at the layers, below all wrappers: whatever stands between the sampler and the network, this is
what the card worked for.
"""

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import nn


class ModelCalls:
    """Counts while it is open: `with ModelCalls(model) as calls: sample(...); calls.take(images)`.

    Other MODELs over the same network, such as clones that have a cache, are counted too. What a whole call
    uses is learnt from the calls themselves: open it before a model without a cache is sampled, or at the
    latest before the first call of one with, which can't be answered by the cache yet.
    """

    def __init__(self, model: ModelPatcher):
        self.network = model.get_model_object("diffusion_model")
        self._whole = 0  # weights that a whole call uses
        self._calls: list[list[int]] = []  # [samples, weights used] of each
        self._hooks = []

    def __enter__(self) -> "ModelCalls":
        self._hooks.append(self.network.register_forward_pre_hook(self._begin))
        for layer in self.network.modules():
            size = sum(weight.numel() for weight in layer.parameters(recurse=False))
            if size and layer is not self.network:  # its own few are no work
                self._hooks.append(layer.register_forward_pre_hook(_Adding(self._calls, size)))
        return self

    def __exit__(self, *_: Any) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _begin(self, network: nn.Module, inputs: tuple) -> None:
        x = inputs[0][0] if isinstance(inputs[0], (list, tuple)) else inputs[0]  # some take several latents
        self._calls.append([len(x), 0])

    def take(self, images: int) -> float:
        """Model calls for each of `images` images since the last `take`."""
        self._whole = max([self._whole, *(used for _, used in self._calls)])
        # compiled networks call no hooks: then each call is a whole one
        shares = [samples * (used / self._whole if self._whole else 1) for samples, used in self._calls]
        self._calls.clear()
        return sum(shares) / images


class _Adding:
    """A hook that adds a layer's weights to the call that goes on."""

    def __init__(self, calls: list[list[int]], size: int):
        self.calls, self.size = calls, size

    def __call__(self, layer: nn.Module, inputs: tuple) -> None:
        if not torch.compiler.is_compiling() and self.calls:
            self.calls[-1][1] += self.size
