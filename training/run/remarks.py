"""What a user should know of a run before it takes long: nothing forbids it, but it is hardly meant so."""

import math

from ...diffusion.faults import Message
from .run import Run

NEAR = 0.08  # of the pictures' own deviation: an untrained model this near to the teacher has nothing to gain


def before(run: Run) -> list[Message]:
    """Of model and settings, before anything is drawn."""
    found, config = [], run.config
    if run.learners.roles and run.denoiser.conditions == 1:
        found.append(
            Message(
                "There is one prompt: {method} learns how its pictures are distributed, and of others "
                "nothing. Wire more, with Prompts for Distilling for instance.",
                method=config.method,
            )
        )
    if run.learners.roles and config.cfg == 1 and not run.source.drawn:  # else by a guider of its own
        found.append(
            Message(
                "The teacher's pictures are drawn at CFG 1, which is right for a model that has guidance "
                "built in. Else set cfg to what you sample with."
            )
        )
    return found


def measured(run: Run) -> list[Message]:
    """Of the first measurement, which is of the model itself or of the LoRA that the run begins with."""
    held, fidelity = run.probe.held, run.probe.fidelity
    if held is None or not fidelity or fidelity[0][0] != 0 or run.config.restores:
        return []
    share = fidelity[0][1] / max(float(held.reference.std()), 1e-12)
    if not math.isfinite(share) or share > NEAR:
        return []
    return [
        Message(
            "In {steps} steps without CFG the model comes within {share:.0%} of its own pictures before any "
            "training: it needs few steps already. Stop here, or choose fewer steps.",
            steps=run.config.steps,
            share=share,
        )
    ]
