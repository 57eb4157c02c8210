"""LoRA by forward hooks (Hu et al. 2021, arXiv:2106.09685): y = W x + (alpha / rank) up(down(x)).

Hooks leave the base weights alone, so any storage works (half precision, quantised), and one base is both
teacher (adapter off) and student (adapter on). Several adapters on one base take turns: of those that share a
`Turn` one acts at a time, or none. Linear and Conv1d/2d/3d layers are covered; the adapter is float32, and
computes in the layer's dtype (`products`).
"""

import contextlib
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ...diffusion.faults import BadValue
from .products import Casts, added

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Turn:
    """Which of the adapters on one module acts: `of`, None for the module alone."""

    of: "Lora | None" = None

    @contextlib.contextmanager
    def given(self, lora: "Lora | None") -> Iterator[None]:
        """Within: that adapter acts and no other."""
        before, self.of = self.of, lora
        try:
            yield
        finally:
            self.of = before


class Lora:
    """An adapter attached to `module`; `remove()` takes it off again.

    weights: {layer name: {"down": (rank, in...), "up": (out, rank)}}, float32, trainable
    device: where the layers compute, which is not always where their weights are; None for the latter
    turn: of the adapter that is on the module already, beside which this one acts when it is asked to; alone
    on the module it acts from the start
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
        turn: Turn | None = None,
    ):
        layers = target_layers(module, include, exclude)
        if rank < 1:
            raise BadValue("rank must be 1 or more, got {got}.", got=rank)
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.turn = turn or Turn()
        if turn is None:
            self.turn.of = self
        self.scale = self.alpha / rank
        g = torch.Generator().manual_seed(seed)
        self.weights, self._hooks = {}, []
        try:
            self._attach(layers, g, device)
        except BaseException:
            self.remove()
            raise
        self._own = self._used = Casts(self.parameters(), self.scale)
        self._lent = None  # casts of other weights, kept from one loan to the next

    def _attach(self, layers, g, wanted):
        for name, layer in layers.items():
            shape = _shape(layer)
            fan_in, device = math.prod(shape[1:]), wanted or layer.weight.device
            down = torch.randn(self.rank, *shape[1:], generator=g) / fan_in**0.5
            self.weights[name] = {
                "down": down.to(device).requires_grad_(),
                "up": torch.zeros(shape[0], self.rank, device=device, requires_grad=True),
            }
            self._hooks.append(
                layer.register_forward_hook(self._hook(len(self._hooks), layer), with_kwargs=True)
            )

    def _hook(self, number, layer):
        linear = is_linear(layer)

        def add(layer, inputs, named, output):
            if self.turn.of is not self:
                return output
            used = self._used
            weights = used.values[2 * number : 2 * number + 2] if used is self._own else (None, None)
            x, casts = inputs[0] if inputs else named["input"], used.pair(number, output)
            return added(layer, linear, x, output, weights, casts, self.scale)

        return add

    def parameters(self) -> list[torch.Tensor]:
        """The trainable tensors, in a fixed order."""
        return [w for pair in self.weights.values() for w in pair.values()]

    @property
    def bytes(self) -> int:
        """Of the trainable tensors."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def on(self) -> contextlib.AbstractContextManager[None]:
        """Within: this adapter acts, and no other that it takes turns with."""
        return self.turn.given(self)

    def off(self) -> contextlib.AbstractContextManager[None]:
        """Within: the model is the teacher; no adapter acts."""
        return self.turn.given(None)

    @contextlib.contextmanager
    def using(self, values: Sequence[torch.Tensor], keep: bool = False) -> Iterator[None]:
        """Within: the layers answer with these weights (a list as `parameters()` gives, on any device), the
        EMA's for instance, and the adapter's own get no gradient. keep: their casts, until the next loan.
        """
        assert len(values) == 2 * len(self.weights), "an adapter of other layers"
        if self._lent is None or self._lent.values is not values:
            self._lent = Casts(values, self.scale)
        before, self._used = self._used, self._lent
        try:
            with self.on():
                yield
        finally:
            self._used = before
            if not keep:
                self._lent = None

    def written(self) -> None:
        """Say that the weights were written over where PyTorch may not have seen it."""
        self._own.forget()

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
        """The inverse of `state_dict`, in whatever precision and scale the layers are kept. Raises ValueError
        naming the first layer that is missing or of another shape.
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
            alpha = float(tensors.get(f"diffusion_model.{name}.alpha", self.alpha))
            values[-1] = values[-1].float() * (alpha / self.alpha)
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
            "layers (include) must match at least one Linear or convolution layer of the model, got {got} "
            "(without {exclude}). *attn* takes those of attention, * all.",
            got=list(include),
            exclude=list(exclude),
        )
    raise BadValue(
        "layers (include) must match at least one Linear or convolution layer of the model, got {got}. "
        "*attn* takes those of attention, * all.",
        got=list(include),
    )
