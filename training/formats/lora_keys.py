"""LoRA files for other programs: ComfyUI's native layer names to diffusers' and back.

format    keys                                                                 used by
native    diffusion_model.<ComfyUI layer>.lora_up/lora_down.weight, .alpha     this package, ComfyUI
headless  the same, with diffusers' layer names                                a `Lora` on the module of a
                                                                               `DiffusersDenoiser`
peft      unet.<diffusers layer>.lora_A/lora_B.weight, or transformer.<...>    diffusers'
                                                                               `pipe.load_lora_weights`
kohya     lora_unet_<layer of either, _ for .>.lora_up/lora_down.weight,       most public LoRAs;
          .alpha                                                               `on_layers` reads it

delta W = alpha / rank * up @ down, in peft lora_B @ lora_A: the scale is folded into lora_B there, and every
layer is given the same rank (zeros beyond its own), because older versions of diffusers scale layers of
another rank wrongly. Native and headless files flatten the kernels of convolutions, peft files don't.

Where ComfyUI holds in one layer what diffusers holds in several (qkv; in Flux's single blocks qkv and the
MLP's first layer) `up` is cut by rows, or put together block by block; layers that share `down` keep one.
Where the order of shift and scale differs (the final layer's modulation, and that of SD3's last context
block) the halves of `up` change places. All of it is exact.

family  recognised by
sd1     names of a UNet, cross attention 768 wide     sd3   joint_blocks; pos_embed.proj
sd2     names of a UNet, cross attention 1024 wide    flux  double_blocks or single_blocks;
sdxl    names of a UNet, cross attention 2048 wide          single_transformer_blocks
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from ...diffusion.faults import BadValue, Message
from .layer_names import BLOCKS, FAMILIES, TRANSFORMERS, table
from .precision import holds

Tensors = Mapping[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # up (out, rank), down (rank, in)

WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # of the text that a UNet attends to
# rows of the parts of a fused layer, in units of its input's width
SHARES = {1: (1,), 3: (1, 1, 1), 4: (1, 1, 1, 4)}
SWAPPED = re.compile(
    r"final_layer\.adaLN_modulation\.1|joint_blocks\.\d+\.context_block\.adaLN_modulation\.1"
)
KEY = re.compile(r"(?:diffusion_model|unet|transformer)\.(.+)\.(lora_(?:up|down|A|B)\.weight|alpha)")
KOHYA = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_(.+)\.(lora_(?:up|down)\.weight|alpha)")
OF_TEXT = re.compile(r"(?:lora_te\d*_|text_encoder).+")
HALVES = {
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "alpha": "alpha",
}


def to_diffusers(tensors: Tensors, family: str | None = None, blocks: int | None = None) -> dict:
    """The peft format of a native or headless LoRA, for `pipe.load_lora_weights`.

    family: one of FAMILIES, None to recognise it. blocks: residual blocks a level of a UNet, None to
    recognise them. Raises ValueError naming keys and layers that are not understood; nothing is dropped.
    """
    layers = read(tensors)
    family = family or recognise(layers)
    names = table(family, blocks or count_blocks(layers))
    if layers.keys() <= _all_parts(names):
        pairs = layers
    else:
        check_known(layers, names, family)
        pairs = {}
        for layer, (up, down) in layers.items():
            pairs.update(split(layer, up, down, names[layer]))
    rank = max(down.shape[0] for _, down in pairs.values())
    prefix = "transformer" if family in TRANSFORMERS else "unet"
    out = {}
    for name, (up, down) in pairs.items():
        extra, kernel = rank - down.shape[0], kernel_of(name, family)
        up = torch.nn.functional.pad(up, (0, extra))
        down = torch.nn.functional.pad(down, (0, 0, 0, extra))
        if kernel:
            up, down = up[..., None, None], down.unflatten(1, (-1, kernel, kernel))
        out[f"{prefix}.{name}.lora_A.weight"] = down.contiguous()
        out[f"{prefix}.{name}.lora_B.weight"] = up.contiguous()
    return out


def from_diffusers(tensors: Tensors, family: str | None = None, blocks: int | None = None) -> dict:
    """The native format of a headless or peft LoRA, of which ComfyUI's stock loader takes every key.

    Arguments and errors as in `to_diffusers`.
    """
    layers = read(tensors)
    family = family or recognise(layers)
    names = table(family, blocks or count_blocks(layers))
    theirs = _all_parts(names)
    if not layers.keys() <= theirs and layers.keys() <= names.keys():
        raise BadValue(
            "tensors must be a LoRA with diffusers' layer names, got ComfyUI's: it loads this LoRA as it is."
        )
    check_known(layers, theirs, family)
    out = {}
    for layer, parts in names.items():
        found = [layers.get(name) for name in parts]
        if any(found):
            up, down = fuse(layer, found)
            key = f"diffusion_model.{layer}"
            out[f"{key}.lora_up.weight"] = up.contiguous()
            out[f"{key}.lora_down.weight"] = down.contiguous()
            out[f"{key}.alpha"] = torch.tensor(float(down.shape[0]))
    return out


def _all_parts(names):
    return {name for parts in names.values() for name in parts}


def read(tensors: Tensors) -> dict[str, Pair]:
    """{layer: (up (out, r), down (r, in...) flattened)} of a LoRA in any format, alpha / rank folded into up.

    Raises ValueError naming keys that are not understood, and layers with a half missing or not fitting.
    """
    found, odd = _halves(tensors)
    if odd or not found:
        raise BadValue(
            "tensors must be a LoRA with keys diffusion_model.<layer>.lora_up.weight, .lora_down.weight, "
            ".alpha, or unet. or transformer.<layer>.lora_A.weight, .lora_B.weight, one a layer; got {odd}.",
            odd=listed(odd or ["none"]),
        )
    return {layer: _folded(layer, halves) for layer, halves in found.items()}


def on_layers(
    tensors: Tensors, layers: Collection[str], family: str | None = None, blocks: int | None = None
) -> tuple[dict[str, Pair], list[str]]:
    """({layer of the model: (up, down), alpha / rank folded into up}, keys and layers that are none of it) of
    a LoRA in any format, kohya's too. What belongs to text encoders is passed over.

    layers: the model's own, with diffusers' names where it is of a `family`, and then blocks as in `table`;
    else with ComfyUI's. A layer that has more than a plain LoRA's tensors, or others (DoRA, LoHa, LoKr, a
    middle of a convolution), is none of it. Raises ValueError naming layers with a half missing or not
    fitting.
    """
    names = table(family, blocks or BLOCKS) if family else {}
    own = {key: tensor for key, tensor in tensors.items() if not OF_TEXT.fullmatch(key)}
    known, groups = {*names, *layers}, {}
    for key in own:
        groups.setdefault(_stem(key), []).append(key)
    rest = set(_halves(own, known)[1])
    odd, plain = [], {}
    for stem, keys in groups.items():
        others = [key for key in keys if key in rest]
        if not others and any(not key.endswith(".alpha") for key in keys):
            plain |= {key: own[key] for key in keys}
        else:
            odd += others if others == keys else [stem]
    pairs = {}
    for layer, halves in _halves(plain, known)[0].items():
        up, down = _folded(layer, halves)
        if layer in layers:
            parts = {layer: (up, down)}
        else:
            parts = split(layer, up, down, names[layer]) if layer in names else {}
        here = {name: part for name, part in parts.items() if name in layers}
        pairs |= here
        if not here:
            odd.append(layer)
    return pairs, odd


def _stem(key):
    """What the keys of one layer begin with: down.0 of down.0.alpha and of down.0.lora_up.weight."""
    return key.removesuffix(".weight").rpartition(".")[0]


def _halves(tensors, known=()):
    """({layer: {half: tensor}}, keys that are of none); known: layers that kohya's keys may mean."""
    spelt = {name.replace(".", "_"): name for name in known}
    found, odd = {}, []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        layer = match and match[1]
        if not match and (match := KOHYA.fullmatch(key)):
            layer = spelt.get(match[1])
        if layer and HALVES[match[2]] not in found.get(layer, {}):
            found.setdefault(layer, {})[HALVES[match[2]]] = tensor
        else:
            odd.append(key)
    return found, odd


