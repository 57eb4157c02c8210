"""Which states of a sampler's run are kept."""

from collections.abc import Collection, Iterable, Iterator

import torch

from ...diffusion.samplers import State


def recorded(
    run: Iterable[State],
    kept: Collection[int],
    states: list[torch.Tensor],
    predictions: list[torch.Tensor],
) -> Iterator[State]:
    """Pass a sampler's states on, and append what is kept of them to the two lists.

    kept: places in the step grid. x is appended at each of them but the first of all, where sampling starts,
    the prediction x0 at each but the last of all, where none is made.
    """
    for state in run:
        if state.index in kept:
            predictions.append(state.x0)
        if state.index + 1 in kept:
            states.append(state.x)
        yield state
