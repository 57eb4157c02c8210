"""LoRA files of the user's, chosen by name: what the stock loader makes of one, as a LoRA of whole layers.

The host's own names of layers, conversions and adapters' arithmetic are used, so that what its loader takes
is taken here. A layer's plain LoRAs, also those of slices of it (query, key and value, which Flux holds in
one weight), are put together exactly, at the sum of their ranks. Every other change (LoHa, LoKr, DoRA, OFT,
full differences) is what the host computes for the weight, cut to the run's rank by its singular values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.weight_adapter
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher, get_key_weight

from ...diffusion.faults import BadValue, Message
from ...training.adapter.lora import is_linear, target_layers
from ...training.adapter.low_rank import block_sum, nearest
from ...training.formats.files import load_lora

NONE = "none"
LEFT_OUT = 0.1  # of a change's energy: more than that, and a LoRA of the run's rank doesn't hold it
# adapters whose change doesn't depend on the weight, by the place of what would rescale the sum (DoRA)
ADDED = {"lora": 4, "loha": 7, "lokr": 8}


class _Patch(NamedTuple):
    """A change of the host's to one tensor: its adapter or ("diff", ...), and which part of it is changed."""

    change: Any
    offset: tuple[int, int, int] | None = None  # axis, begin, length
    function: Any = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the file that it is made of."""
        parts = getattr(self.change, "weights", None) or self.change[1]
        return [part for part in parts if torch.is_tensor(part)]


def names() -> list[str]:
    """For a dropdown: "none" and the files of models/loras."""
    return [NONE, *folder_paths.get_filename_list("loras")]


def tensors(
    name: str, model: ModelPatcher, rank: int, partly: bool = False
) -> dict[str, torch.Tensor] | None:
    """The named file's change to a MODEL as LoRA layers in native keys, float32; None for "none".

    Layers that aren't plain LoRA are cut to `rank`. Raises ValueError naming the file when it has no layer of
    this model, and, unless `partly`, when a LoRA of that rank can't hold all of it.
    """
    if name == NONE:
        return None
    with torch.inference_mode(False), torch.no_grad():
        found = load_lora(folder_paths.get_full_path_or_raise("loras", name))[0]
        patches = _patches(found, model)
        shapes = _shapes(model)
        held = {key: patches[key] for key in patches if key in shapes and not _reshaped(key, patches[key])}
        out, left = {}, {}
        for key, changes in held.items():
            up, down, left[key] = _factors(key, changes, model, shapes[key], rank)
            layer = key.removesuffix(".weight")
            out[f"{layer}.lora_up.weight"], out[f"{layer}.lora_down.weight"] = up, down
            out[f"{layer}.alpha"] = torch.tensor(float(len(down)))
    if not out:
        raise BadValue(
            "start_from must be a LoRA for this model, {name} has none of its layers. Choose another file.",
            name=name,
        )
    missed = _missed(patches, held, left)
    if missed and not partly:
        raise BadValue(
            "start_from must be a change that a LoRA of rank {rank} can hold; of {name} it can't hold "
            "{missed}. Raise rank, choose another file, or switch start_partly on to begin with the rest.",
            rank=rank,
            name=name,
            missed=missed,
        )
    return out


def _patches(found: Mapping[str, torch.Tensor], model: ModelPatcher) -> dict[str, list[_Patch]]:
    """{name of a tensor: its changes}, as the stock loader reads the file for this model."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(found)), keys, log_missing=False)
    known, out = model.model.state_dict().keys(), {}
    for place, change in loaded.items():
        key, *part = (place,) if isinstance(place, str) else place  # a tuple names a part of a tensor
        if key in known:
            out.setdefault(key, []).append(_Patch(change, *part))
    return out


def _shapes(model: ModelPatcher) -> dict[str, torch.Size]:
    """{name of the weight: its shape} of every layer that a LoRA may sit on."""
    return {
        f"diffusion_model.{name}.weight": torch.Size((layer.out_features, layer.in_features))
        if is_linear(layer)
        else layer.weight.shape
        for name, layer in target_layers(model.model.diffusion_model).items()
    }