def _folded(layer, halves):
    """(up, down) of a layer from its tensors by name, its scale folded into up."""
    up, down = halves.get("up"), halves.get("down")
    if up is None or down is None or not _fit(up, down):
        shapes = [Message("{half} {shape}", half=name, shape=tuple(t.shape)) for name, t in halves.items()]
        raise BadValue(
            "tensors must hold up (out, rank) and down (rank, in) of every layer; {layer} has {shapes}.",
            layer=layer,
            shapes=shapes,
        )
    alpha = halves.get("alpha", torch.tensor(float(len(down))))
    if alpha.numel() != 1:
        raise BadValue(
            "tensors must hold one number as alpha of every layer; {layer} has {shape}.",
            layer=layer,
            shape=tuple(alpha.shape),
        )
    scaled = up.flatten(1).float() * (float(alpha) / len(down))
    return scaled.to(up.dtype) if holds(up.dtype, scaled) else scaled, down.flatten(1)


def _fit(up, down):
    """Whether these are matrices with a rank in common."""
    return min(up.ndim, down.ndim) >= 2 and up.flatten(1).shape[1] == down.shape[0] > 0


def split(layer: str, up: torch.Tensor, down: torch.Tensor, parts: Sequence[str]) -> dict[str, Pair]:
    """{diffusers layer: (up, down)} of one native layer; parts: the names as in `table`."""
    if needs_swap(layer, up, down):
        up = torch.cat(up.chunk(2)[::-1])
    if len(parts) == 1:
        return {parts[0]: (up, down)}
    unit, shares = down.shape[1], SHARES[len(parts)]
    if up.shape[0] != unit * sum(shares):
        raise BadValue(
            "tensors must hold {layer} with {rows} rows in lora_up for an input {columns} wide, got {got}: a "
            "model of another kind.",
            layer=layer,
            rows=unit * sum(shares),
            columns=unit,
            got=up.shape[0],
        )
    out = {}
    for name, rows in zip(parts, up.split([unit * share for share in shares])):
        used = rows.any(0)  # rank by rank: blocks that `fuse` put together come apart again
        used[0] |= not used.any()
        out[name] = rows[:, used], down[used]
    return out


