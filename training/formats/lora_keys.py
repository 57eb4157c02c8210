"""LoRA files for other programs: ComfyUI's native layer names to diffusers' and back.

format      keys                                                             used by
native      diffusion_model.<ComfyUI layer>.lora_up/lora_down.weight, .alpha  this package, ComfyUI
headless    the same, with diffusers' layer names                            a `Lora` on a
            `DiffusersDenoiser`'s module
peft        unet.<diffusers layer>.lora_A/lora_B.weight, or transformer.     diffusers'
            `pipe.load_lora_weights`

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
                                                            single_transformer_blocks
sdxl    names of a UNet, cross attention 2048 wide

The names follow from how the two sides number blocks (`table`): ComfyUI counts all blocks of a UNet in one
row, `blocks` residual ones a level and one more that resamples (going up: one residual block more, which
resamples too); diffusers counts in each level.
"""

import functools
import re

import torch

from ...diffusion.faults import BadValue

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # of the text that a UNet attends to
BLOCKS = 2  # residual blocks a level of SD1, SD2 and SDXL
MOST = {"levels": 4, "depth": 12, "transformer": 100}  # more than any model of these families has
SHARES = {
    1: (1,),
    3: (1, 1, 1),
    4: (1, 1, 1, 4),
}  # rows of the parts of a fused layer, in units of its input's width
SWAPPED = re.compile(
    r"final_layer\.adaLN_modulation\.1|joint_blocks\.\d+\.context_block\.adaLN_modulation\.1"
)
KEY = re.compile(r"(?:diffusion_model|unet|transformer)\.(.+)\.(lora_(?:up|down|A|B)\.weight|alpha)")
HALVES = {
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "alpha": "alpha",
}


def to_diffusers(tensors, family=None, blocks=None):
    """The peft format of a native or headless LoRA, for `pipe.load_lora_weights`.

    family: one of FAMILIES, None to recognise it. blocks: residual blocks a level of a UNet, None to
    recognise them. Raises ValueError naming keys and layers that are not understood; nothing is dropped.
    """
    layers = read(tensors)
    family = family or recognise(layers)
    names = table(family, blocks or count_blocks(layers))
    if unknown(layers, names):
        other = [name for parts in names.values() for name in parts]
        check_known(layers, other if not unknown(layers, other) else names, family)
        pairs = layers
    else:
        pairs = {}
        for layer, (up, down) in layers.items():
            pairs.update(split(layer, up, down, names[layer]))
    rank = max(down.shape[0] for _, down in pairs.values())
    prefix = "transformer" if family in ("sd3", "flux") else "unet"
    out = {}
    for name, (up, down) in pairs.items():
        extra, kernel = rank - down.shape[0], kernel_of(name, family)
        up, down = torch.nn.functional.pad(up, (0, extra)), torch.nn.functional.pad(down, (0, 0, 0, extra))
        if kernel:
            up, down = up[..., None, None], down.unflatten(1, (-1, kernel, kernel))
        out[f"{prefix}.{name}.lora_A.weight"], out[f"{prefix}.{name}.lora_B.weight"] = (
            down.contiguous(),
            up.contiguous(),
        )
    return out


def from_diffusers(tensors, family=None, blocks=None):
    """The native format of a headless or peft LoRA, of which ComfyUI's stock loader takes every key.

    Arguments and errors as in `to_diffusers`.
    """
    layers = read(tensors)
    family = family or recognise(layers)
    names = table(family, blocks or count_blocks(layers))
    theirs = [name for parts in names.values() for name in parts]
    if unknown(layers, theirs) and not unknown(layers, names):
        raise BadValue(
            "tensors must be a LoRA with diffusers' layer names, got ComfyUI's: it loads this LoRA as it is.",
        )
    check_known(layers, theirs, family)
    out = {}
    for layer, parts in names.items():
        found = [layers.get(name) for name in parts]
        if any(found):
            up, down = fuse(layer, found)
            key = f"diffusion_model.{layer}"
            out[f"{key}.lora_up.weight"], out[f"{key}.lora_down.weight"] = up.contiguous(), down.contiguous()
            out[f"{key}.alpha"] = torch.tensor(float(down.shape[0]))
    return out


def read(tensors):
    """{layer: (up (out, r), down (r, in...) flattened)} of a LoRA in any of the formats, alpha / rank folded
    into up.

    Raises ValueError naming keys that are not understood, and layers of which a half is missing or does not
    fit.
    """
    found, odd = {}, []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match and HALVES[match[2]] not in found.get(match[1], {}):
            found.setdefault(match[1], {})[HALVES[match[2]]] = tensor
        else:
            odd.append(key)
    if odd or not found:
        raise ValueError(
            "tensors must be a LoRA with keys diffusion_model.<layer>.lora_up.weight, .lora_down.weight, .alpha, or "
            f"unet. or transformer.<layer>.lora_A.weight, .lora_B.weight, one a layer; got {listed(odd) or 'none'}."
        )
    layers = {}
    for layer, halves in found.items():
        up, down = halves.get("up"), halves.get("down")
        if (
            up is None
            or down is None
            or min(up.ndim, down.ndim) < 2
            or up.flatten(1).shape[1] != down.shape[0]
            or not len(down)
        ):
            raise ValueError(
                f"tensors must hold up (out, rank) and down (rank, in) of every layer; {layer} has "
                f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in halves.items())}."
            )
        alpha = halves.get("alpha", torch.tensor(float(len(down))))
        if alpha.numel() != 1:
            raise BadValue(
                "tensors must hold one number as alpha of every layer; {layer} has {shape}.",
                layer=layer,
                shape=tuple(alpha.shape),
            )
        scale = float(alpha) / len(down)
        layers[layer] = (up.flatten(1).float() * scale).to(up.dtype), down.flatten(1)
    return layers


