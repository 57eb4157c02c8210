"""What happened in a run that its user should know of: skipped updates, halved passes, states that were not
written, pictures that become alike or leave the teacher's.

An event is a dict as JSON has it: {"at": seconds since 1970, "update": n, "message": a `Message` as a dict}.
"""

from typing import Any

from ...diffusion.faults import Message
from ..methods.matching import agreement
from .run import Run
from .sight import Faces, are_alike, has_left

UNTRUE, SETTLED = 0.1, 40  # share of truth at which the fake is behind; updates of matching before that
MOST = 100  # events that are kept: the newest


class Events:
    """Compares a run with how it stood when it was last looked at."""

    def __init__(self, run: Run):
        self.run = run
        self.micro, self.skipped, self.behind = run.learners.micro, run.learners.skipped, False
        self.measured, self.told = max(run.probe.faces, default=-1), ""

    def new(self) -> list[Message]:
        """What happened since, in words."""
        learners, found = self.run.learners, []
        if learners.micro < self.micro:
            found.append(
                Message(
                    "Memory ran out: {micro} samples at once from here on, the batch stays.",
                    micro=learners.micro,
                )
            )
        if learners.skipped > self.skipped:
            count = learners.skipped - self.skipped
            found.append(Message("Updates left out, as they were not finite: {count}.", count=count))
        self.micro, self.skipped = learners.micro, learners.skipped
        return found + self._followed() + self._seen()

    def _followed(self):
        """Once, that the score of the student's pictures falls behind them."""
        run = self.run
        truth, turned = agreement(run.learners.told), run.learners.turned or 0
        if self.behind or truth is None or truth > UNTRUE or run.done - turned < SETTLED:
            return []
        self.behind = True
        return [
            Message(
                "What is known of the student's own pictures falls behind them: {share:.0%} of what it says "
                "is true. Train with a larger batch or a lower learning rate, on the command line also with "
                "a higher lead than {lead}.",
                share=max(0.0, truth),
                lead=run.config.lead,
            )
        ]

    def _seen(self):
        """What the last measurement shows that was not told of the one before."""
        faces = self.run.probe.faces
        if max(faces, default=-1) == self.measured:
            return []
        self.measured = max(faces)
        message = advice(faces)
        key, self.told = self.told, message.key if message else ""
        return [message] if message and message.key != key else []


def advice(faces: dict[int, Faces]) -> Message | None:
    """What is wrong with the last of a run's measurements {update: `Faces`}, as far as its intervals hold it,
    and what to do; None where nothing is.
    """
    last = faces[max(faces)]
    if has_left(faces):
        return Message(
            "The pictures leave the teacher's: their mean has moved by {drift:.2f} deviations, their spread "
            "is {spread:.0%} of the teacher's. Stop and keep the best so far, and train with a lower "
            "learning_rate; see that the negative prompt is a real one, if only an empty text.",
            drift=last.drift,
            spread=last.spread,
        )
    if are_alike(faces):
        return Message(
            "The pictures of one prompt become alike: their diversity is {share:.0%} of the teacher's, at "
            "most {most:.0%}. Stop and keep the best so far, and train with a lower learning_rate, or with "
            "the method phased.",
            share=last.diversity.value,
            most=last.diversity.high,
        )
    return None


def event(message: Message, update: int, now: float) -> dict[str, Any]:
    """That message as an event of this moment."""
    return {"at": round(now), "update": update, "message": message.to_dict()}
