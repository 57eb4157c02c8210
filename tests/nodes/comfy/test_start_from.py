"""In the real ComfyUI: `start_from` makes of a file what the stock loader makes of it, in every naming of
layers that the host knows and for every adapter that it has.
"""

import json

import pytest
import torch
import zoo
from graph import pack

pytestmark = pytest.mark.comfy
# how trainers name layers, by the beginnings of the host's own aliases
NAMINGS = {
    "kohya": ("lora_unet_",),
    "native": ("diffusion_model.",),
    "diffusers": ("transformer.", "unet.", "down_blocks", "up_blocks", "mid_block"),
    "onetrainer": ("lora_transformer_",),
    "lycoris": ("lycoris_",),
    "peft": ("base_model.model.",),
    "bare": ("transformer_blocks.", "single_transformer_blocks.", "double_blocks."),
}
HALVES = {
    "kohya": ("lora_up.weight", "lora_down.weight"),
    "onetrainer": ("lora_up.weight", "lora_down.weight"),
    "native": ("lora_up.weight", "lora_down.weight"),
    "lycoris": ("lora_up.weight", "lora_down.weight"),
}
PEFT = ("lora_B.weight", "lora_A.weight")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=zoo.generator(f"{shape}", seed)) / shape[-1] ** 0.5


def aliases(model, naming):
    """{the host's name for a layer or a slice of one: (what it stands for, shape)}, those of one naming."""
    import comfy.lora

    weights = model.model.state_dict()
    layers = pack_layers(model)
    known = {}
    for alias, place in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key, *part = (place,) if isinstance(place, str) else place
        if alias.startswith(NAMINGS[naming]) and key in weights and key in layers:
            shape = list(weights[key].shape)
            if part and part[0]:
                shape[part[0][0]] = part[0][2]
            known.setdefault(str((key, part[:1])), (alias, shape))
    return dict(known.values())


def pack_layers(model):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = model.model.diffusion_model.named_modules()
    return {f"diffusion_model.{name}.weight" for name, m in modules if isinstance(m, kinds)}


def write(tensors, name, **metadata):
    import folder_paths
    import safetensors.torch

    folder = folder_paths.get_folder_paths("loras")[0]
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    safetensors.torch.save_file(tensors, f"{folder}/{name}.safetensors", metadata or None)
    return f"{name}.safetensors"


def weights(model):
    """Every patched weight of a MODEL, by the host's arithmetic."""
    import comfy.lora

    base = model.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, base[key].clone().double(), key) - base[key].double()
        for key, patches in model.patches.items()
    }


def both(host, model, file, rank, partly=False):
    """(the stock loader's changes, those of what `start_from` gives, loaded in the same way)."""
    import comfy.sd

    stock = host.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)[0]
    with torch.inference_mode():
        ours = pack(host, "nodes.comfy.lora_files").tensors(file, model, rank, partly)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in ours.values())
    return weights(stock), weights(comfy.sd.load_lora_for_models(model, None, ours, 1.0, 0)[0])


def same(stock, ours):
    """The largest difference over the largest change, of the worst layer."""
    assert stock.keys() == ours.keys()
    return max(float((ours[k] - stock[k]).abs().max() / stock[k].abs().max()) for k in stock)


def lora(alias, shape, naming, rank=2, seed=0):
    up, down = HALVES.get(naming, PEFT)
    out = {f"{alias}.{up}": drawn(shape[0], rank, *[1] * (len(shape) - 2), seed=seed)}
    out[f"{alias}.{down}"] = drawn(rank, *shape[1:], seed=seed + 1)
    if naming in HALVES:
        out[f"{alias}.alpha"] = torch.tensor(0.7)
    return out


UNETS = ("kohya", "native", "diffusers", "lycoris")
KNOWN = {
    "sd15": UNETS,
    "sdxl": UNETS,
    "sd3": (*UNETS, "onetrainer", "peft"),
    "flux_dev": (*UNETS, "onetrainer", "bare"),
    "flux2": (*UNETS, "onetrainer", "bare"),
}


