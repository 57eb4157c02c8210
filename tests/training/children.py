"""Runs for processes of their own, in which this file comes first: it makes the checkout importable, as
pytest's conftest does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import conftest  # noqa: F401
import torch
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.interrupts import ended_in_order
from fewstep.training.run.job import Job
from fewstep.training.run.run import Run
from parts import ABOUT, SMALL
from tiny import Tiny


def told(pipe, folder, every, width, changes):
    """A run that sends the updates done after each."""
    torch.set_num_threads(1)
    run = Run(Tiny(width), DistilConfig(**{**SMALL, **changes}))
    with ended_in_order(), Job(folder, run, ABOUT, every, clock=lambda: run.done) as job:
        for _ in job.progress():
            pipe.send(run.done)
