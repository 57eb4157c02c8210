"""A guider that a sampler can ask for the conditional and the unconditional prediction apart.

To every other sampler it is the host's CFGGuider. A solver whose recipe weighs the two apart (`asks` of
`diffusion.solvers.linear`) hands an `Asked` down with the model options, through all that stands between (an
inpainting mask, wrappers), and the guider predicts what is asked and nothing else: all that one step asks in
one batch, as the host batches the two halves of guidance.

What works on the guided answer (RescaleCFG and its kind) has no place in a prediction that is asked apart.
The trajectories that the solver was fitted to have it.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.samplers import CFGGuider

from ...diffusion.faults import BadValue
from ...diffusion.solvers.linear import CONDITIONAL, GUIDED, UNCONDITIONAL

ASKED = "fewstep_asked"  # in the model options
CONDS = {CONDITIONAL: "positive", UNCONDITIONAL: "negative"}


class Asked:
    """One step's question: `kinds`, letters of `linear.KINDS`; `now`, the one wanted; `answers` so far."""

    def __init__(self, kinds: str):
        self.kinds, self.now = kinds, kinds[0]
        self.answers: dict[str, torch.Tensor] = {}


class ApartGuider(CFGGuider):
    """The host's guider, which also answers for an `Asked`."""

    answers_apart = True

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """x0: guided, or what is asked."""
        options = model_options or {}
        asked = options.get(ASKED)
        if asked is None or asked.now == GUIDED:
            return super().predict_noise(x, timestep, options, seed)
        if asked.now not in asked.answers:
            kinds = asked.kinds.replace(GUIDED, "")
            asked.answers.update(zip(kinds, self._parts(kinds, x, timestep, options)))
        return asked.answers.pop(asked.now)

    def _parts(self, kinds: str, x: torch.Tensor, timestep: torch.Tensor, options: dict) -> Sequence:
        conds = [self.conds.get(CONDS[kind]) for kind in kinds]
        if missing := [CONDS[kind] for kind, cond in zip(kinds, conds) if not cond]:
            raise BadValue(
                "{name} must be wired, as the recipe asks for its prediction; got none.", name=missing[0]
            )
        if "sampler_calc_cond_batch_function" in options:  # as the host's own sampling does
            args = {"conds": conds, "input": x, "sigma": timestep, "model": self.inner_model}
            return options["sampler_calc_cond_batch_function"]({**args, "model_options": options})
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)


def answers_apart(guider: Any) -> bool:
    """Whether a guider answers for an `Asked`."""
    return bool(getattr(guider, "answers_apart", False))


def apart_of(guider: CFGGuider) -> CFGGuider:
    """The guider as an `ApartGuider` where it is the host's own; others as they are."""
    if type(guider) is not CFGGuider:
        return guider
    made = copy.copy(guider)
    made.__class__ = ApartGuider
    return made


def ask(model: Callable, x: torch.Tensor, sigma: torch.Tensor, kinds: str, extra_args: dict) -> list:
    """One prediction of x0 for each letter of kinds, of the model that the host hands to a sampler."""
    asked, answers = Asked(kinds), []
    options = {**extra_args.get("model_options", {}), ASKED: asked}
    for asked.now in kinds:
        answers.append(model(x, sigma, **{**extra_args, "model_options": options}))
    return answers
