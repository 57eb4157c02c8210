"""The names of a model's layers in ComfyUI and in diffusers.

ComfyUI's stock loader knows diffusers' names as well, those of the attention of UNets in another spelling
only. The tables are here because diffusers does not know ComfyUI's: `lora_keys.to_diffusers` needs all of
them, and `lora_keys.from_diffusers` is the same tables read backwards.

The names of a UNet follow from how the two sides number its blocks: ComfyUI counts all of them in one row,
`blocks` residual ones a level and one more that resamples (going up: one residual block more, which resamples
too); diffusers counts in each level.
"""

import functools

from ...diffusion.faults import BadValue

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
BLOCKS = 2  # residual blocks a level of SD1, SD2 and SDXL
# more than any model of these families has
LEVELS = 4  # of a UNet
DEPTH = 12  # blocks of a UNet's attention
MOST_BLOCKS = 100  # of a transformer

# The names, a layer a line: ComfyUI's, then diffusers'. # counts blocks. Where ComfyUI has several layers in
# one, the ends of diffusers' names follow their common start.

UNET = """
input_blocks.0.0    conv_in
out.2               conv_out
time_embed.0        time_embedding.linear_1
time_embed.2        time_embedding.linear_2
label_emb.0.0       add_embedding.linear_1
label_emb.0.2       add_embedding.linear_2
"""
RESNET = """
in_layers.2         conv1
emb_layers.1        time_emb_proj
out_layers.3        conv2
skip_connection     conv_shortcut
"""
# of a block of its attention, named alike on both sides
ATTENTION = (
    "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 attn2.to_q attn2.to_k attn2.to_v attn2.to_out.0 "
    "ff.net.0.proj ff.net.2"
).split()
SD3 = """
x_embedder.proj                                  pos_embed.proj
context_embedder                                 context_embedder
t_embedder.mlp.0                                 time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2                                 time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0                                 time_text_embed.text_embedder.linear_1
y_embedder.mlp.2                                 time_text_embed.text_embedder.linear_2
joint_blocks.#.x_block.attn.qkv                  transformer_blocks.#.attn. to_q to_k to_v
joint_blocks.#.x_block.attn.proj                 transformer_blocks.#.attn.to_out.0
joint_blocks.#.x_block.attn2.qkv                 transformer_blocks.#.attn2. to_q to_k to_v
joint_blocks.#.x_block.attn2.proj                transformer_blocks.#.attn2.to_out.0
joint_blocks.#.x_block.adaLN_modulation.1        transformer_blocks.#.norm1.linear
joint_blocks.#.x_block.mlp.fc1                   transformer_blocks.#.ff.net.0.proj
joint_blocks.#.x_block.mlp.fc2                   transformer_blocks.#.ff.net.2
joint_blocks.#.context_block.attn.qkv            transformer_blocks.#.attn. add_q_proj add_k_proj add_v_proj
joint_blocks.#.context_block.attn.proj           transformer_blocks.#.attn.to_add_out
joint_blocks.#.context_block.adaLN_modulation.1  transformer_blocks.#.norm1_context.linear
joint_blocks.#.context_block.mlp.fc1             transformer_blocks.#.ff_context.net.0.proj
joint_blocks.#.context_block.mlp.fc2             transformer_blocks.#.ff_context.net.2
final_layer.adaLN_modulation.1                   norm_out.linear
final_layer.linear                               proj_out
"""
FLUX = """
img_in                          x_embedder
txt_in                          context_embedder
time_in.in_layer                time_text_embed.timestep_embedder.linear_1
time_in.out_layer               time_text_embed.timestep_embedder.linear_2
vector_in.in_layer              time_text_embed.text_embedder.linear_1
vector_in.out_layer             time_text_embed.text_embedder.linear_2
guidance_in.in_layer            time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer           time_text_embed.guidance_embedder.linear_2
double_blocks.#.img_attn.qkv    transformer_blocks.#.attn. to_q to_k to_v
double_blocks.#.img_attn.proj   transformer_blocks.#.attn.to_out.0
double_blocks.#.img_mod.lin     transformer_blocks.#.norm1.linear
double_blocks.#.img_mlp.0       transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.2       transformer_blocks.#.ff.net.2
double_blocks.#.txt_attn.qkv    transformer_blocks.#.attn. add_q_proj add_k_proj add_v_proj
double_blocks.#.txt_attn.proj   transformer_blocks.#.attn.to_add_out
double_blocks.#.txt_mod.lin     transformer_blocks.#.norm1_context.linear
double_blocks.#.txt_mlp.0       transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.2       transformer_blocks.#.ff_context.net.2
single_blocks.#.linear1         single_transformer_blocks.#. attn.to_q attn.to_k attn.to_v proj_mlp
single_blocks.#.linear2         single_transformer_blocks.#.proj_out
single_blocks.#.modulation.lin  single_transformer_blocks.#.norm.linear
final_layer.adaLN_modulation.1  norm_out.linear
final_layer.linear              proj_out
"""
TRANSFORMERS = {"sd3": SD3, "flux": FLUX}


@functools.cache
def table(family: str, blocks: int = BLOCKS) -> dict[str, tuple[str, ...]]:
    """{native layer: (diffusers layers)} of a family, one of FAMILIES; three or four of the latter where the
    native layer is fused. blocks: residual blocks a level of a UNet.
    """
    if family not in FAMILIES:
        raise BadValue("family must be one of {families}, got {got!r}.", families=list(FAMILIES), got=family)
    if family in TRANSFORMERS:
        return _rows(TRANSFORMERS[family])
    out, resnet = _rows(UNET), _rows(RESNET)
    inside = [f"transformer_blocks.{depth}.{name}" for depth in range(DEPTH) for name in ATTENTION]
    attention = {name: (name,) for name in ("proj_in", "proj_out", *inside)}

    def add(native, theirs, names):
        for name, (other,) in names.items():
            out[f"{native}.{name}"] = (f"{theirs}.{other}",)

    def add_pair(native, theirs, i):
        add(f"{native}.0", f"{theirs}.resnets.{i}", resnet)
        add(f"{native}.1", f"{theirs}.attentions.{i}", attention)

    add("middle_block.0", "mid_block.resnets.0", resnet)
    add("middle_block.1", "mid_block.attentions.0", attention)
    add("middle_block.2", "mid_block.resnets.1", resnet)
    for level in range(LEVELS):
        first = level * (blocks + 1)
        for i in range(blocks):
            add_pair(f"input_blocks.{1 + first + i}", f"down_blocks.{level}", i)
        for i in range(blocks + 1):
            add_pair(f"output_blocks.{first + i}", f"up_blocks.{level}", i)
        # after the attention, which the first level up of SD1 and SD2 has not
        place = 1 if level == 0 and family != "sdxl" else 2
        out[f"input_blocks.{1 + first + blocks}.0.op"] = (f"down_blocks.{level}.downsamplers.0.conv",)
        out[f"output_blocks.{first + blocks}.{place}.conv"] = (f"up_blocks.{level}.upsamplers.0.conv",)
    return out


def _rows(text):
    """A table of names as {native: (diffusers')}."""
    out = {}
    for line in text.strip().splitlines():
        for number in range(MOST_BLOCKS if "#" in line else 1):
            native, start, *ends = line.replace("#", str(number)).split()
            out[native] = tuple(start + end for end in ends or [""])
    return out
