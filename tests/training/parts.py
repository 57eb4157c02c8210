"""A tiny run in a folder, at once or in parts, and what it has to show."""

import torch
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.job import Job
from fewstep.training.run.run import Run
from tiny import Tiny

SMALL = {
    "updates": 20,
    "images": 6,
    "batch": 4,
    "chunk": 8,
    "image_steps": 4,
    "steps": 2,
    "phases": 2,
    "rank": 2,
    "real_updates": 4,
    "fake_updates": 3,
    "lead": 2,
}
ABOUT = {"base": "demo", "conditioning": "labels"}


def run(folder, last=None, every=3, **changes):
    """A run in that folder, cut off by a cancel after update `last`; closed. Its clock counts updates."""
    if changes.get("method") == "restoration":
        changes["process"] = [{"kind": "blur", "width": 1.0}, {"kind": "noise"}]
    run = Run(Tiny(), DistilConfig(**{**SMALL, **changes}))
    try:
        with Job(folder, run, ABOUT, every, clock=lambda: run.done) as job:
            for _ in job.progress():
                if run.done == last:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    finally:
        run.close()
    return run


def result(run):
    """All that a run has to show."""
    return (
        [*run.lora_tensors().values(), *run.student.averaged, *run.student.lora.parameters()],
        run.loss,
        run.probe.fidelity,
        run.probe.best.fidelity,
    )


def same(first, second):
    (tensors, *rest), (others, *again) = result(first), result(second)
    return rest == again and all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
