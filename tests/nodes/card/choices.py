"""Where a session lets a model's weights live, by what the card has free: one JSON object.

python choices.py
"""

import json
import tempfile
from pathlib import Path

import host
import pages
import safetensors.torch
import torch
import zoo
from device import CARD, PretendedCard

FAMILY = "sd15"
session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
management = host.management


class Full:
    """The host's loading on a card that has no memory for weights of these kinds."""

    def __init__(self, *refused):
        self.refused, self.own = refused, management.load_models_gpu

    def __enter__(self):
        def load(models, force_full_load=False, **options):
            kind = residency.RESIDENT if force_full_load else residency.STREAMED
            if kind in self.refused:
                raise torch.OutOfMemoryError("Allocation on device ")
            return self.own(models, force_full_load=force_full_load, **options)

        management.load_models_gpu = load

    def __exit__(self, *error):
        management.load_models_gpu = self.own


def opened(model, where=residency.AUTO, free=host.VRAM, **needs):
    """What a session tells of itself: [kind of patcher, what is said, layers that are streamed, dtypes]."""
    host.free[0] = free
    try:
        with session.training_session(model, where, **needs) as patcher:
            return {
                "patcher": type(patcher).__name__,
                "told": str(residency.told(patcher)),
                "streamed": len(residency.streamed_layers(patcher)),
                "dtypes": sorted({str(p.dtype) for p in patcher.model.diffusion_model.parameters()}),
                "own": patcher.model is not model.model,
            }
    except Exception as error:
        return {"refused": type(error).__name__, "why": str(error)}
    finally:
        host.free[0] = host.VRAM


def outcomes(file):
    options = {"dtype": torch.bfloat16}
    with torch.inference_mode():
        model = host.sd.load_diffusion_model(file, options)
        without_recipe = host.sd.load_diffusion_model_state_dict(safetensors.torch.load_file(file), options)
    size, reserved = residency.weight_bytes(model.model), management.extra_reserved_memory()
    enough = size + reserved + (1 << 20)
    yield "plenty", opened(model)
    yield "just enough", opened(model, free=enough)
    yield "not with the run", opened(model, free=enough, beside=2 << 20)
    yield "not in the budget", opened(model, budget=size + reserved - 1)
    yield "forced to be streamed", opened(model, residency.STREAMED)
    yield "forced resident", opened(model, residency.RESIDENT)
    yield "forced resident, not with the run", opened(model, residency.RESIDENT, enough, beside=2 << 20)
    yield "forced resident, not in the budget", opened(model, residency.RESIDENT, budget=size + reserved - 1)
    with Full(residency.RESIDENT):
        yield "resident runs out", opened(model)
        yield "forced resident runs out", opened(model, residency.RESIDENT)
    with Full(residency.RESIDENT, residency.STREAMED):
        yield "both run out", opened(model)
    for state in ("HIGH_VRAM", "NO_VRAM"):
        yield from started_as(state, model, size + reserved)
    yield "no recipe", opened(without_recipe)
    yield "no recipe, forced resident", opened(without_recipe, residency.RESIDENT)
    yield (
        "afterwards",
        {"in_training": management.in_training, "size": size, "file": Path(file).stat().st_size},
    )


def started_as(state, model, most):
    """Where the host was started so that it keeps all weights on the card, or none."""
    before, management.vram_state = management.vram_state, management.VRAMState[state]
    try:
        yield state, opened(model)
        yield f"{state}, resident", opened(model, residency.RESIDENT)
        yield f"{state}, streamed", opened(model, residency.STREAMED)
        yield f"{state}, not in the budget", opened(model, budget=most - 1)
        why = residency.Message("weights streamed: beside all of them one sample found no room")
        yield f"{state}, no room beside", opened(model, residency.STREAMED, why=why)
    finally:
        management.vram_state = before


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        tensors = {key: value.contiguous() for key, value in zoo.state_dict(FAMILY).items()}
        safetensors.torch.save_file(tensors, file)
        host.answer_as_a_card(bfloat16=True)
        pages.install()
        with PretendedCard() as card:
            found = dict(outcomes(str(file)))
            found["crossings"] = len(card.crossings)
            torch.ones(2).to(CARD) + torch.ones(2)  # a planted one
            found["crossings with one planted"] = len(card.crossings)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
