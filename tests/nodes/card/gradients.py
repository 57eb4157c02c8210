"""A model's gradient in each way in which it may live on a card, held against that of resident weights and
against the loss itself.

    python gradients.py FAMILY STORED DTYPE [KIND ...]

prints a line of JSON for each kind, with and without checkpointing. STORED is the dtype of the file, DTYPE
that in which the model computes.
"""

import json
import sys
import tempfile
from pathlib import Path

import host
import pages
import safetensors.torch
import torch
import zoo
from device import PretendedCard

FAMILY, STORED, DTYPE, *WANTED = sys.argv[1:]

session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
denoisers, proof = host.pack("nodes.comfy.denoiser"), host.pack("training.adapter.proof")
fingerprints = host.pack("nodes.comfy.fingerprints")
backwards, loras = host.pack("training.adapter.backward"), host.pack("training.adapter.lora")

# how much of the weights finds room in pages, 2 for all and to spare; the rest goes through buffers
SHARES = {
    "resident": 2.0,
    "95 %": 0.95,
    "60 %": 0.6,
    "none": 0.0,
    "evicted": 2.0,  # between the forward and the backward pass
    "fleeting": 2.0,  # as soon as a layer has answered
    "sampled": 2.0,  # by a loader that left no recipe to load it again, and sampled before
    "partial": 0.5,  # dynamic VRAM is off: this share stays, the rest goes through buffers
    "unmended": 0.0,  # a planted fault: no layer is called again
}
RANK = 2
card = PretendedCard()


class Case:
    """x0-MSE of a LoRA on every layer of the loaded model."""

    def __init__(self, patcher, kind):
        self.kind = kind
        one, other = zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)
        self.denoiser = denoisers.ComfyDenoiser(patcher, one, other, zoo.latent(FAMILY))
        self.lora = loras.Lora(self.denoiser.module, RANK, device=self.denoiser.device)
        self.parameters = self.lora.parameters()
        g = zoo.generator(FAMILY, 5)
        with torch.no_grad():
            for pair in self.lora.weights.values():
                pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))
        self.sigma = self.denoiser.sigma_of(torch.tensor([0.5])).float()
        self.x, self.goal = zoo.latent(FAMILY) * (1 + self.sigma), zoo.latent(FAMILY, seed=1)

    def loss(self):
        loss = (self.denoiser(self.x, self.sigma, torch.tensor([0])) - self.goal).square().mean()
        if self.kind == "evicted":
            pages.ROOM.empty()
        return loss

    def measure(self, checkpointing):
        """(gradient in float64, its slope along itself)"""
        streamed = list if self.kind == "unmended" else self.denoiser.streamed
        backward = backwards.Backward(self.denoiser.module, self.parameters, checkpointing, streamed)
        backward(self.loss)
        gradient = torch.cat([p.grad.cpu().flatten().double() for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        try:
            slope = proof.slope(self.loss, self.parameters, backward=backward)
        except ArithmeticError as error:
            slope = str(error)
        return gradient, slope


def loaded(file, kind):
    """The MODEL as the host's loaders make it."""
    options = {} if DTYPE == "float32" else {"dtype": getattr(torch, DTYPE)}
    with torch.inference_mode():  # in which the host runs its nodes
        if kind == "partial":
            return host.sd.load_diffusion_model(file, options, disable_dynamic=True)
        if kind != "sampled":
            return host.sd.load_diffusion_model(file, options)
        model = host.sd.load_diffusion_model_state_dict(safetensors.torch.load_file(file), options)
        host.management.load_models_gpu([model])
        case = Case(model, kind)
        case.lora.remove()
        case.loss()
        return model


def cases(file):
    """A dict for each case."""
    exact = {}  # of resident weights, whole and with blocks recomputed
    for kind in WANTED or SHARES:
        pages.ROOM.empty()
        model = loaded(file, kind)
        size, base = residency.weight_bytes(model.model), fingerprints.base_of(model)
        pages.ROOM.room, pages.ROOM.fleeting = round(SHARES[kind] * size), kind == "fleeting"
        where = {"resident": residency.RESIDENT, "sampled": residency.AUTO}.get(kind, residency.STREAMED)
        if kind == "partial":
            host.free[0] = host.management.minimum_inference_memory() + SHARES[kind] * size
        with session.training_session(model, where) as patcher:
            case = Case(patcher, kind)
            for checkpointing in (False, True):
                card.crossings.clear()
                gradient, slope = case.measure(checkpointing)
                exact.setdefault(checkpointing, gradient)
                crossings = card.crossings.items()
                yield {
                    "kind": kind,
                    "checkpointing": checkpointing,
                    "slope": slope,
                    "cosine": float(torch.cosine_similarity(gradient, exact[False], dim=0)),
                    # of sums in the same order, which rounds alike
                    "ratio": float(gradient.norm() / exact[checkpointing].norm()),
                    "bases": sorted({base, case.denoiser.base}),
                    "dynamic": patcher.is_dynamic(),
                    "streamed": len(case.denoiser.streamed()),
                    "adapter": sorted({str(p.device) for p in case.parameters}),
                    "crossings": [f"{n} x {what} at {line}" for (what, line), n in crossings],
                }
            case.lora.remove()
        host.free[0] = host.VRAM


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        dtype = getattr(torch, STORED)
        tensors = {key: value.to(dtype).contiguous() for key, value in zoo.state_dict(FAMILY).items()}
        safetensors.torch.save_file(tensors, file)
        host.answer_as_a_card(bfloat16=DTYPE == "bfloat16")
        pages.install()
        with card:
            for case in cases(str(file)):
                print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
