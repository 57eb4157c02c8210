"""What a LoRA and its exact gradient cost beside the model, counted in operations on a Flux dev of full size.

    python benchmarks/adapter.py [--json FILE]

Nothing is computed and no weight is loaded: the tensors are PyTorch's meta tensors, bfloat16, a batch of one
at 1024 x 1024 with 512 tokens of text. An operation is what PyTorch dispatches, views included; Python's is
one that a hook or a dispatch mode of this package looks at, which takes some 30 microseconds. ComfyUI is
needed (COMFYUI_PATH, or ~/ComfyUI).
"""

import argparse
import json
from pathlib import Path

import core
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


class Count(TorchDispatchMode):
    """Operations that PyTorch dispatches."""

    def __init__(self):
        super().__init__()
        self.all = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.all += 1
        return function(*args, **(kwargs or {}))


def operations(call):
    """How many a call takes."""
    with Count() as count:
        call()
    return count.all


def flux():
    """(the diffusion model, a function that calls it) on meta tensors."""
    core.start()
    import comfy.ldm.flux.model
    import comfy.model_management
    import comfy.ops
    from comfy.ldm.modules.attention import attention_pytorch

    comfy.model_management.in_training = True  # as in a run: without what has no gradient
    bf16 = {"device": "meta", "dtype": torch.bfloat16}
    model = comfy.ldm.flux.model.Flux(**FLUX, **bf16, operations=comfy.ops.disable_weight_init)
    model.requires_grad_(False)
    x, context = torch.empty(1, 16, 128, 128, **bf16), torch.empty(1, 512, 4096, **bf16)
    pooled, one = torch.empty(1, 768, **bf16), torch.empty(1, **bf16)
    options = {
        "optimized_attention_override": lambda usual, *args, **kwargs: attention_pytorch(*args, **kwargs)
    }
    return model, lambda: model(x, one, context, pooled, one, transformer_options=options)


def looked_at(pack, backward, loss):
    """Operations of a gradient that Python looks at."""
    graph, places = pack("exact_graph"), pack("overwrites")
    seen = 0

    def counted(usual):
        def run(*args, **kwargs):
            nonlocal seen
            seen += 1
            return usual(*args, **kwargs)

        return run

    spots = [
        (graph._CopyOnWrite, "__torch_dispatch__"),
        (places._Checked, "__init__"),
        (places._Checked, "get"),
    ]
    before = [getattr(owner, name) for owner, name in spots]
    for (owner, name), usual in zip(spots, before):
        setattr(owner, name, counted(usual))
    try:
        backward(loss)
    finally:
        for (owner, name), usual in zip(spots, before):
            setattr(owner, name, usual)
    return seen


def plain(model, lora):
    """Hooks that add the same LoRA as one writes it down, on layers that are all linear; to be removed."""

    def hook(pair):
        def add(layer, inputs, output):
            x, down, up = inputs[0], pair["down"].to(output), pair["up"].to(output)
            return output + lora.scale * F.linear(F.linear(x, down), up)

        return add

    layers = dict(model.named_modules())
    return [layers[name].register_forward_hook(hook(pair)) for name, pair in lora.weights.items()]


def costs(pack, backward, call):
    """Of a gradient: operations, and those that Python looks at: where every one is looked at, in the first
    call, and from then on.
    """

    def loss():
        return call().float().square().mean()

    first = looked_at(pack, backward, loss)
    total, seen = operations(lambda: backward(loss)), looked_at(pack, backward, loss)
    backward.always = True
    every = looked_at(pack, backward, loss)
    return {
        "operations": total,
        "looked_at_always": every,
        "looked_at_first": first,
        "looked_at": seen,
        "share": seen / total,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    model, call = flux()
    room = core.pack_module("FewstepDistil").__package__.rpartition(".")[0]

    def pack(name):
        return core.sys.modules[f"{room}.training.adapter.{name}"]

    lora = pack("lora").Lora(model, 16, device="meta")
    result = {"layers": len(lora.weights)}
    with torch.no_grad():
        call()  # the casts are made, once an update
        with lora.off():
            base = operations(call)
            hooks = plain(model, lora)
            result["lora_plain"] = (operations(call) - base) / len(lora.weights)
        for hook in hooks:
            hook.remove()
        result["lora"] = (operations(call) - base) / len(lora.weights)
    for name in ("whole", "checkpointed"):
        backward = pack("backward").Backward(model, lora.parameters(), name == "checkpointed")
        result[name] = costs(pack, backward, call)
    print(f"{result['layers']} layers; operations of the LoRA in each: {result['lora']:.1f}, ", end="")
    print(f"as one writes it down {result['lora_plain']:.1f}")
    print(f"{'':14}{'operations':>12}{'looked at, all':>16}{'first':>9}{'from then on':>14}{'share':>9}")
    for name in ("whole", "checkpointed"):
        row = result[name]
        print(
            f"{name:14}{row['operations']:12}{row['looked_at_always']:16}{row['looked_at_first']:9}"
            f"{row['looked_at']:14}{row['share']:9.2%}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
