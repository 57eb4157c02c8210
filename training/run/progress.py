"""What a run tells while it lives."""

import dataclasses
import time

TOLD_AFTER = 10  # updates, before a run tells how long it will take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run: `stage` ("sampling the teacher", "training", ...), and step of total in all."""

    stage: str
    step: int
    total: int
    loss: float | None = None
    fidelity: float | None = None  # RMSE to the reference, model space, when it was just measured
    samples_per_second: float | None = None
    fitting: int | None = None  # of a fit: the step count under way
    seconds_left: float | None = None


class Pace:
    """How fast a run's student learns: by its updates since nothing else came between, and the time."""

    def __init__(self):
        self.restart(0)

    def restart(self, done: int) -> None:
        """Something else was made after `done` updates: from here anew."""
        self.first, self.since = done, time.perf_counter()

    def rate(self, done: int) -> float:
        """Updates a second."""
        return (done - self.first) / max(time.perf_counter() - self.since, 1e-9)

    def left(self, done: int, updates: int) -> float | None:
        """Seconds until that many updates; None before there are enough to tell."""
        return (updates - done) / self.rate(done) if done - self.first >= TOLD_AFTER else None