def split(layer, up, down, parts):
    """{diffusers layer: (up, down)} of one native layer; parts: the names as in `table`."""
    if needs_swap(layer, up, down):
        up = torch.cat(up.chunk(2)[::-1])
    if len(parts) == 1:
        return {parts[0]: (up, down)}
    unit, shares = down.shape[1], SHARES[len(parts)]
    if up.shape[0] != unit * sum(shares):
        raise BadValue(
            "tensors must hold {layer} with {unit} rows in lora_up for an input {unit2} wide, got {got}: a "
            "model of another kind.",
            layer=layer,
            unit=unit * sum(shares),
            unit2=unit,
            got=up.shape[0],
        )
    out = {}
    for name, rows in zip(parts, up.split([unit * share for share in shares])):
        used = rows.any(0)  # rank by rank: blocks that `fuse` put together come apart again
        used[0] |= not used.any()
        out[name] = rows[:, used], down[used]
    return out


def fuse(layer, pairs):
    """(up, down) of a native layer from those of its parts, None where a part has no LoRA; the inverse of
    `split`.
    """
    shares = SHARES[len(pairs)]
    first_up, first_down = next(pair for pair in pairs if pair)
    if len(pairs) == 1:
        up = torch.cat(first_up.chunk(2)[::-1]) if needs_swap(layer, first_up, first_down) else first_up
        return up, first_down
    unit = first_down.shape[1]
    for pair, share in zip(pairs, shares):
        if pair and (pair[0].shape[0] != unit * share or pair[1].shape[1] != unit):
            raise BadValue(
                "tensors must hold the parts of {layer} with {unit} rows in up and {unit2} columns in "
                "down, got {got} and {shape}: a model of another kind.",
                layer=layer,
                unit=unit * share,
                unit2=unit,
                got=pair[0].shape[0],
                shape=pair[1].shape[1],
            )
    if all(pair and torch.equal(pair[1], first_down) for pair in pairs):
        return torch.cat([up for up, _ in pairs]), first_down
    ups = [pair[0] if pair else first_up.new_zeros(unit * share, 0) for pair, share in zip(pairs, shares)]
    return torch.block_diag(*ups), torch.cat([pair[1] for pair in pairs if pair])


def needs_swap(layer, up, down):
    """Whether shift and scale change places: layers with these two alone, which diffusers has the other way
    round.
    """
    return bool(SWAPPED.fullmatch(layer)) and up.shape[0] == 2 * down.shape[1]


def kernel_of(name, family):
    """Side of the kernel of a diffusers layer, 0 where it is linear."""
    last = name.rsplit(".", 1)[-1]
    if last in ("conv1", "conv2", "conv", "conv_in", "conv_out"):
        return 3
    if last == "conv_shortcut" or (family == "sd1" and last in ("proj_in", "proj_out")):
        return 1
    return 2 if name == "pos_embed.proj" else 0


def recognise(layers):
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


def count_blocks(layers):
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


def unknown(layers, names):
    names = set(names)
    return [layer for layer in layers if layer not in names]


def check_known(layers, names, family):
    """Raise ValueError listing the layers that are not among `names`."""
    if odd := unknown(layers, names):
        raise BadValue(
            "tensors must be a LoRA of {family}; that architecture has no {odd}. Name another family "
            "({families}) if it was taken for the wrong one.",
            family=family,
            odd=listed(odd),
            families=list(FAMILIES),
        )


def listed(names, most=4):
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- the names -------------------------------------------------------------------------------------


@functools.cache
def table(family, blocks=BLOCKS):
    """{native layer: (diffusers layers)} of a family, one of FAMILIES; three or four of the latter where
    native is fused.
    """
    if family not in FAMILIES:
        raise BadValue("family must be one of {families}, got {got!r}.", families=list(FAMILIES), got=family)
    return {"sd3": sd3_table, "flux": flux_table}.get(family, functools.partial(unet_table, family, blocks))()


