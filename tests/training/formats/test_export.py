"""LoRA formats: native, headless and peft are one LoRA, and diffusers loads every layer of it."""

import pytest
import torch
from fewstep.training.adapter.lora import Lora, target_layers
from fewstep.training.formats.files import load_lora, save_lora
from fewstep.training.formats.lora_keys import (
    FAMILIES,
    count_blocks,
    from_diffusers,
    read,
    recognise,
    table,
    to_diffusers,
)
from fewstep.training.formats.recipe import Recipe

pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
pytest.importorskip("peft", reason="needs peft: pip install peft")
from tiny_diffusers import conditionings, module, pipeline, raw

RECIPE = Recipe(method="consistency", path="flow", sigmas=(1.0, 0.5, 0.0), base="abc")
LEVELS = {"sd1": 4, "sd2": 4, "sdxl": 3}


def whole(family, **changes):
    """A tiny module with all the layers of that family, UNets with all their levels."""
    return module(family, levels=LEVELS.get(family, 1), **changes)


def trained(net, rank=2, alpha=3.0, **options):
    """A `Lora` on it with random weights on both sides."""
    lora = Lora(net, rank, alpha, **options)
    g = torch.Generator().manual_seed(6)
    lora.load([0.1 * torch.randn(p.shape, generator=g) for p in lora.parameters()])
    return lora


def deltas(tensors):
    """{layer: delta W (out, in...) as a matrix} of a LoRA in any format, in float64."""
    names = {k.split(".", 1)[1].rsplit(".lora_", 1)[0] for k in tensors if ".lora_" in k}
    out = {}
    for name in names:
        got = {
            k.split(".", 1)[1].removeprefix(f"{name}."): v.double().flatten(1)
            for k, v in tensors.items()
            if k.split(".", 1)[1].startswith(f"{name}.lora_")
        }
        up = got.get("lora_up.weight", got.get("lora_B.weight"))
        down = got.get("lora_down.weight", got.get("lora_A.weight"))
        out[name] = up @ down * float(tensors.get(f"diffusion_model.{name}.alpha", len(down))) / len(down)
    return out


def loaded(net):
    """{layer: delta W as a matrix} of what peft has put on a module."""
    return {
        name: (
            (m.lora_B["default_0"].weight.flatten(1) @ m.lora_A["default_0"].weight.flatten(1))
            .detach()
            .double()
            * m.scaling["default_0"]
        )
        for name, m in net.named_modules()
        if hasattr(m, "lora_A")
    }


def same(a, b):
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-12)) for k in a)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_a_headless_lora_through_the_native_format_and_acts_alike(family):
    net, other = whole(family), whole(family)
    lora = trained(net)
    headless = lora.state_dict()
    native = from_diffusers(headless, family)
    peft = to_diffusers(native, family)
    prefix = {k.split(".")[0] for k in peft}
    assert prefix == {"transformer" if family in ("sd3", "flux") else "unet"}
    assert (
        same(deltas(peft), deltas(headless)) < 1e-6
        and same(deltas(to_diffusers(headless, family)), deltas(headless)) < 1e-6
    )

    other.load_lora_adapter(peft, prefix=prefix.pop())
    assert set(loaded(other)) == set(target_layers(net)) and same(loaded(other), deltas(headless)) < 1e-6
    x = torch.randn(1, 4 if family in LEVELS else 16, 16, 16, generator=torch.Generator().manual_seed(7))
    t, item = torch.tensor([400.0]), conditionings(family)[0]
    ours, theirs = raw(family, net, x, t, item), raw(family, other, x, t, item)
    with lora.off():
        assert (ours - raw(family, net, x, t, item)).abs().max() > 1e-3 * ours.abs().max()
    assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_loads_the_file_and_nothing_is_left_over(family, tmp_path, caplog):
    pipe = pipeline(family)
    part = pipe.transformer if family in ("sd3", "flux") else pipe.unet
    layers, native = set(target_layers(part)), from_diffusers(trained(part).state_dict(), family)
    path = save_lora(tmp_path / "x.safetensors", to_diffusers(native, family), RECIPE)
    part_lora = loaded_by(pipe, tmp_path, caplog)
    assert set(part_lora) == layers and same(part_lora, deltas(load_lora(path)[0])) < 1e-6
    assert load_lora(path)[1] == RECIPE