def _reshaped(key: str, changes: Sequence[_Patch]) -> bool:
    """Whether a change gives the layer another shape."""
    adapters = [patch.change for patch in changes if not isinstance(patch.change, tuple)]
    return any(getattr(a, "calculate_shape", lambda key: None)(key) is not None for a in adapters)


def _missed(
    patches: Mapping[str, Sequence[_Patch]], held: Mapping[str, Any], left: Mapping[str, float]
) -> list[Message]:
    """What a LoRA does not hold of the changes; left: the share of each held layer's energy."""
    count = {key: sum(t.numel() for patch in patches[key] for t in patch.tensors) for key in patches}
    other = [key for key in patches if key not in held]
    full = [key for key, share in left.items() if share > LEFT_OUT]
    missed = []
    if other:
        share = sum(count[key] for key in other) / max(1, sum(count.values()))
        missed.append(
            Message(
                "{count} changes of norms, biases and the like, {percent:.2g} % of the file",
                count=len(other),
                percent=100 * share,
            )
        )
    if full:
        missed.append(
            Message(
                "{percent:.0f} % of the change of {count} layers, whose rank is higher",
                percent=100 * sum(left[key] for key in full) / len(full),
                count=len(full),
            )
        )
    return missed


def _factors(
    key: str, changes: Sequence[_Patch], model: ModelPatcher, shape: torch.Size, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(up (out, r), down (r, in), share of the energy that is left out) of a layer's changes together."""
    if all(_is_plain(patch) for patch in changes):
        return *block_sum([_placed(patch, shape) for patch in changes]), 0.0
    change = _difference(key, changes, model, shape).flatten(1).float()
    up, down, left = nearest(change.to(comfy.model_management.get_torch_device()), rank)
    return up.cpu(), down.cpu(), left


def _is_plain(patch: _Patch) -> bool:
    """Whether this is up, down and alpha of a layer or of some of its rows or columns, and nothing else."""
    is_lora = isinstance(patch.change, comfy.weight_adapter.LoRAAdapter)
    return is_lora and patch.function is None and all(value is None for value in patch.change.weights[3:])


def _placed(patch: _Patch, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down) of a plain change, scaled, with zeros where its slice of the layer ends."""
    up, down, alpha = patch.change.weights[:3]
    up, down = up.float().flatten(1), down.float().flatten(1)
    if alpha is not None:
        up = up * (float(alpha) / len(down))
    if patch.offset is None:
        return up, down
    axis, begin, length = patch.offset
    around = (begin, shape[axis] - begin - length)
    if axis == 0:
        return torch.nn.functional.pad(up, (0, 0, *around)), down
    return up, torch.nn.functional.pad(down, around)


def _difference(key: str, changes: Sequence[_Patch], model: ModelPatcher, shape: torch.Size) -> torch.Tensor:
    """What the host's own arithmetic adds to a layer's weight, float64: the sum's rounding stays out."""
    if all(_is_added(patch.change) for patch in changes):
        before = torch.zeros(shape, dtype=torch.float64)
    else:
        before = _weight(model, key)
    ordered = [(1.0, patch.change, 1.0, patch.offset, patch.function) for patch in changes]
    return comfy.lora.calculate_weight(ordered, before.clone(), key) - before


def _is_added(change: Any) -> bool:
    """Whether a change is the same whatever the weight is."""
    if isinstance(change, tuple):
        return change[0] == "diff"
    return change.name in ADDED and change.weights[ADDED[change.name]] is None


def _weight(model: ModelPatcher, key: str) -> torch.Tensor:
    """A weight of the model as the graph has it, LoRAs included, float64 on the CPU."""
    weight, _, convert = get_key_weight(model.model, key)
    if key in model.backup:  # the model is loaded, with patches merged into its weights
        weight = model.backup[key].weight
    whole = comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True)
    if convert is not None:
        whole = convert(whole, inplace=True)
    return comfy.lora.calculate_weight(model.patches.get(key, []), whole.double(), key)
