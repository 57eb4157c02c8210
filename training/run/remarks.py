"""What a user should know of a run before it takes long: nothing forbids it, but it is hardly meant so."""

import math

from ...diffusion.faults import Message
from .run import Run

NEAR = 0.08  # of the pictures' own deviation: an untrained model this near to the teacher has nothing to gain


class Remarks:
    """What is said of a run, each once; said: all of it so far."""

    def __init__(self, run: Run):
        self.run, self.said, self.judged = run, before(run), run.config.restores

    def new(self) -> list[Message]:
        """What the first pictures show, once they are there."""
        share = None if self.judged else _share(self.run)
        if share is None:
            return []
        self.judged, found = True, _of_first(self.run, share)
        self.said += found
        return found


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


def _share(run):
    """How far pictures in the run's steps are from the teacher's before any training, in the deviation of
    these: of the first that the teacher draws, else of those held out; None as long as there are none.
    """
    held, fidelity = run.probe.held, run.probe.fidelity
    if fidelity:
        first, error = fidelity[0]
        return error / _deviation(held) if held is not None and first == 0 else math.inf
    held = run.source.first()
    if held is None:
        return None
    drawn = run.task.draw(held, run.student.averaged)
    return float((drawn - held.reference).square().mean().sqrt()) / _deviation(held)


def _deviation(held):
    return max(float(held.reference.std()), 1e-12)


def _of_first(run, share):
    """What there is to say of that share: of the model itself, or of the LoRA that the run begins with."""
    if not share <= NEAR:
        return []
    if run.student.warmed:
        return [
            Message(
                "In {steps} steps without CFG the LoRA that the run begins with comes within {share:.0%} of "
                "the model's own pictures before any training: there is little left to gain. Stop here, or "
                "choose fewer steps.",
                steps=run.config.steps,
                share=share,
            )
        ]
    return [
        Message(
            "In {steps} steps without CFG the model comes within {share:.0%} of its own pictures before any "
            "training: it needs few steps already. Stop here, or choose fewer steps.",
            steps=run.config.steps,
            share=share,
        )
    ]
