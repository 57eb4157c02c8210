"""How near the student has come: its pictures from held-out noise beside what they should be.

Fidelity is the RMSE of the two, in model space. It is measured at the start, at the end, and MEASURED times
between.
"""

import dataclasses
import math

import torch

from .average import on_host
from .student import Adapter

MEASURED = 12
PARTS = ("probe.noise", "probe.condition", "probe.reference")  # of a saved state


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """noise (P, ...), condition (P,), and the reference (P, ...) that it should become; never learnt from."""

    noise: torch.Tensor
    condition: torch.Tensor
    reference: torch.Tensor

    def first(self, count: int) -> "HeldOut":
        """The first `count` of them."""
        return HeldOut(
            noise=self.noise[:count], condition=self.condition[:count], reference=self.reference[:count]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The averaged adapter where it measured best."""

    fidelity: float
    adapter: Adapter


class Probe:
    """Measurements of one run.

    held       what they are made on; None until the data are there
    drawn      the pictures of the last measurement
    fidelity   [(update, RMSE)]
    best       None until something was learnt and measured
    """

    def __init__(self, updates: int):
        self.updates = updates
        self.held: HeldOut | None = None
        self.drawn: torch.Tensor | None = None
        self.best: Best | None = None
        self.fidelity: list[tuple[int, float]] = []

    def is_due(self, done: int) -> bool:
        """Whether a measurement has to be made now."""
        every = max(1, self.updates // MEASURED)
        at_rest = done % every == 0 or done == self.updates
        return at_rest and (not self.fidelity or self.fidelity[-1][0] != done)

    def take(self, drawn: torch.Tensor, done: int, adapter: Adapter) -> float:
        """Take down the pictures that this adapter made after `done` updates; returns their fidelity."""
        self.drawn = drawn
        value = float((drawn - self.held.reference).square().mean().sqrt())
        if done and math.isfinite(value) and (self.best is None or value < self.best.fidelity):
            self.best = Best(fidelity=value, adapter=on_host(adapter))
        self.fidelity.append((done, value))  # last: cut off before it, the measurement is made again
        return value

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """({name: tensor}, JSON-able dict) for `restore`."""
        tensors = {f"best.{i}": v for i, v in enumerate(self.best.adapter if self.best else ())}
        if self.held:
            tensors |= dict(zip(PARTS, (self.held.noise, self.held.condition, self.held.reference)))
        return tensors, {"best": self.best and self.best.fidelity, "fidelity": self.fidelity}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict, like: Adapter) -> None:
        """Take over what `state` gave; like: an adapter of the same model."""
        best = adapter_in(tensors, "best", like)
        self.best = Best(fidelity=numbers["best"], adapter=best) if best else None
        if PARTS[0] in tensors:
            noise, condition, reference = (tensors[name] for name in PARTS)
            self.held = HeldOut(noise=noise, condition=condition, reference=reference)
        else:
            self.held = None
        self.fidelity = [(update, value) for update, value in numbers["fidelity"]]


def adapter_in(tensors: dict[str, torch.Tensor], name: str, like: Adapter) -> list[torch.Tensor] | None:
    """The adapter, with as many tensors as `like`, that a state has under that name; None if it has none."""
    if f"{name}.0" not in tensors:
        return None
    return on_host([tensors[f"{name}.{i}"] for i in range(len(like))])