def fuse(layer: str, pairs: Sequence[Pair | None]) -> Pair:
    """(up, down) of a native layer from its parts', None where a part has no LoRA; the inverse of `split`."""
    shares = SHARES[len(pairs)]
    first_up, first_down = next(pair for pair in pairs if pair)
    if len(pairs) == 1:
        up = torch.cat(first_up.chunk(2)[::-1]) if needs_swap(layer, first_up, first_down) else first_up
        return up, first_down
    unit = first_down.shape[1]
    for pair, share in zip(pairs, shares):
        if pair and (pair[0].shape[0] != unit * share or pair[1].shape[1] != unit):
            raise BadValue(
                "tensors must hold the parts of {layer} with {rows} rows in up and {columns} columns in "
                "down, got {got_rows} and {got_columns}: a model of another kind.",
                layer=layer,
                rows=unit * share,
                columns=unit,
                got_rows=pair[0].shape[0],
                got_columns=pair[1].shape[1],
            )
    if all(pair and torch.equal(pair[1], first_down) for pair in pairs):
        return torch.cat([up for up, _ in pairs]), first_down
    ups = [pair[0] if pair else first_up.new_zeros(unit * share, 0) for pair, share in zip(pairs, shares)]
    return torch.block_diag(*ups), torch.cat([pair[1] for pair in pairs if pair])


def needs_swap(layer: str, up: torch.Tensor, down: torch.Tensor) -> bool:
    """Whether shift and scale change places: diffusers swaps them in layers that hold these two alone."""
    return bool(SWAPPED.fullmatch(layer)) and up.shape[0] == 2 * down.shape[1]


def kernel_of(name: str, family: str) -> int:
    """Side of the kernel of a diffusers layer, 0 where it is linear."""
    last = name.rsplit(".", 1)[-1]
    if last in ("conv1", "conv2", "conv", "conv_in", "conv_out"):
        return 3
    if last == "conv_shortcut" or (family == "sd1" and last in ("proj_in", "proj_out")):
        return 1
    return 2 if name == "pos_embed.proj" else 0


def recognise(layers: Mapping[str, Pair]) -> str:
    """The family of {layer: (up, down)}, names of either side; raises ValueError when they do not say."""
    text = " ".join(layers)
    if "double_blocks." in text or "single_blocks." in text or "single_transformer_blocks." in text:
        return "flux"
    if "joint_blocks." in text or "pos_embed.proj" in layers:
        return "sd3"
    unet = re.compile(
        r"(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)\..*attn2\.to_[kv]"
    )
    widths = {down.shape[1] for name, (_, down) in layers.items() if unet.fullmatch(name)}
    if len(widths) == 1 and (width := widths.pop()) in WIDTHS:
        return WIDTHS[width]
    raise BadValue(
        "family must be given, one of {families}: the layers of this LoRA do not tell ({layers}).",
        families=list(FAMILIES),
        layers=listed(layers),
    )


def count_blocks(layers: Collection[str]) -> int:
    """Residual blocks a level of a UNet, as far as layer names tell; else those of SD1, SD2 and SDXL."""

    def numbers(pattern):
        return [int(match[1]) for name in layers if (match := re.match(pattern, name))]

    resampling = numbers(r"input_blocks\.(\d+)\.0\.op$")
    if any(n % (BLOCKS + 1) for n in resampling):
        return min(resampling) - 1
    down, up = (
        max(numbers(rf"{way}_blocks\.\d+\.(?:resnets|attentions)\.(\d+)\."), default=-1)
        for way in ("down", "up")
    )
    return up if up == down + 1 > 0 else BLOCKS


def check_known(layers: Iterable[str], names: Collection[str], family: str) -> None:
    """Raise ValueError listing the layers that are not among `names`."""
    if odd := [layer for layer in layers if layer not in names]:
        raise BadValue(
            "tensors must be a LoRA of {family}; that architecture has no {odd}. Name another family "
            "({families}) if it was taken for the wrong one.",
            family=family,
            odd=listed(odd),
            families=list(FAMILIES),
        )


def listed(names: Iterable[str], most: int = 4) -> Message:
    """The first `most` of these, and how many more there are."""
    names = list(names)
    if len(names) <= most:
        return Message("{names}", names=names)
    return Message("{names} and {more} more", names=names[:most], more=len(names) - most)
