"""What a run tells while it lives."""

import dataclasses


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
