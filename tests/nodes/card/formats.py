"""The gradient of a model whose weights are packed, streamed to the card, held against that of the same
weights where they stay: a line of JSON for each format and way.

    python formats.py DTYPE FORMAT ...

FORMAT is one of `FILES`, one of the host's own layouts, or GGUF with its kind of blocks, whose pack knows no
dynamic VRAM: layers that find no room stay in the computer's memory. Layers are packed that the host streams;
the smallest ones, which no published file packs, it rounds anew when it loads them, whoever asks it to.
"""

import json
import sys
import tempfile
from pathlib import Path

import device
import host
import pages
import safetensors.torch
import torch
import weight_formats as formats
import zoo
from device import PretendedCard

DTYPE, *WANTED = sys.argv[1:]
FAMILY, RANK = formats.FAMILY, 2
FILES = {
    "fp8 e4m3fn": lambda dtype: formats.fp8("e4m3fn"),
    "fp8 file": lambda dtype: formats.halved(torch.float8_e4m3fn),
    "fp8 scaled": lambda dtype: formats.scaled("e4m3fn", dtype),
    "fp8 scaled, old": lambda dtype: formats.scaled("e4m3fn", dtype, old=True),
}
STREAMED = 1 << 16  # numbers of a layer that takes more than 16 kB in every format
# how much of the weights finds room in pages; the rest goes through buffers. The last is a planted fault: no
# layer is called again
SHARES = {"resident": 2.0, "60 %": 0.6, "none": 0.0, "evicted": 2.0, "unmended": 0.0}

session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
denoisers = host.pack("nodes.comfy.denoiser")
backwards, loras = host.pack("training.adapter.backward"), host.pack("training.adapter.lora")
card = PretendedCard()


def gradient(patcher, checkpointing, evicted, streamed=None):
    """float64, of an x0-MSE of a LoRA on every layer."""
    one, other = zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)
    denoiser = denoisers.ComfyDenoiser(patcher, one, other, zoo.latent(FAMILY))
    lora = loras.Lora(denoiser.module, RANK, device=denoiser.device)
    g = zoo.generator(FAMILY, 5)
    with torch.no_grad():
        for pair in lora.weights.values():
            pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))
    sigma = denoiser.sigma_of(torch.tensor([0.5])).float()
    x, goal = zoo.latent(FAMILY) * (1 + sigma), zoo.latent(FAMILY, seed=1)

    def loss():
        found = (denoiser(x, sigma, torch.tensor([0])) - goal).square().mean()
        if evicted:
            pages.ROOM.empty()
        return found

    parameters = lora.parameters()
    try:
        backwards.Backward(denoiser.module, parameters, checkpointing, streamed or denoiser.streamed)(loss)
        return torch.cat([p.grad.cpu().flatten().double() for p in parameters])
    finally:
        lora.remove()


def written(name, file):
    """Write the file of that format; returns what loads the MODEL, as the host's nodes do."""
    dtype = getattr(torch, DTYPE)
    if name.startswith("GGUF"):
        return formats.gguf_loader(file.parent, name.split(" ")[1])[0]
    tensors, _, options = FILES[name](dtype) if name in FILES else formats.laid_out(name, dtype, STREAMED)
    safetensors.torch.save_file(tensors, file)
    return lambda: host.sd.load_diffusion_model(str(file), dict(options))


def measured(name, load):
    """A dict for each way in which the weights live."""
    exact = {}
    for kind, share in SHARES.items():
        pages.ROOM.empty()
        with torch.inference_mode():
            model = load()
        room = round(share * residency.weight_bytes(model.model))
        if not model.is_dynamic() and kind == "evicted":
            continue  # no page to take away
        if not model.is_dynamic():
            host.free[0] = host.management.minimum_inference_memory() + room
        pages.ROOM.room = room
        where = residency.RESIDENT if kind == "resident" else residency.STREAMED
        with session.training_session(model, where) as patcher:
            layers = residency.streamed_layers(patcher)
            for checkpointing in (False, True):
                card.crossings.clear()
                streamed = list if kind == "unmended" else None
                found = gradient(patcher, checkpointing, kind == "evicted", streamed)
                exact.setdefault(checkpointing, found)
                crossings = card.crossings.items()
                yield {
                    "format": name,
                    "kind": kind,
                    "checkpointing": checkpointing,
                    "cosine": float(torch.cosine_similarity(found, exact[checkpointing], dim=0)),
                    "ratio": float(found.norm() / exact[checkpointing].norm()),
                    "norm": float(found.norm()),
                    "streamed": len(layers),
                    "packed": sum(is_packed(layer) for layer in layers),
                    "crossings": [f"{n} x {what} at {line}" for (what, line), n in crossings],
                }
        host.free[0] = host.VRAM


def is_packed(layer):
    """Whether a layer keeps its weight in less than the numbers that it stands for."""
    weight = getattr(layer, "weight", None)
    return weight is not None and (type(weight) not in device.PLAIN or weight.dtype.itemsize == 1)


def main():
    if any(name.startswith("GGUF") for name in WANTED) and formats.gguf_pack() is None:
        print(json.dumps({"missing": formats.NO_GGUF}))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.safetensors" for number, name in enumerate(WANTED)}
        loaders = {name: written(name, file) for name, file in files.items()}
        host.answer_as_a_card(bfloat16=DTYPE == "bfloat16")
        pages.install()
        with card:
            for name, load in loaders.items():
                for case in measured(name, load):
                    print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
