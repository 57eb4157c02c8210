"""What a SAMPLER does with a schedule on this model's path: found in a second, with no model call."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from PIL.Image import Image

from ..diffusion import probe
from ..diffusion.faults import BadValue, Message, lines
from ..training.reports import pictures
from . import show
from .comfy import levels, probing
from .server import messages
from .training import FIXED

STATE = (1, 4, 16, 16)  # of the one-hot probe
CROWD = (1, 4, 128, 128)  # of the oracle, whose statistics are taken
MOST = 8.0  # log-SNR; nearly noise or data beyond, where a plot has no place for it


class InspectSampler(io.ComfyNode):
    """FewstepInspectSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepInspectSampler",
            display_name="Inspect Sampler",
            category="Fewstep/sampling",
            description="Shows what any sampler does, ours, ComfyUI's or another pack's: how much each "
            "prediction counts in the picture, how much of the seed's noise survives, and whether it is "
            "right for this kind of model. Makes no model call.",
            search_aliases=["sampler weights", "seed survival", "debug sampler", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled. It is not run."),
                io.Sampler.Input("sampler", tooltip="The sampler to look into."),
                io.Sigmas.Input("sigmas", tooltip="The schedule to inspect it on."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=FIXED,
                    tooltip="Seed of the sampler's own noise, if it draws any.",
                ),
            ],
            outputs=[io.Image.Output(display_name="plot"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, sampler: io.Sampler.Type, sigmas: torch.Tensor, seed: int
    ) -> io.NodeOutput:
        data = inspect(model, sampler, sigmas, seed)
        return show.output(cls, picture(data), data, data["report"])


def inspect(
    model: io.Model.Type, sampler: io.Sampler.Type, sigmas: torch.Tensor, seed: int = 0
) -> dict[str, Any]:
    """Weights, survival, churn and verdict of a SAMPLER on that MODEL's path, as a dict that JSON can hold.

    Raises ValueError for a schedule that does not end at 0, and for a sampler that fails on it.
    """
    sampling = model.get_model_object("model_sampling")
    path, grid = levels.path_of(sampling), levels.check_range(sigmas, sampling)
    if grid[-1] > 0:
        raise BadValue(
            "sigmas must end at 0 to be inspected, got {got:g}. Wire the whole schedule, from before it is "
            "split.",
            got=grid[-1],
        )
    run = probing.runner(model, sampler, sigmas, seed)
    try:
        verdict = probe.marginals(run, path, CROWD, seed, unit=levels.noise_scale_of(sampling))
        weights = probe.prediction_weights(run, path, STATE)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, AssertionError) as error:
        raise BadValue(
            "sampler can't be inspected: it fails on this schedule of {count} steps with {kind}: {error}. "
            "Use more steps, or another sampler.",
            count=len(grid) - 1,
            kind=type(error).__name__,
            error=error,
        ) from error
    one_call_a_step = len(weights.sigmas) == len(grid) - 1  # several don't show what is renewed within a step
    log_snr = path.log_snr(torch.tensor(weights.sigmas, dtype=torch.float64)).tolist()
    data = {
        "path": path.name,
        "steps": len(sigmas) - 1,
        "schedule": grid.tolist(),
        "calls": len(weights.sigmas),
        "sigmas": weights.sigmas,
        "log_snr": [v if abs(v) < MOST else None for v in log_snr],
        "linear": weights.linear,
        "weights": [round(w, 6) for w in weights.predictions] if weights.linear else [],
        "survival": round(weights.survival, 6) if weights.linear else None,
        "churn": probe.churn_between_calls(run, path, STATE) if weights.linear and one_call_a_step else [],
        "verdict": verdict.text,
        "right": verdict.right,
        "signal": _finite(verdict.signal),
        "noise": _finite(verdict.noise),
    }
    return {**data, "report": messages.told(report(data, verdict))}


def _finite(values: Sequence[float]) -> list[float | None]:
    return [round(v, 4) if math.isfinite(v) else None for v in values]


def report(data: dict[str, Any], verdict: probe.Verdict) -> Message:
    """What was found, in words."""
    found = {name: data[name] for name in ("calls", "steps", "path")}
    told = [
        Message("{calls} model calls for {steps} steps on the {path} path.", **found),
        *(Message("Oracle: {verdict}.", verdict=one) for one in verdict.messages),
    ]
    if not data["linear"]:
        told.append(
            Message(
                "This sampler is not linear in its predictions (it adapts to them), so their weights mean "
                "nothing and are not shown."
            )
        )
        return lines(*told)
    weights = data["weights"]
    total, late = sum(weights), sum(weights[len(weights) // 2 :])
    told.append(
        Message(
            "Seed survival {survival:.3f}: the share of the starting noise that outlives the run.",
            survival=data["survival"],
        )
    )
    if abs(total) > 1e-3:
        told.append(Message("The later half of the calls has {share:.0%} of the weight.", share=late / total))
    else:
        told.append(Message("It makes nothing of its predictions on this schedule."))
    return lines(*told, Message("Weights: {weights:.3f}", weights=weights))


def picture(data: dict[str, Any]) -> Image:
    """The plot of an inspection; signal and noise alone for a sampler that is not linear."""
    if data["linear"]:
        return pictures.sampler(data)
    shares = {
        title: [(call, share) for call, share in enumerate(data[name], 1) if share is not None]
        for name, title in {"signal": Message("signal"), "noise": Message("noise")}.items()
    }
    title = Message("not linear: share of the expected signal and noise")
    return pictures.curves([(title, Message("call"), shares)])


NODES = [InspectSampler]
