"""Two updates by the nodes' own code, with weights that stay and weights that don't: one JSON object.

python runs.py
"""

import json
import tempfile
from pathlib import Path

import host
import pages
import safetensors.torch
import torch
import zoo
from device import PretendedCard

FAMILY = "sd15"
SETTINGS = {
    "method": "phased",
    "steps": 2,
    "updates": 2,
    "batch": 2,
    "images": 2,
    "image_steps": 2,
    "rank": 2,
    "cfg": 2.0,
    "phases": 1,
}
LITTLE = 1 << 20  # bytes, too few for a sample
NEARLY = (240 << 20) + host.management.extra_reserved_memory()  # bytes, enough for a run but for its weights


def trained(base, model, residency="auto", memory="auto", free=host.VRAM, left=host.VRAM):
    """What a run said of its weights, its losses, the LoRA's size; free: bytes before the weights are loaded,
    left: beside them. Its files are its own: it must not go on where another stopped.
    """
    host.folders_in(Path(tempfile.mkdtemp(dir=base)))
    training = host.pack("nodes.training")
    host.free[0], host.left[0] = free, left
    said = []
    training.show.say = lambda node, text, *_: said.append(str(text))
    config = host.pack("training.run.config").DistilConfig(**SETTINGS)
    order = training.Order(
        model=model,
        positive=zoo.conditioning(FAMILY),
        negative=zoo.conditioning(FAMILY, 1),
        latent={"samples": 0 * zoo.latent(FAMILY)},
        config=config,
        memory=memory,
        name="card",
        node=None,
        residency=residency,
    )
    try:
        with torch.inference_mode():
            result = training.train(order)
    finally:
        host.free[0] = host.left[0] = host.VRAM
    sizes = [float(value.norm()) for key, value in result.lora.items() if "lora_up" in key]
    return {"said": said[0], "losses": result.losses["loss"], "norm": sum(sizes)}


def main():
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tensors = {key: value.contiguous() for key, value in zoo.state_dict(FAMILY).items()}
        safetensors.torch.save_file(tensors, base / "model.safetensors")
        host.pack("training.run.source").PROBES = 1
        host.answer_as_a_card(bfloat16=False)
        pages.install()
        found = {}
        with PretendedCard() as card:
            with torch.inference_mode():
                model = host.sd.load_diffusion_model(str(base / "model.safetensors"))
            size = host.pack("nodes.comfy.residency").weight_bytes(model.model)
            pages.ROOM.room = size // 2
            found["resident"] = trained(base, model)
            found["streamed"] = trained(base, model, free=size + NEARLY)
            found["preset"] = trained(base, model, memory="8 GB", residency="streamed")
            found["no room beside"] = trained(base, model, left=LITTLE)
            found["crossings"] = [f"{what} at {line}" for what, line in card.crossings]
        print(json.dumps(found))


if __name__ == "__main__":
    main()