@pytest.mark.parametrize("family, naming", [(family, name) for family in KNOWN for name in KNOWN[family]])
def test_plain_loras_in_every_naming(host, family, naming, models):
    model = models(family)
    known = aliases(model, naming)
    tensors = {}
    for n, (alias, shape) in enumerate(known.items()):
        tensors |= lora(alias, shape, naming, seed=n)
    stock, ours = both(host, model, write(tensors, f"{family} {naming}"), rank=4)
    assert same(stock, ours) < 1e-4
    if family in ("sd3", "flux_dev", "flux2") and naming in ("diffusers", "onetrainer"):
        assert any("qkv" in key for key in ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_files_of_fewer_bits(host, dtype, models):
    model, tensors = models("flux_dev"), {}
    for n, (alias, shape) in enumerate(aliases(model, "diffusers").items()):
        tensors |= {k: v.to(dtype) for k, v in lora(alias, shape, "diffusers", seed=n).items()}
    assert same(*both(host, model, write(tensors, f"{dtype}"), rank=4)) < 1e-4


@pytest.fixture(scope="module")
def models(host):
    kept = {}
    return lambda family: kept.setdefault(family, zoo.load(family))


def adapter(kind, alias, shape):
    """The tensors of a LyCORIS change of low rank to a layer."""
    out, into = shape[0], torch.Size(shape[1:]).numel()
    if kind == "loha":
        parts = {"hada_w1_a": (out, 2), "hada_w1_b": (2, into), "hada_w2_a": (out, 2), "hada_w2_b": (2, into)}
    elif kind == "lokr":
        parts = {"lokr_w1": (2, 2), "lokr_w2_a": (out // 2, 2), "lokr_w2_b": (2, into // 2)}
    elif kind == "glora":
        parts = {
            "a1.weight": (2, into),
            "a2.weight": (into, 2),
            "b1.weight": (2, into),
            "b2.weight": (out, 2),
        }
        parts |= {"a1.weight": (2, into), "a2.weight": (into, 2)}
    elif kind == "oft":
        parts = {"oft_blocks": (out // 4, 4, 4)}
    elif kind == "boft":
        parts = {"oft_blocks": (2, out // 4, 4, 4)}
    elif kind == "diff":
        parts = {"diff": shape}
    else:
        parts = {"lora_up.weight": (out, 2), "lora_down.weight": (2, into)}
        if kind == "dora":
            parts["dora_scale"] = (out, *[1] * (len(shape) - 1))
    tensors = {f"{alias}.{k}": drawn(*v, seed=n) for n, (k, v) in enumerate(parts.items())}
    if kind == "boft":
        tensors[f"{alias}.alpha"] = torch.tensor(0.0)  # which the host asks for
    if kind == "dora":
        tensors[f"{alias}.dora_scale"] = tensors[f"{alias}.dora_scale"].abs() + 1
    return tensors


@pytest.mark.parametrize("kind", ["loha", "lokr", "glora", "oft", "boft", "dora", "diff"])
@pytest.mark.parametrize("family", ["sd3", "flux_dev"])
def test_every_adapter_of_the_hosts_at_full_rank(host, family, kind, models):
    model, tensors = models(family), {}
    known = [(a, s) for a, s in aliases(model, "kohya").items() if len(s) == 2 and s[0] % 8 == s[1] % 8 == 0]
    for alias, shape in known[:3]:
        tensors |= adapter(kind, alias, shape)
    stock, ours = both(host, model, write(tensors, f"{family} {kind}"), rank=4096)
    assert same(stock, ours) < 1e-3
    if kind in ("loha", "lokr"):  # of a low rank of their own
        stock, ours = both(host, model, f"{family} {kind}.safetensors", rank=8)
        assert same(stock, ours) < 1e-3


def test_convolutions_and_slices_beside_whole_layers(host, models):
    model = models("sd15")
    alias = "lora_unet_input_blocks_1_0_in_layers_2"
    key = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    out, into = model.model.state_dict()[key].shape[:2]
    tucker = {
        f"{alias}.lora_up.weight": drawn(out, 2, 1, 1),
        f"{alias}.lora_mid.weight": drawn(2, 2, 3, 3),
        f"{alias}.lora_down.weight": drawn(2, into, 1, 1),
    }
    assert same(*both(host, model, write(tucker, "tucker"), rank=8)) < 1e-3


def test_what_a_lora_cannot_hold_is_named_with_its_share(host, models):
    model, tensors = models("flux_dev"), {}
    for n, (alias, shape) in enumerate(list(aliases(model, "kohya").items())[:2]):
        tensors |= lora(alias, shape, "kohya", seed=n)
    bias = next(k for k in model.model.state_dict() if k.endswith(".bias"))
    layer = bias.removesuffix(".bias")
    tensors |= lora(layer, list(model.model.state_dict()[f"{layer}.weight"].shape), "native")
    tensors[f"{layer}.diff_b"] = drawn(*model.model.state_dict()[bias].shape)
    file = write(tensors, "with a bias")
    with pytest.raises(
        ValueError, match="1 changes of norms, biases and the like, .* % of the file.*start_partly"
    ):
        both(host, model, file, rank=4)
    stock, ours = both(host, model, file, rank=4, partly=True)
    assert stock.keys() - ours.keys() == {bias}
    del stock[bias]
    assert same(stock, ours) < 1e-4
    alias, shape = list(aliases(model, "kohya").items())[3]
    file = write({f"{alias}.diff": drawn(*shape)}, "full")
    with pytest.raises(
        ValueError, match=r"rank 4 can hold.* % of the change of 1 layers, whose rank is higher"
    ):
        both(host, model, file, rank=4)
    stock, ours = both(host, model, file, rank=4, partly=True)
    (change,), (kept,) = stock.values(), ours.values()
    best = torch.linalg.svdvals(change)[4:].norm()
    assert best * 0.999 < (kept - change).norm() < best * 1.001


def test_a_dora_on_a_model_with_a_lora_and_on_a_quantised_one(host, models):
    """DoRA rescales the weight as the graph has it."""
    base = models("sd3")
    known = list(aliases(base, "kohya").items())[2:4]
    first = write({k: v for a, s in known for k, v in lora(a, s, "kohya").items()}, "first")
    second = write({k: v for a, s in known for k, v in adapter("dora", a, s).items()}, "second")
    model = host.LoraLoaderModelOnly().load_lora_model_only(base, first, 1.0)[0]
    before, (stock, ours) = weights(model), both(host, model, second, rank=4096)
    assert same({k: stock[k] - before[k] for k in before}, {k: ours[k] - before[k] for k in before}) < 1e-3
    quantised = zoo.load("sd15", change=zoo.quantised)
    alias = next(a for a in aliases(models("sd15"), "kohya") if a.endswith("attn1_to_q"))
    tensors = pack(host, "nodes.comfy.lora_files").tensors(
        write(adapter("dora", alias, [320, 320]), "dora"), quantised, 4096, False
    )
    assert len(tensors) == 3


@pytest.mark.parametrize("broken", ["strange", "empty", "json"])
def test_files_that_are_no_lora_of_the_model_are_refused_by_name(host, broken, models):
    import folder_paths

    tensors = {"a.lora_up.weight": drawn(2, 2)} if broken == "strange" else {}
    file = write(tensors, broken)
    if broken == "json":
        with open(f"{folder_paths.get_folder_paths('loras')[0]}/{file}", "w") as out:
            json.dump({}, out)
    with pytest.raises(ValueError, match=f"{broken}.safetensors"):
        pack(host, "nodes.comfy.lora_files").tensors(file, models("sd3"), 4, False)
