"""LoRA files of the user's, chosen by name, in whatever keys the host knows."""

import comfy.lora
import comfy.lora_convert
import comfy.weight_adapter
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ...diffusion.faults import BadValue
from ...training.formats.files import load_lora

NONE = "none"


def names() -> list[str]:
    """For a dropdown: "none" and the files of models/loras."""
    return [NONE, *folder_paths.get_filename_list("loras")]


def tensors(name: str, model: ModelPatcher) -> dict[str, torch.Tensor] | None:
    """The LoRA layers of the named file in native keys, for a MODEL; None for "none".

    Raises ValueError naming the file when it has no layer of this model, or layers that are not plain LoRA
    (LoKr, DoRA, ...).
    """
    if name == NONE:
        return None
    with torch.inference_mode(False):
        found = load_lora(folder_paths.get_full_path_or_raise("loras", name))[0]
        keys = comfy.lora.model_lora_keys_unet(model.model, {})
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(found), keys, log_missing=False)
    out = {}
    for key, patch in patches.items():
        if not _is_plain(key, patch):
            raise BadValue(
                "start_from must be a plain LoRA of whole layers; {name} has other changes at {layer}. "
                "Choose another file, or apply this one to the model with a LoRA loader.",
                name=name,
                layer=key,
            )
        up, down, alpha = patch.weights[:3]
        layer = key.removesuffix(".weight")
        out[f"{layer}.lora_up.weight"], out[f"{layer}.lora_down.weight"] = up, down
        if alpha is not None:
            out[f"{layer}.alpha"] = torch.tensor(float(alpha))
    if not out:
        raise BadValue(
            "start_from must be a LoRA for this model, {name} has none of its layers. Choose another file.",
            name=name,
        )
    return out


def _is_plain(key: object, patch: object) -> bool:
    """Whether a patch of the host's is up, down and alpha of a whole layer, and nothing else."""
    is_whole = isinstance(key, str)  # a tuple names a part of a tensor
    is_lora = isinstance(patch, comfy.weight_adapter.LoRAAdapter)
    return is_whole and is_lora and all(value is None for value in patch.weights[3:])
