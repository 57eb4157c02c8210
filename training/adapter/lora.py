"""LoRA by forward hooks (Hu et al. 2021, arXiv:2106.09685): y = W x + (alpha / rank) up(down(x)).

Hooks leave the base weights alone, so any storage works (half precision, quantised), and one base is both
teacher (adapter off) and student (adapter on). Linear and Conv1d/2d/3d layers are covered; the adapter is
float32.
"""

import contextlib
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...diffusion.faults import BadValue

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Lora:
    """An adapter attached to `module`; `remove()` takes it off again.

    weights: {layer name: {"down": (rank, in...), "up": (out, rank)}}, float32, trainable
    device: where the layers compute, which is not always where their weights are; None for the latter
    """

    def __init__(
        self,
        module: nn.Module,
        rank: int,
        alpha: float | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
        device: torch.device | str | None = None,
    ):
        layers = target_layers(module, include, exclude)
        if rank < 1:
            raise BadValue("rank must be 1 or more, got {got}.", got=rank)
        self.rank, self.alpha, self.enabled = rank, float(rank if alpha is None else alpha), True
        g = torch.Generator().manual_seed(seed)
        self.weights, self._hooks = {}, []
        try:
            self._attach(layers, g, device)
        except BaseException:
            self.remove()
            raise

    def _attach(self, layers, g, wanted):
        for name, layer in layers.items():
            shape = _shape(layer)
            fan_in, device = math.prod(shape[1:]), wanted or layer.weight.device
            down = torch.randn(self.rank, *shape[1:], generator=g) / fan_in**0.5
            self.weights[name] = {
                "down": down.to(device).requires_grad_(),
                "up": torch.zeros(shape[0], self.rank, device=device, requires_grad=True),
            }
            self._hooks.append(layer.register_forward_hook(self._hook(self.weights[name])))

    def _hook(self, pair):
        def add(layer, inputs, output):
            if not self.enabled:
                return output
            x = inputs[0]
            change = _up_of_down(layer, x, pair["down"].to(x), pair["up"].to(x))
            return output + (self.alpha / self.rank) * change

        return add

    def parameters(self) -> list[torch.Tensor]:
        """The trainable tensors, in a fixed order."""
        return [w for pair in self.weights.values() for w in pair.values()]

    @property
    def bytes(self) -> int:
        """Of the trainable tensors."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within: the model is the teacher."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    @contextlib.contextmanager
    def using(self, values: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within: the adapter has these weights (a list as `parameters()` gives), the EMA's for instance."""
        kept = [p.detach().clone() for p in self.parameters()]
        self.load(values)
        try:
            yield
        finally:
            self.load(kept)

    @torch.no_grad()
    def load(self, values: Sequence[torch.Tensor]) -> None:
        """Copy a list as `parameters()` gives into the adapter."""
        for p, v in zip(self.parameters(), values, strict=True):
            p.copy_(v)

    def remove(self) -> None:
        """Detach from the module."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self, values: Sequence[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """ComfyUI's native keys, which its stock loader takes for every family.

        diffusion_model.<layer>.lora_up.weight (out, rank), .lora_down.weight (rank, in k k), .alpha ()

        values: other weights in place of the adapter's own, a list as `parameters()` gives.
        """
        values = iter(self.parameters() if values is None else values)
        out = {}
        for name in self.weights:
            down, up = next(values), next(values)
            key = f"diffusion_model.{name}"
            out[f"{key}.lora_up.weight"] = up.detach().cpu().contiguous().clone()
            out[f"{key}.lora_down.weight"] = down.detach().flatten(1).cpu().contiguous().clone()
            out[f"{key}.alpha"] = torch.tensor(self.alpha)
        return out

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`. Raises ValueError naming the first layer that is missing or of another
        shape.
        """
        values = []
        for name, pair in self.weights.items():
            for part in ("down", "up"):
                like = pair[part]
                key = f"diffusion_model.{name}.lora_{part}.weight"
                tensor = tensors.get(key)
                if tensor is None or tensor.numel() != like.numel():
                    raise BadValue(
                        "The LoRA does not fit this model: {key} must have shape {shape}, got {got}.",
                        key=key,
                        shape=tuple(like.flatten(1).shape),
                        got=None if tensor is None else tuple(tensor.shape),
                    )
                values.append(tensor.reshape(like.shape))
        self.load(values)


def lora_bytes(
    module: nn.Module, rank: int, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> int:
    """Of the trainable tensors that an adapter would have. Raises ValueError where no layer matches."""
    shapes = [_shape(layer) for layer in target_layers(module, include, exclude).values()]
    return sum(4 * rank * (shape[0] + math.prod(shape[1:])) for shape in shapes)


def _shape(layer):
    """(out, in...) of a layer's weight, however it is stored."""
    return (layer.out_features, layer.in_features) if is_linear(layer) else layer.weight.shape


def _up_of_down(layer, x, down, up):
    """up(down(x)) (B, out, ...), where `down` has the kernel, stride and padding of the layer."""
    if is_linear(layer):
        return F.linear(F.linear(x, down), up)
    hidden = layer._conv_forward(x, down, None)
    if hidden.ndim == 4:
        return F.conv2d(hidden, up[..., None, None])
    return torch.einsum("or,br...->bo...", up, hidden)


def is_linear(layer: nn.Module) -> bool:
    """Whether it is a Linear layer, of PyTorch or one that only looks like it: ComfyUI has quantised ones of
    its own.
    """
    return isinstance(layer, nn.Linear) or (
        type(layer).__name__ == "Linear"
        and hasattr(layer, "in_features")
        and getattr(layer, "weight", None) is not None
    )


def target_layers(
    module: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """{name: layer} of the Linear and ungrouped convolution layers whose name matches; raises ValueError when
    none does.
    """
    found = {
        name: m
        for name, m in module.named_modules()
        if (isinstance(m, LAYERS) or is_linear(m))
        and getattr(m, "groups", 1) == 1
        and any(fnmatch.fnmatch(name, p) for p in include)
        and not any(fnmatch.fnmatch(name, p) for p in exclude)
    }
    if found:
        return found
    if exclude:
        raise BadValue(
            "include must match at least one Linear or convolution layer of the model, got {got} (without "
            "{exclude}).",
            got=list(include),
            exclude=list(exclude),
        )
    raise BadValue(
        "include must match at least one Linear or convolution layer of the model, got {got}.",
        got=list(include),
    )
