"""Files of a tiny Flux in every format of weights that the host can load, and what these weights are in plain
numbers. Imported by name, in a process that has the host.
"""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
import zoo

FAMILY = "flux_dev"
FP8 = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
GGUF = "ComfyUI-GGUF"
NO_GGUF = "needs ComfyUI-GGUF (COMFYUI_GGUF: its folder) and its package gguf"
ROTATED = {"convrot": True, "convrot_groupsize": 64}  # the widths of a tiny model are no multiples of 256
ROTATED_INT8 = "int8_tensorwise + convrot"
# what a layout is asked for, and what a file says of it
WANTED = {
    "int8_tensorwise": ({"per_channel": True}, {}),
    "convrot_w4a4": ({"convrot_groupsize": 64}, {"convrot_groupsize": 64}),
    "asym_w4a8_int8": ({"convrot_groupsize": 64}, {"convrot_groupsize": 64, "group_size": 16}),
    ROTATED_INT8: ({"per_channel": True, **ROTATED}, ROTATED),
}


def state_dict():
    return {key: value.contiguous() for key, value in zoo.state_dict(FAMILY).items()}


def layers(tensors, least=0):
    """Keys of the Linear weights, of so many numbers at least, that published files quantise."""
    wanted = {k: w for k, w in tensors.items() if k.endswith(".weight") and w.ndim == 2 and "blocks" in k}
    return [k for k, w in wanted.items() if w.numel() >= least]


def halved(dtype):
    """(tensors of the file, of plain weights, options of the loader)"""
    tensors = {key: value.to(dtype) for key, value in state_dict().items()}
    return tensors, tensors, {}


def fp8(name, **options):
    """Of every tensor, by the loader, as the node's weight_dtype does."""
    tensors = state_dict()
    plain = {key: value.to(FP8[name]).float() for key, value in tensors.items()}
    return tensors, plain, {"dtype": FP8[name], **options}


def scaled(name, dtype, old=False, full=False):
    """fp8 with a scale for each layer, by its own names or by those of older files."""
    tensors = state_dict()
    plain, most = dict(tensors), torch.finfo(FP8[name]).max
    for key in layers(tensors):
        prefix, weight = key.removesuffix("weight"), tensors[key]
        scale = weight.abs().max() / most
        tensors[key] = (weight / scale).to(FP8[name])
        plain[key] = tensors[key].to(dtype) * scale.to(dtype)
        tensors[f"{prefix}scale_weight" if old else f"{prefix}weight_scale"] = scale
        if not old:
            tensors[f"{prefix}comfy_quant"] = said({"format": f"float8_{name}"})
    if old:
        tensors["scaled_fp8"] = torch.zeros(2 if full else 0, dtype=FP8[name])
    return tensors, plain, {}


def layouts():
    """Names of the host's own layouts, whatever this one has."""
    from comfy.quant_ops import QUANT_ALGOS

    return [*QUANT_ALGOS, *(name for name in (ROTATED_INT8,) if name.split(" ")[0] in QUANT_ALGOS)]


def laid_out(name, dtype, least=0):
    """In one of the host's own layouts, packed by the host; least: numbers of a layer that is packed."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    algorithm, (wanted, told) = name.split(" ")[0], WANTED.get(name, ({}, {}))
    tensors = state_dict()
    plain = dict(tensors)
    for key in layers(tensors, least):
        weight = tensors.pop(key)
        packed = QuantizedTensor.from_float(weight, QUANT_ALGOS[algorithm]["comfy_tensor_layout"], **wanted)
        tensors |= packed.state_dict(key)
        tensors[f"{key.removesuffix('weight')}comfy_quant"] = said({"format": algorithm, **told})
        plain[key] = packed.to(dtype).dequantize()
    return tensors, plain, {}


def said(about):
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)


# ---- GGUF ----------------------------------------------------------------------------------------


def gguf_pack():
    """The pack ComfyUI-GGUF, imported as the host imports it: from COMFYUI_GGUF, or of the host's own packs.
    None where the pack or the package `gguf` is missing.
    """
    places = [os.environ.get("COMFYUI_GGUF"), f"{os.environ.get('COMFYUI_PATH')}/custom_nodes/{GGUF}"]
    found = next((Path(p) for p in places if p and (Path(p) / "nodes.py").is_file()), None)
    if found is None or importlib.util.find_spec("gguf") is None:
        return None
    if GGUF not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            GGUF, found / "__init__.py", submodule_search_locations=[str(found)]
        )
        sys.modules[GGUF] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[GGUF])
    return importlib.import_module(f"{GGUF}.nodes")


def gguf(file, kind):
    """Write a file of that kind of blocks; returns the plain weights, as the package itself reads them."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(file), "flux")
    wanted = gguf.GGMLQuantizationType[kind]
    size, length = gguf.GGML_QUANT_SIZES[wanted]
    tensors = state_dict()
    plain, dice = dict(tensors), np.random.default_rng(0)
    for key, weight in tensors.items():
        if key not in layers(tensors) or weight.shape[1] % size:
            writer.add_tensor(key, weight.numpy())
            continue
        blocks = blocks_of(kind, weight, size, length, dice)
        writer.add_tensor(key, blocks, raw_dtype=wanted)
        # the pack works in half precision
        plain[key] = torch.from_numpy(gguf.quants.dequantize(blocks, wanted)).half().float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def gguf_loader(folder, kind):
    """(what loads a file of that kind of blocks as the pack's own node does, the plain weights); None where
    the pack or the package `gguf` is missing.
    """
    import folder_paths

    nodes = gguf_pack()
    if nodes is None:
        return None
    file = f"{kind}.gguf"
    plain = gguf(folder / file, kind)

    def load():
        paths, suffixes = folder_paths.folder_names_and_paths["diffusion_models"]
        folder_paths.folder_names_and_paths["diffusion_models"] = (
            [str(folder), *paths],
            {*suffixes, ".gguf"},
        )
        try:
            with torch.inference_mode():
                return nodes.UnetLoaderGGUF().load_unet(file)[0]
        finally:
            folder_paths.folder_names_and_paths["diffusion_models"] = (paths, suffixes)

    return load, plain


def blocks_of(kind, weight, size, length, dice):
    """Bytes (rows, bytes) of a weight; Q4_K, which the package can't pack, of random ones of its size."""
    import gguf
    import numpy as np

    if kind != "Q4_K":
        return gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    rows, count = weight.shape[0], weight.shape[1] // size
    blocks = dice.integers(0, 256, (rows, count, length), dtype=np.uint8)
    step = float(weight.std()) / 200  # of scales up to 63 and numbers up to 15
    for place, value in ((0, step), (2, 7 * step)):
        blocks[:, :, place : place + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return blocks.reshape(rows, count * length)