def loaded_by(pipe, folder, caplog):
    """What `pipe.load_lora_weights` puts on the network from x.safetensors there, without a warning."""
    from diffusers.utils import logging

    part = getattr(pipe, "transformer", None) or pipe.unet
    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING", logger="diffusers"):
            caplog.clear()
            pipe.load_lora_weights(str(folder), weight_name="x.safetensors")
    finally:
        logging.disable_propagation()
    words = [r.getMessage() for r in caplog.records if r.name.startswith("diffusers")]
    assert [
        w for w in words if not w.startswith("No LoRA keys associated to CLIP")
    ] == []  # there is none for the text encoders
    return loaded(part)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_comes_back_from_diffusers(family):
    """Every layer of another rank and alpha; the peft file has one rank."""
    like = from_diffusers(Lora(whole(family), 1).state_dict(), family)
    g, native = torch.Generator().manual_seed(8), {}
    for number, name in enumerate(sorted({k.rsplit(".lora_", 1)[0] for k in like if ".lora_" in k})):
        rank, up, down = 1 + number % 3, like[f"{name}.lora_up.weight"], like[f"{name}.lora_down.weight"]
        native[f"{name}.lora_up.weight"] = torch.randn(len(up), rank, generator=g)
        native[f"{name}.lora_down.weight"] = torch.randn(rank, down.shape[1], generator=g)
        native[f"{name}.alpha"] = torch.tensor(0.7 + number)
    peft = to_diffusers(native, family)
    assert {len(v) for k, v in peft.items() if k.endswith("lora_A.weight")} == {3}
    back = from_diffusers(peft, family)
    assert back.keys() == native.keys() and same(deltas(back), deltas(native)) < 1e-6
    assert max(len(v) for k, v in back.items() if "lora_down" in k) == 3  # parts that share `down` keep one


