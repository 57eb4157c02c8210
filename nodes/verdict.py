"""What Compare says of what it found, as messages: which setting is enough, and what to make of the rest."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from ..diffusion.faults import Message

AUTO = "auto"
SHARE = 4  # the reference may move by a quarter of the tolerance when its steps are doubled


class Tried(Protocol):
    """A setting that was run: its distance, and what it cost."""

    name: str  # of sampler and schedule
    cache: str  # the input whose MODEL it ran on; "" for the plain model
    steps: int
    calls: float
    distance: float


def label(result: Tried) -> str:
    """What a setting is called in pictures and tables."""
    return f"{result.name} · {result.cache}" if result.cache else result.name


def cheapest(results: Sequence[Tried], tolerance: float) -> tuple[Any, bool]:
    """(the result with the fewest calls among those near enough, True), or (the nearest one, False)."""
    near = [r for r in results if r.distance <= tolerance]
    if near:
        return min(near, key=lambda r: (r.calls, r.distance)), True
    return min(results, key=lambda r: r.distance), False


def answer(best: Tried, enough: bool, tolerance: float) -> Message:
    """How many steps are needed."""
    fields = dict(name=label(best), steps=best.steps, calls=best.calls, distance=best.distance)
    if enough:
        return Message(
            "Enough: {name} in {steps} steps, the cheapest within {tolerance:g}: {calls:g} model calls, "
            "distance {distance:.3f}.",
            tolerance=tolerance,
            **fields,
        )
    return Message(
        "None is within {tolerance:g}. Nearest: {name} in {steps} steps, {calls:g} model calls, distance "
        "{distance:.3f}. Ask for more steps, or allow more.",
        tolerance=tolerance,
        **fields,
    )


def remarks(
    results: Sequence[Tried], reference: Tried, drift: float, tolerance: float, least: int
) -> list[Message]:
    """What makes the answer doubtful, or surprises. least: model calls of a step of the plain model."""
    found = []
    if drift > tolerance / SHARE:
        found.append(
            Message(
                "The reference has not converged: distances near {drift:.3f} mean nothing. Allow a larger "
                "tolerance or less guidance.",
                drift=drift,
            )
        )
    saved = 1 - reference.calls / (least * reference.steps)
    if saved > 0.01:
        found.append(
            Message(
                "{percent:.0f} % of the reference's model calls were left out, so distances mean little. "
                "Wire the model without its cache to model, and the cached one to cached.",
                percent=100 * saved,
            )
        )
    return [*found, *_beaten(results), *_cached(results, tolerance)]


def _beaten(results):
    """Where the automatic choice was not the nearest for its calls, on the plain model."""
    plain = [r for r in results if not r.cache]
    lost = []
    for ours in (r for r in plain if r.name == AUTO):
        nearest = min((r for r in plain if r.calls <= ours.calls), key=lambda r: r.distance)
        if nearest.distance < ours.distance:
            part = Message("{steps} steps by {name}", steps=ours.steps, name=nearest.name)
            lost.append(part)
    if not lost:
        return []
    return [
        Message(
            "auto is beaten at no more calls: in {lost}. Another prompt or seed may tell otherwise.",
            lost=lost,
        )
    ]


def _cached(results, tolerance):
    """What each cached model came to, where it left anything out."""
    plain = {(r.name, r.steps): r.calls for r in results if not r.cache}
    for cache in dict.fromkeys(r.cache for r in results if r.cache):
        those = [r for r in results if r.cache == cache and r.calls < plain[r.name, r.steps]]
        if not those:
            yield Message(
                "{cache} left out no call in so few steps. A cache needs more of them, such as 20.",
                cache=cache,
            )
            continue
        best, enough = cheapest(those, tolerance)
        fields = dict(
            cache=cache,
            name=best.name,
            steps=best.steps,
            calls=best.calls,
            without=plain[best.name, best.steps],
            distance=best.distance,
        )
        if enough:
            yield Message(
                "Cheapest with {cache}: {name} in {steps} steps, {calls:g} model calls ({without:g} without "
                "it), distance {distance:.3f}.",
                **fields,
            )
        else:
            yield Message(
                "None with {cache} is within {tolerance:g}. Nearest: {name} in {steps} steps, {calls:g} "
                "model calls ({without:g} without it), distance {distance:.3f}.",
                tolerance=tolerance,
                **fields,
            )


def row(result: Tried, seconds: float) -> Message:
    """A line of the table."""
    fields = dict(name=label(result), steps=result.steps, calls=result.calls, seconds=seconds)
    if math.isfinite(result.distance):
        return Message(
            "{name}, {steps} steps: distance {distance:.3f}, {calls:g} model calls, {seconds:.2f} s",
            distance=result.distance,
            **fields,
        )
    return Message("{name}, {steps} steps: not finite, {calls:g} model calls, {seconds:.2f} s", **fields)
