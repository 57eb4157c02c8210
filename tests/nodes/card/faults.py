"""Whether the proof of a gradient refuses what is wrong and nothing that is right, in the model's precision.

    python faults.py FAMILY DTYPE [WAY ...]

prints a line of JSON for each way in which the model may live and each planted fault: what the proof said,
and how far the run's gradient really is from that of resident weights.
"""

import itertools
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

FAMILY, DTYPE, *WANTED = sys.argv[1:]
RANK, BLOCKS = 2, 2

session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
denoisers, proof = host.pack("nodes.comfy.denoiser"), host.pack("training.adapter.proof")
backwards, loras = host.pack("training.adapter.backward"), host.pack("training.adapter.lora")

# (how much of the weights finds room in pages, of how many layers one finds none, whether all are taken away
# after the forward pass)
SHARES = {
    "resident": (2.0, 0, False),
    "95 %": (2.0, 20, False),
    "60 %": (0.6, 0, False),
    "evicted": (2.0, 0, True),
}


class Case:
    """x0-MSE of a LoRA on every layer of the loaded model."""

    def __init__(self, patcher, evicted=False):
        one, other = zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)
        self.denoiser = denoisers.ComfyDenoiser(patcher, one, other, zoo.latent(FAMILY))
        self.lora = loras.Lora(self.denoiser.module, RANK, device=self.denoiser.device)
        self.parameters, self.evicted = self.lora.parameters(), evicted
        g = zoo.generator(FAMILY, 5)
        with torch.no_grad():
            for pair in self.lora.weights.values():
                pair["up"].copy_(0.1 * torch.randn(pair["up"].shape, generator=g))
        self.sigma = self.denoiser.sigma_of(torch.tensor([0.5])).float()
        self.x, self.goal = zoo.latent(FAMILY) * (1 + self.sigma), zoo.latent(FAMILY, seed=1)

    def loss(self):
        off = self.denoiser(self.x, self.sigma, torch.tensor([0])).double() - self.goal.double()
        if self.evicted:
            pages.ROOM.empty()
        return off.square().sum()

    def gradient(self, backward):
        backward(self.loss)
        gradients = [torch.zeros(p.shape) if p.grad is None else p.grad.cpu() for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return torch.cat([gradient.flatten().double() for gradient in gradients])  # none where it is cut off

    def verdict(self, backward, exact):
        """What the proof says of that backward pass, and its distance from the exact gradient."""
        found = self.gradient(backward)
        arguments = self.loss, self.parameters, getattr(torch, DTYPE), backward, self.denoiser.in_float32
        try:
            shares = proof.check_gradient(*arguments)
            said = {"refused": None, "copies": shares.copies, "directions": shares.directions}
        except ArithmeticError as error:
            said = {"refused": str(error)}
        off = float((found - exact).norm() / exact.norm())
        return {**said, "off": off if off == off else None}

    def middle(self):
        """Of the blocks' layers whose input wants a gradient, a prompt's does not, the one in the middle."""
        layers = [self.denoiser.module.get_submodule(name) for name in self.lora.weights if "block" in name]
        found = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda layer, x: found.append(layer) if x[0].requires_grad else None
            )
            for layer in layers
        ]
        self.loss()
        for hook in hooks:
            hook.remove()
        return found[len(found) // 2]


class Unseen(backwards.Backward):
    """`exact_graph` is off, and saved-tensor hooks hide from PyTorch what is written over."""

    def __call__(self, compute):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            loss = compute()
        loss.backward()
        return loss.detach()


def write_over(layer, inputs, output):
    """The model's own write over what a layer got, once it has answered."""
    inputs[0].mul_(0.5)


def cut(layer, inputs):
    return (inputs[0].detach(), *inputs[1:])


def opened(file, where, share=2.0, every=0):
    pages.ROOM.empty()
    pages.ROOM.every = every
    options = {} if DTYPE == "float32" else {"dtype": getattr(torch, DTYPE)}
    with torch.inference_mode():
        model = host.sd.load_diffusion_model(file, options)
    pages.ROOM.room = round(share * residency.weight_bytes(model.model))
    return session.training_session(model, where)


def verdicts(file):
    exact = None
    for way in WANTED or SHARES:
        share, every, evicted = SHARES[way]
        where = residency.RESIDENT if way == "resident" else residency.STREAMED
        with opened(file, where, share, every) as patcher:
            case = Case(patcher, evicted)
            ways = {way: case.denoiser.streamed, f"{way}, not called again": list}
            for (name, streamed), checkpointing in itertools.product(ways.items(), (False, True)):
                backward = backwards.Backward(case.denoiser.module, case.parameters, checkpointing, streamed)
                exact = case.gradient(backward) if exact is None else exact
                yield {"way": name, "checkpointing": checkpointing, **case.verdict(backward, exact)}
            case.lora.remove()
    with opened(file, residency.RESIDENT) as patcher:
        case = Case(patcher)
        hook = case.middle().register_forward_hook(write_over)
        module = case.denoiser.module
        right = backwards.Backward(module, case.parameters)
        written = case.gradient(right)
        yield {"way": "written over, exact graph", **case.verdict(right, written)}
        yield {"way": "written over, unseen", **case.verdict(Unseen(module, case.parameters), written)}
        hook.remove()
        hook = case.middle().register_forward_pre_hook(cut)
        backward = backwards.Backward(module, case.parameters)
        yield {"way": "input cut off", **case.verdict(backward, exact)}
        hook.remove()
        case.lora.remove()


def main():
    with tempfile.TemporaryDirectory() as folder:
        file, dtype = Path(folder) / "model.safetensors", getattr(torch, DTYPE)
        tensors = {key: value.to(dtype).contiguous() for key, value in zoo.state_dict(FAMILY, BLOCKS).items()}
        safetensors.torch.save_file(tensors, file)
        host.answer_as_a_card(bfloat16=DTYPE == "bfloat16", float16=DTYPE == "float16")
        pages.install()
        with PretendedCard():
            for verdict in verdicts(str(file)):
                print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