KNOWN = [  # of the published models
    ("sd1", "input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
    ("sd1", "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
    (
        "sd1",
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    ),
    ("sd1", "input_blocks.11.0.out_layers.3", "down_blocks.3.resnets.1.conv2"),
    ("sd1", "middle_block.1.proj_in", "mid_block.attentions.0.proj_in"),
    ("sd1", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
    ("sd1", "output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    (
        "sd1",
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
    ),
    ("sdxl", "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
    ("sdxl", "label_emb.0.2", "add_embedding.linear_2"),
    (
        "sdxl",
        "input_blocks.8.1.transformer_blocks.9.attn1.to_out.0",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_out.0",
    ),
    ("sd3", "joint_blocks.23.context_block.attn.qkv", "transformer_blocks.23.attn.add_q_proj"),
    ("sd3", "joint_blocks.3.x_block.mlp.fc1", "transformer_blocks.3.ff.net.0.proj"),
    ("flux", "double_blocks.18.txt_mlp.2", "transformer_blocks.18.ff_context.net.2"),
    ("flux", "single_blocks.37.modulation.lin", "single_transformer_blocks.37.norm.linear"),
    ("flux", "single_blocks.0.linear2", "single_transformer_blocks.0.proj_out"),
]


@pytest.mark.parametrize("family, native, theirs", KNOWN)
def test_known_names(family, native, theirs):
    assert table(family)[native][0] == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_stands_twice(family):
    names = [name for parts in table(family).values() for name in parts]
    assert len(names) == len(set(names)) > 600


# ---- fused layers ----------------------------------------------------------------------------------


def test_qkv_is_put_together_block_by_block():
    g = torch.Generator().manual_seed(9)
    parts = {p: (torch.randn(4, 2, generator=g), torch.randn(2, 4, generator=g)) for p in "qkv"}
    tensors = {}
    for part, (up, down) in parts.items():
        name = f"transformer.transformer_blocks.0.attn.to_{part}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    native = from_diffusers(tensors, "flux")
    delta = deltas(native)["double_blocks.0.img_attn.qkv"]
    assert torch.allclose(delta, torch.cat([up @ down for up, down in parts.values()]).double(), atol=1e-6)
    assert native["diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight"].shape == (12, 6)
    assert same(deltas(to_diffusers(native)), deltas(tensors)) < 1e-6
    assert (
        len(next(v for k, v in to_diffusers(native).items() if "lora_A" in k)) == 2
    )  # and taken apart again


@pytest.mark.parametrize(
    "part, rows, width", [("attn.to_v", slice(8, 12), 4), ("proj_mlp", slice(12, 28), 16)]
)
def test_a_part_without_a_lora_stays_as_it_is(part, rows, width):
    g = torch.Generator().manual_seed(10)
    up, down = torch.randn(width, 2, generator=g), torch.randn(2, 4, generator=g)
    name = f"transformer.single_transformer_blocks.5.{part}"
    delta = deltas(from_diffusers({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}))[
        "single_blocks.5.linear1"
    ]
    assert delta.shape == (28, 4) and torch.allclose(delta[rows], (up @ down).double(), atol=1e-6)
    delta[rows] = 0
    assert not delta.any()


def test_shift_and_scale_change_places_where_there_are_no_others():
    for layer, rows in (
        ("final_layer.adaLN_modulation.1", 8),
        ("joint_blocks.1.context_block.adaLN_modulation.1", 8),
        ("joint_blocks.0.context_block.adaLN_modulation.1", 24),
    ):
        up, down = torch.arange(rows * 1.0)[:, None], torch.ones(1, 4)
        tensors = {
            f"diffusion_model.{layer}.lora_up.weight": up,
            f"diffusion_model.{layer}.lora_down.weight": down,
        }
        theirs = next(iter(deltas(to_diffusers(tensors, "sd3")).values()))[:, 0]
        assert theirs.tolist() == ([4, 5, 6, 7, 0, 1, 2, 3] if rows == 8 else list(range(24)))


# ---- what is recognised and what is refused --------------------------------------------------------


@pytest.mark.parametrize(
    "family, width", [("sd1", 768), ("sd2", 1024), ("sdxl", 2048), ("sd3", 0), ("flux", 0)]
)
def test_the_family_is_recognised_from_either_side(family, width):
    net = whole(family, **({"cross_attention_dim": width} if width else {}))
    headless = Lora(net, 1).state_dict()
    native = from_diffusers(headless)
    assert recognise(read(headless)) == recognise(read(native)) == family
    assert to_diffusers(native).keys() == to_diffusers(native, family).keys()


@pytest.mark.parametrize("layers", [1, 2])
def test_the_blocks_of_a_level_are_recognised_from_either_side(layers):
    headless = Lora(whole("sd1", layers=layers), 1).state_dict()
    native = from_diffusers(headless, "sd1")
    assert count_blocks(read(headless)) == count_blocks(read(native)) == layers
    assert f"diffusion_model.input_blocks.{layers + 1}.0.op.alpha" in native
    assert same(deltas(to_diffusers(native, "sd1")), deltas(headless)) < 1e-6
    few = {k: v for k, v in headless.items() if "attentions.0" in k}  # says nothing of the second block
    assert count_blocks(read(few)) == 2


def pair(layer, rows=4, width=4, prefix="diffusion_model"):
    return {
        f"{prefix}.{layer}.lora_up.weight": torch.ones(rows, 1),
        f"{prefix}.{layer}.lora_down.weight": torch.ones(1, width),
    }


@pytest.mark.parametrize("convert", [to_diffusers, from_diffusers])
@pytest.mark.parametrize(
    "tensors, why",
    [
        (
            {**pair("single_blocks.0.linear2"), **pair("double_blocks.0.img_attn.odd")},
            "flux.*has no .*double_blocks.0.img_attn.odd",
        ),
        (
            {**pair("joint_blocks.0.x_block.attn.proj"), **pair("joint_blocks.0.nose")},
            "sd3.*has no .*joint_blocks.0.nose",
        ),
        (
            {
                **pair("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 4, 768),
                **pair("down_blocks.0.ear"),
            },
            "sd1.*has no .*down_blocks.0.ear",
        ),
        (
            pair("text_model.layers.0", prefix="text_encoder"),
            "keys diffusion_model.*got text_encoder.text_model",
        ),
        ({"lora_unet_mid_block.alpha": torch.ones(())}, "got lora_unet_mid_block.alpha"),
        ({}, "got none"),
        (
            {**pair("img_in"), "diffusion_model.img_in.dora_scale": torch.ones(1)},
            "got diffusion_model.img_in.dora_scale",
        ),
        ({**pair("img_in"), **pair("img_in", prefix="transformer")}, "one a layer; got transformer.img_in"),
        ({"diffusion_model.img_in.lora_up.weight": torch.ones(4, 2)}, "img_in has up"),
        (
            {**pair("img_in"), "diffusion_model.img_in.lora_down.weight": torch.ones(2, 4)},
            "img_in has up 4 × 1, down 2 × 4",
        ),
        (pair("mid_block.resnets.0.conv1"), "family must be given, one of sd1, sd2, sdxl, sd3, flux"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(convert, tensors, why):
    with pytest.raises(ValueError, match=why):
        convert(tensors)


def test_a_model_of_another_kind_is_refused_by_its_shapes():
    """Flux 2 and others have layers of these names with other parts in them."""
    with pytest.raises(
        ValueError, match="single_blocks.0.linear1 with 28 rows in lora_up for an input 4 wide, got 36"
    ):
        to_diffusers(pair("single_blocks.0.linear1", 36))
    with pytest.raises(
        ValueError,
        match="parts of single_blocks.0.linear1 with 16 rows in up and 4 columns in down, got 24 and 4",
    ):
        from_diffusers(pair("single_transformer_blocks.0.proj_mlp", 24))
    with pytest.raises(ValueError, match="family must be one of sd1"):
        to_diffusers(pair("img_in"), "flux2")