def unet_table(family, blocks):
    resnet = {
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    attention = ["proj_in", "proj_out"]
    for depth in range(MOST["depth"]):
        inside = [
            f"{attn}.{part}" for attn in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")
        ]
        attention += [f"transformer_blocks.{depth}.{part}" for part in (*inside, "ff.net.0.proj", "ff.net.2")]
    out = {"input_blocks.0.0": "conv_in", "out.2": "conv_out"}
    for native, theirs in (("time_embed", "time_embedding"), ("label_emb.0", "add_embedding")):
        out |= {f"{native}.0": f"{theirs}.linear_1", f"{native}.2": f"{theirs}.linear_2"}
    stages = [
        ("middle_block.0", "mid_block.resnets.0", resnet),
        ("middle_block.2", "mid_block.resnets.1", resnet),
        ("middle_block.1", "mid_block.attentions.0", dict(zip(attention, attention))),
    ]
    for level in range(MOST["levels"]):
        for i in range(blocks + 1):
            down, up = 1 + level * (blocks + 1) + i, level * (blocks + 1) + i
            for native, theirs in (
                (f"input_blocks.{down}", f"down_blocks.{level}"),
                (f"output_blocks.{up}", f"up_blocks.{level}"),
            ):
                if i < blocks or theirs.startswith("up"):
                    stages += [
                        (f"{native}.0", f"{theirs}.resnets.{i}", resnet),
                        (f"{native}.1", f"{theirs}.attentions.{i}", dict(zip(attention, attention))),
                    ]
        out[f"input_blocks.{down}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        # after the attention, which the first level up of SD1 and SD2 has not
        out[f"output_blocks.{up}.{1 if family != 'sdxl' and level == 0 else 2}.conv"] = (
            f"up_blocks.{level}.upsamplers.0.conv"
        )
    for native, theirs, inside in stages:
        out |= {f"{native}.{a}": f"{theirs}.{b}" for a, b in inside.items()}
    return {native: (theirs,) for native, theirs in out.items()}


def qkv(attention, added=False):
    """diffusers' names of the three parts of a joint attention's qkv; added: those of the text."""
    return tuple(f"{attention}.{f'add_{part}_proj' if added else f'to_{part}'}" for part in "qkv")


def embedder(name):
    return {
        "t": "time_text_embed.timestep_embedder",
        "y": "time_text_embed.text_embedder",
        "g": "time_text_embed.guidance_embedder",
    }[name]


def sd3_table():
    out = {
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    for name in "ty":
        out |= {
            f"{name}_embedder.mlp.0": f"{embedder(name)}.linear_1",
            f"{name}_embedder.mlp.2": f"{embedder(name)}.linear_2",
        }
    for i in range(MOST["transformer"]):
        x, context, theirs = (
            f"joint_blocks.{i}.x_block",
            f"joint_blocks.{i}.context_block",
            f"transformer_blocks.{i}",
        )
        out |= {
            f"{x}.attn.qkv": qkv(f"{theirs}.attn"),
            f"{context}.attn.qkv": qkv(f"{theirs}.attn", True),
            f"{x}.attn2.qkv": qkv(f"{theirs}.attn2"),
            f"{x}.attn2.proj": f"{theirs}.attn2.to_out.0",
            f"{x}.attn.proj": f"{theirs}.attn.to_out.0",
            f"{context}.attn.proj": f"{theirs}.attn.to_add_out",
        }
        for native, norm, ff in ((x, "norm1", "ff"), (context, "norm1_context", "ff_context")):
            out |= {
                f"{native}.adaLN_modulation.1": f"{theirs}.{norm}.linear",
                f"{native}.mlp.fc1": f"{theirs}.{ff}.net.0.proj",
                f"{native}.mlp.fc2": f"{theirs}.{ff}.net.2",
            }
    return {native: theirs if isinstance(theirs, tuple) else (theirs,) for native, theirs in out.items()}


def flux_table():
    out = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    for native, name in (("time_in", "t"), ("vector_in", "y"), ("guidance_in", "g")):
        out |= {
            f"{native}.in_layer": f"{embedder(name)}.linear_1",
            f"{native}.out_layer": f"{embedder(name)}.linear_2",
        }
    for i in range(MOST["transformer"]):
        double, single, theirs = f"double_blocks.{i}", f"single_blocks.{i}", f"transformer_blocks.{i}"
        for native, norm, ff, last in (
            ("img", "norm1", "ff", "to_out.0"),
            ("txt", "norm1_context", "ff_context", "to_add_out"),
        ):
            out |= {
                f"{double}.{native}_attn.qkv": qkv(f"{theirs}.attn", native == "txt"),
                f"{double}.{native}_attn.proj": f"{theirs}.attn.{last}",
                f"{double}.{native}_mod.lin": f"{theirs}.{norm}.linear",
                f"{double}.{native}_mlp.0": f"{theirs}.{ff}.net.0.proj",
                f"{double}.{native}_mlp.2": f"{theirs}.{ff}.net.2",
            }
        theirs = f"single_{theirs}"
        out |= {
            f"{single}.linear1": (*qkv(f"{theirs}.attn"), f"{theirs}.proj_mlp"),
            f"{single}.linear2": f"{theirs}.proj_out",
            f"{single}.modulation.lin": f"{theirs}.norm.linear",
        }
    return {native: theirs if isinstance(theirs, tuple) else (theirs,) for native, theirs in out.items()}
