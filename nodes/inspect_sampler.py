"""What a SAMPLER does with a schedule on this model's path: found in a second, with no model call."""

import math

import torch
from comfy_api.latest import io

from ..diffusion import probe
from ..diffusion.faults import BadValue
from ..training.reports import pictures
from . import show
from .comfy import host, probing
from .training import FIXED

STATE, CROWD = (
    (1, 4, 16, 16),
    (1, 4, 128, 128),
)  # of the one-hot probe, and of the oracle whose statistics are taken


class InspectSampler(io.ComfyNode):
    """FewstepInspectSampler."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepInspectSampler",
            display_name="Inspect Sampler",
            category="Fewstep",
            description="Any sampler, ours, ComfyUI's or another pack's: how much each prediction weighs in the picture, how much "
            "of the seed's noise survives, and whether it is right on this kind of model. No model call.",
            search_aliases=["sampler weights", "seed survival", "debug sampler", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled. It is not run."),
                io.Sampler.Input("sampler", tooltip="The sampler to look into."),
                io.Sigmas.Input("sigmas", tooltip="The schedule to look at it with."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=FIXED,
                    tooltip="Of the sampler's own noise, where it draws any.",
                ),
            ],
            outputs=[io.Image.Output(display_name="plot"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, sampler, sigmas, seed):
        data = inspect(model, sampler, sigmas, seed)
        return show.output(cls, picture(data), data, data["report"])


def inspect(model, sampler, sigmas, seed=0):
    """Weights, survival, churn and verdict of a SAMPLER on that MODEL's path, as a dict that JSON can hold."""
    sampling = model.get_model_object("model_sampling")
    path, grid = host.path_of(sampling), host.check_range(sigmas, sampling)
    if grid[-1] > 0:
        raise BadValue(
            "sigmas must end at 0 to be inspected, got {got:g}. Wire the whole schedule, from before it is "
            "split.",
            got=grid[-1],
        )
    run = probing.runner(model, sampler, sigmas, seed)
    try:
        verdict = probe.marginals(run, path, CROWD, seed, unit=float(getattr(sampling, "noise_scale", 1.0)))
        weights = probe.prediction_weights(run, path, STATE)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, AssertionError) as error:
        raise BadValue(
            "sampler can't be inspected: it fails on this schedule of {count} steps with {kind}: {error}. "
            "Use more steps, or another sampler.",
            count=len(grid) - 1,
            kind=type(error).__name__,
            error=error,
        ) from error
    one_call = (
        len(weights.sigmas) == len(grid) - 1
    )  # a step; what a step of several calls renews is not seen between them
    levels = [
        v if abs(v) < 8 else None
        for v in path.log_snr(torch.tensor(weights.sigmas, dtype=torch.float64)).tolist()
    ]
    data = {
        "path": path.name,
        "steps": len(sigmas) - 1,
        "schedule": grid.tolist(),
        "calls": len(weights.sigmas),
        "sigmas": weights.sigmas,
        "log_snr": levels,
        "linear": weights.linear,
        "weights": [round(w, 6) for w in weights.predictions] if weights.linear else [],
        "survival": round(weights.survival, 6) if weights.linear else None,
        "churn": probe.churn_between_calls(run, path, STATE) if weights.linear and one_call else [],
        "verdict": verdict.text,
        "right": verdict.right,
        "signal": _finite(verdict.signal),
        "noise": _finite(verdict.noise),
    }
    return {**data, "report": report(data)}


def _finite(values):
    return [round(v, 4) if math.isfinite(v) else None for v in values]


def report(data):
    """What was found, in words."""
    lines = [
        f"{data['calls']} model calls for {data['steps']} steps on the {data['path']} path.",
        f"Oracle: {data['verdict']}.",
    ]
    if not data["linear"]:
        return "\n".join(
            [
                *lines,
                "This sampler is not linear in its predictions (it adapts to them), so their weights mean "
                "nothing and are not shown.",
            ]
        )
    weights = data["weights"]
    total = sum(weights)
    lines.append(
        f"Seed survival {data['survival']:.3f}: the share of the starting noise that outlives the run."
    )
    lines.append(
        f"The later half of the calls has {sum(weights[len(weights) // 2 :]) / total:.0%} of the weight."
        if abs(total) > 1e-3
        else "It makes nothing of its predictions on this schedule."
    )
    return "\n".join([*lines, "Weights: " + " ".join(f"{w:.3f}" for w in weights)])


def picture(data):
    """The plot of an inspection; signal and noise alone for a sampler that is not linear."""
    if data["linear"]:
        return pictures.sampler(data)
    calls = range(1, len(data["signal"]) + 1)
    return pictures.curves(
        [
            (
                "not linear: share of the expected signal and noise",
                "call",
                {
                    name: [(i, v) for i, v in zip(calls, data[name]) if v is not None]
                    for name in ("signal", "noise")
                },
            )
        ]
    )


NODES = [InspectSampler]
