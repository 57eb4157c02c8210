"""LoRA by forward hooks (Hu et al. 2021, arXiv:2106.09685): y = W x + (alpha / rank) up(down(x)).

Hooks leave the base weights alone, so any storage works (half precision, quantised), and one base is both
teacher (adapter off) and student (adapter on). Linear and Conv1d/2d/3d layers are covered; the adapter is
float32.
"""

import contextlib
import fnmatch
import math

import torch
from torch import nn
from torch.nn import functional as F

from ...diffusion.faults import BadValue

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Lora:
    """An adapter attached to `module`; `remove()` takes it off again.

    weights: {layer name: {"down": (rank, in...), "up": (out, rank)}} - float32, trainable
    """

    def __init__(self, module, rank, alpha=None, include=("*",), exclude=(), seed=0):
        layers = target_layers(module, include, exclude)
        if rank < 1:
            raise BadValue("rank must be 1 or more, got {got}.", got=rank)
        self.rank, self.alpha, self.enabled = rank, float(rank if alpha is None else alpha), True
        g = torch.Generator().manual_seed(seed)
        self.weights, self._hooks = {}, []
        try:
            self._attach(layers, g)
        except BaseException:
            self.remove()
            raise

    def _attach(self, layers, g):
        for name, layer in layers.items():
            shape = (layer.out_features, layer.in_features) if is_linear(layer) else layer.weight.shape
            fan_in, device = math.prod(shape[1:]), layer.weight.device
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
            down, up = pair["down"].to(x), pair["up"].to(x)
            if is_linear(layer):
                delta = F.linear(F.linear(x, down), up)
            else:
                hidden = layer._conv_forward(x, down, None)
                delta = (
                    torch.einsum("or,br...->bo...", up, hidden)
                    if hidden.ndim != 4
                    else F.conv2d(hidden, up[..., None, None])
                )
            return output + (self.alpha / self.rank) * delta

        return add

    def parameters(self):
        """The trainable tensors, in a fixed order."""
        return [w for pair in self.weights.values() for w in pair.values()]

    @property
    def bytes(self):
        """Of the trainable tensors."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    @contextlib.contextmanager
    def off(self):
        """Within: the model is the teacher."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    @contextlib.contextmanager
    def using(self, values):
        """Within: the adapter has these weights (a list as `parameters()` gives), the EMA's for instance."""
        kept = [p.detach().clone() for p in self.parameters()]
        self.load(values)
        try:
            yield
        finally:
            self.load(kept)

    @torch.no_grad()
    def load(self, values):
        """Copy a list as `parameters()` gives into the adapter."""
        for p, v in zip(self.parameters(), values, strict=True):
            p.copy_(v)

    def remove(self):
        """Detach from the module."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self, values=None):
        """ComfyUI's native keys, which its stock loader takes for every family.

        diffusion_model.<layer>.lora_up.weight (out, rank), .lora_down.weight (rank, in k k), .alpha ()
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

    def load_state_dict(self, tensors):
        """The inverse of `state_dict`. Raises ValueError naming the first layer that is missing or of another
        shape.
        """
        values = []
        for name, pair in self.weights.items():
            key = f"diffusion_model.{name}"
            for part, like in (("lora_down", pair["down"]), ("lora_up", pair["up"])):
                tensor = tensors.get(f"{key}.{part}.weight")
                if tensor is None or tensor.numel() != like.numel():
                    raise ValueError(
                        f"The LoRA does not fit this model: {key}.{part}.weight must have shape "
                        f"{tuple(like.flatten(1).shape)}, got {None if tensor is None else tuple(tensor.shape)}."
                    )
                values.append(tensor.reshape(like.shape))
        self.load(values)

    def warm_start(self, tensors):
        """Begin with a LoRA's weights in native keys, whatever its rank; layers that it lacks begin at zero.

        A lower rank is filled up (the rest of `down` as drawn, of `up` zero: the same function), of a higher
        one the best approximation is taken (Eckart & Young 1936). Raises ValueError, before anything is
        changed, when it has a layer that this adapter lacks, or one of another shape, or numbers that are not
        finite.
        """
        end = ".lora_up.weight"
        names = {
            key.removeprefix("diffusion_model.").removesuffix(end) for key in tensors if key.endswith(end)
        }
        strange = sorted(names - self.weights.keys())
        if strange or not names:
            raise ValueError(
                f"The LoRA to start from must have layers of this run alone, got {', '.join(strange[:3]) or 'none'}. "
                "Choose one of this model, and let layers take in all of its layers."
            )
        begun = {name: self._begun(name, tensors) for name in sorted(names)}
        with torch.no_grad():
            for name, (up, down) in begun.items():
                pair = self.weights[name]
                pair["down"][: len(down)].copy_(down.reshape(-1, *pair["down"].shape[1:]))
                pair["up"][:, : len(down)].copy_(up)

    def _begun(self, name, tensors):
        """(up, down) of one layer, cut to this rank and in this scale."""
        key, pair = f"diffusion_model.{name}", self.weights[name]
        wanted = len(pair["up"]), pair["down"][0].numel()
        found = [tensors.get(f"{key}.{part}.weight") for part in ("lora_up", "lora_down")]
        if any(v is None or not bool(v.isfinite().all()) for v in found):
            raise BadValue(
                "The LoRA to start from must hold finite lora_up and lora_down weights, {layer} does not.",
                layer=key,
            )
        up, down = (v.float().flatten(1) for v in found)
        if (len(up), down.shape[1]) != wanted or up.shape[1] != len(down):
            raise BadValue(
                "The LoRA to start from does not fit: {layer} must be {wanted} x {wanted2}, got {got} x "
                "{shape}. Choose one of this model.",
                layer=key,
                wanted=wanted[0],
                wanted2=wanted[1],
                got=len(up),
                shape=down.shape[1],
            )
        rank = len(down)
        scale = float(tensors.get(f"{key}.alpha", rank)) / rank * self.rank / self.alpha
        if rank > self.rank:  # the product's singular values are those of its triangular factors'
            (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up), torch.linalg.qr(down.T)
            u, s, v = torch.linalg.svd(r_up @ r_down.T)
            root = s[: self.rank].sqrt()
            up, down = (
                q_up @ u[:, : len(s)][:, : self.rank] * root,
                root[:, None] * (v[: len(s)][: self.rank] @ q_down.T),
            )
        return up * scale, down


def is_linear(layer):
    """Whether it is a Linear layer, of PyTorch or one that only looks like it: ComfyUI has quantised ones of
    its own.
    """
    return isinstance(layer, nn.Linear) or (
        type(layer).__name__ == "Linear"
        and hasattr(layer, "in_features")
        and getattr(layer, "weight", None) is not None
    )


def target_layers(module, include=("*",), exclude=()):
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
    if not found:
        raise BadValue(
            "include must match at least one Linear or convolution layer of the model, got {got} (without "
            "{exclude}).",
            got=list(include),
            exclude=list(exclude),
        )
    return found
