"""What happened in a run that its user should know of: skipped updates, halved passes, states that were not
written.

An event is a dict as JSON has it: {"at": seconds since 1970, "update": n, "message": a `Message` as a dict}.
"""

from typing import Any

from ...diffusion.faults import Message
from .run import Run

MOST = 100  # events that are kept: the newest


class Events:
    """Compares a run with how it stood when it was last looked at."""

    def __init__(self, run: Run):
        self.run = run
        self.micro, self.skipped = run.descent.micro, run.descent.skipped

    def new(self) -> list[Message]:
        """What happened since, in words."""
        descent, found = self.run.descent, []
        if descent.micro < self.micro:
            found.append(
                Message(
                    "Memory ran out: {micro} samples at once from here on, the batch stays.",
                    micro=descent.micro,
                )
            )
        if descent.skipped > self.skipped:
            count = descent.skipped - self.skipped
            found.append(Message("Updates left out, as they were not finite: {count}.", count=count))
        self.micro, self.skipped = descent.micro, descent.skipped
        return found


def event(message: Message, update: int, now: float) -> dict[str, Any]:
    """That message as an event of this moment."""
    return {"at": round(now), "update": update, "message": message.to_dict()}
