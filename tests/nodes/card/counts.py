"""What an update asks of a card whose memory holds the weights: calls of the network, waits, and transfers.

    python counts.py FAMILY ...

prints a line of JSON for each family. A batch has as many prompts as samples, and its loss wants the student
and its target; the run is the product's own.
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
from device import CARD, PretendedCard

BATCH = 4
SETTINGS = dict(
    method="phased", steps=2, updates=2, batch=BATCH, images=BATCH, image_steps=2, rank=2, cfg=2.0, phases=1
)
session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
denoisers, runs = host.pack("nodes.comfy.denoiser"), host.pack("training.run.run")
configs = host.pack("training.run.config")
card = PretendedCard()


class Counted:
    """What happened meanwhile: calls of the network, and the card's counts with their lines."""

    def __init__(self, module):
        self.module = module

    def __enter__(self):
        card.syncs.clear()
        card.transfers.clear()
        self.calls = 0
        self.hook = self.module.register_forward_hook(self._called)
        return self

    def _called(self, *_):
        self.calls += 1

    def __exit__(self, *error):
        self.hook.remove()
        self.syncs, self.transfers = (_lines(c) for c in (card.syncs, card.transfers))
        self.figures = {
            "calls": self.calls,
            "syncs": sum(card.syncs.values()),
            "transfers": sum(card.transfers.values()),
            "lines": {"syncs": self.syncs, "transfers": self.transfers},
        }


def _lines(counter):
    return [f"{n} x {what} at {line}" for (what, line), n in counter.most_common()]


def counted(family, file):
    """The figures of a student call, one with its gradient, a guided one of the teacher, and an update."""
    with torch.inference_mode():
        model = host.sd.load_diffusion_model(str(file))
    prompts = [entry for seed in range(BATCH) for entry in zoo.conditioning(family, seed)]
    with session.training_session(model, residency.RESIDENT) as patcher:
        denoiser = denoisers.ComfyDenoiser(patcher, prompts, zoo.conditioning(family, 9), zoo.latent(family))
        torch.cuda.is_available = lambda: True  # whereupon the average is moved as on a card
        run = runs.Run(denoiser, configs.DistilConfig(**SETTINGS))
        try:
            steps = (p for p in run.progress() if p.stage == "training")
            next(steps)  # what is made once is made
            module, student = denoiser.module, run.student
            x, numbers = zoo.latent(family, batch=BATCH), torch.arange(BATCH)
            sigma = denoiser.sigma_of(torch.full((BATCH,), 0.5)).float()
            with Counted(module) as forward, torch.no_grad():
                student.student(x, sigma, numbers)
            with Counted(module) as both:
                run.descent.backward(lambda: student.student(x, sigma, numbers).square().mean())
            run.descent.optimiser.zero_grad(set_to_none=True)
            with Counted(module) as teacher, torch.no_grad():
                student.teacher(x, sigma, numbers)
            with Counted(module) as update:
                run.update()
        finally:
            run.close()
    named = {"forward": forward, "with its gradient": both, "teacher": teacher, "update": update}
    return {"family": family, **{name: part.figures for name, part in named.items()}}


def planted():
    """The waits that were counted of each kind that is counted at all."""
    ours, on_card = torch.ones(3), torch.ones(3).to(CARD)
    ways = {
        "item": lambda: on_card.sum().item(),
        "bool": lambda: bool(on_card.sum() > 0),
        "float": lambda: float(on_card.sum()),
        "tolist": on_card.tolist,
        "cpu": on_card.cpu,
        "nonzero": on_card.nonzero,
        "mask": lambda: on_card[on_card > 0],
        "put by a mask": lambda: on_card.clone().index_put_((on_card > 0,), on_card[:1]),
        "unique": on_card.unique,
        "equal": lambda: torch.equal(on_card, on_card),
        "to the card": lambda: ours.to(CARD),
        "copied to it": lambda: on_card.clone().copy_(ours),
        "not blocking": lambda: ours.to(CARD, non_blocking=True),
        "on the CPU": lambda: bool(ours.sum() > 0),
        "on the card": lambda: on_card + on_card,
    }
    found = {}
    for name, way in ways.items():
        card.syncs.clear()
        way()
        found[name] = sum(card.syncs.values())
    return found


def main():
    host.pack("training.run.source").PROBES = 1
    with tempfile.TemporaryDirectory() as folder:
        files = {family: Path(folder) / f"{family}.safetensors" for family in sys.argv[1:]}
        for family, file in files.items():
            tensors = {key: value.contiguous() for key, value in zoo.state_dict(family).items()}
            safetensors.torch.save_file(tensors, file)
        host.answer_as_a_card(bfloat16=False)
        pages.install()
        with card:
            print(json.dumps({"planted": planted()}))
            for family, file in files.items():
                print(json.dumps(counted(family, file)), flush=True)


if __name__ == "__main__":
    main()
