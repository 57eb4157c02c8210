"""Schedules as nodes: SIGMAS made for the wired MODEL, edited, moved to another one, and shown."""

from typing import Any

import torch
from comfy_api.latest import io

from ..diffusion.schedules import edits, grids
from ..training.reports import pictures
from . import show, zero
from .comfy import levels, model_info

CATEGORY = "Fewstep/sampling"
MOST = 8.0  # log-SNR; nearly noise or data beyond, where a plot has no place for it


def _rho(default: float) -> io.Float.Input:
    return io.Float.Input(
        "rho",
        default=default,
        min=0.1,
        max=50.0,
        step=0.1,
        tooltip="karras: higher puts more steps near the picture, 7 is usual. polyexponential: below 1 puts "
        "more near the noise, above 1 more near the picture.",
    )


def _options(schedule: str) -> list:
    """The inputs that a grid has beside its name."""
    match schedule:
        case "karras":
            return [_rho(7.0)]
        case "polyexponential":
            return [_rho(1.0)]
        case "beta":
            return [
                io.Float.Input(
                    "alpha",
                    default=0.6,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    tooltip="Below 1: more steps near the picture; above 1: fewer.",
                ),
                io.Float.Input(
                    "beta",
                    default=0.6,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    tooltip="Below 1: more steps near the noise; above 1: fewer.",
                ),
            ]
        case "trailing anchors":
            return [
                io.Int.Input(
                    "anchors",
                    default=grids.ANCHORS,
                    min=1,
                    max=1000,
                    tooltip="How many equal times the model was distilled on. LCM: 50.",
                )
            ]
        case "phase edges":
            return [
                io.Int.Input(
                    "phases",
                    default=grids.PHASES,
                    min=1,
                    max=64,
                    tooltip="How many phases the model was distilled with (PCM).",
                )
            ]
        case _:
            return []


def schedule_input() -> io.DynamicCombo.Input:
    """The choice of grid, each with its own options."""
    return io.DynamicCombo.Input(
        "schedule",
        options=[io.DynamicCombo.Option(name, _options(name)) for name in grids.NAMES],
        tooltip="uniform: equal time steps, what distilled LoRAs are made for. auto: what measured best for "
        "this kind of model and step count. log-SNR, log sigma, karras, polyexponential, cosine: equal steps "
        "on another scale. beta: more steps at both ends. trailing anchors (LCM), phase edges (PCM): the "
        "times that such a model was trained on. AYS: published tables, moved to this model.",
    )


class Schedule(io.ComfyNode):
    """FewstepSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepSchedule",
            display_name="Few-Step Schedule",
            category=CATEGORY,
            description="Chooses the noise levels at which the model is called, for the wired model's own "
            "range and shift. Always exactly `steps` steps, from the model's largest noise level to 0.",
            search_aliases=["sigmas", "scheduler", "karras", "beta", "ays", "fewstep"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled."),
                schedule_input(),
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Number of sampling steps."),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Above 1: more of the steps near the noise, on top of the model's own shift; "
                    "this helps at few steps. Distil Few-Step LoRA uses 3 in all: set 3 here for Stable "
                    "Diffusion 1.5, 2 and SDXL, and 1 for models whose own shift is 3 or more (SD3, Flux, "
                    "Wan).",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For image to image: the share of the way that is run. 1 starts from pure noise.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS")],
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, schedule: dict[str, Any], steps: int, shift: float, denoise: float
    ) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        path, sigma_of = levels.path_of(sampling), levels.sigma_of(sampling)
        options = {key: value for key, value in schedule.items() if key != "schedule"}
        grid = grids.grid(schedule["schedule"], steps, sigma_of, path, denoise, shift, **options)
        sigmas = grid.float()
        return io.NodeOutput(sigmas, ui=model_info.shown(sigmas, sampling))


class EditSchedule(io.ComfyNode):
    """FewstepEditSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepEditSchedule",
            display_name="Edit Schedule",
            category=CATEGORY,
            description="Shift, scale, blend, snap and split a schedule from any node, in the wired model's "
            "own time. The edits are made in the order of the inputs, but part comes before split.",
            search_aliases=["split sigmas", "shift sigmas", "blend sigmas", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the schedule is for."),
                io.Sigmas.Input("sigmas", tooltip="The schedule to edit."),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Above 1: more of the steps near the noise. The ends stay.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Multiplies all noise levels (noise over signal), but never above the model's "
                    "largest.",
                ),
                io.Sigmas.Input(
                    "blend_with",
                    optional=True,
                    tooltip="A second schedule to mix in; it may have another number of steps.",
                ),
                io.Float.Input(
                    "blend",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the second schedule to mix in, if one is wired.",
                ),
                io.Int.Input(
                    "snap",
                    default=0,
                    min=0,
                    max=1000,
                    extra_dict=zero.OFF,
                    tooltip="Moves each step to the nearest of this many equal times, for distilled models. "
                    "0 is off.",
                ),
                io.Int.Input(
                    "split",
                    default=0,
                    min=0,
                    max=999,
                    extra_dict=zero.OFF,
                    tooltip="HIGH holds the steps before this one, LOW the others. 0 is off: HIGH is all, "
                    "LOW the last step.",
                ),
                io.Sigmas.Input(
                    "part",
                    optional=True,
                    tooltip="Wire a schedule that runs only part of the way, for a second pass or one of two "
                    "models: only the levels between its two ends are kept, and its ends become the new "
                    "ends. Done before split.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(display_name="SIGMAS"),
                io.Sigmas.Output("high", display_name="HIGH"),
                io.Sigmas.Output("low", display_name="LOW"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        sigmas: torch.Tensor,
        shift: float,
        scale: float,
        blend: float,
        snap: int,
        split: int,
        blend_with: torch.Tensor | None = None,
        part: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        path, sigma_of = levels.path_of(sampling), levels.sigma_of(sampling)
        grid = edits.shift(levels.check_range(sigmas, sampling), sigma_of, shift)
        grid = edits.scale(grid, path, scale, float(sampling.sigma_max))
        if blend_with is not None:
            grid = edits.blend(grid, levels.check_range(blend_with, sampling, "blend_with"), sigma_of, blend)
        if snap:
            grid = edits.snap(grid, sigma_of, snap)
        if part is not None:
            grid = edits.part(grid, levels.check_range(part, sampling, "part"), path)
        high, low = edits.split(grid, split) if split else (grid, grid[-2:])
        return io.NodeOutput(grid.float(), high.float(), low.float())


class TranslateSchedule(io.ComfyNode):
    """FewstepTranslateSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepTranslateSchedule",
            display_name="Translate Schedule",
            category=CATEGORY,
            description="Moves a schedule from one model to another: each step keeps its signal-to-noise "
            "ratio, starting from the other model's largest noise level.",
            search_aliases=["convert sigmas", "fewstep"],
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="The schedule made for from_model."),
                io.Model.Input("from_model", tooltip="The model that the schedule was made for."),
                io.Model.Input("to_model", tooltip="The model to move it to."),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS")],
        )

    @classmethod
    def execute(
        cls, sigmas: torch.Tensor, from_model: io.Model.Type, to_model: io.Model.Type
    ) -> io.NodeOutput:
        a, b = (model.get_model_object("model_sampling") for model in (from_model, to_model))
        path_a, path_b = levels.path_of(a, "from_model"), levels.path_of(b, "to_model")
        grid = edits.translate(sigmas, path_a, float(a.sigma_max), path_b, float(b.sigma_max))
        return io.NodeOutput(grid.float())


class ShowSchedule(io.ComfyNode):
    """FewstepShowSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            io.Sigmas.Input(f"sigmas_{i}", optional=True, tooltip="Another schedule to draw beside it.")
            for i in (2, 3, 4)
        ]
        return io.Schema(
            node_id="FewstepShowSchedule",
            display_name="Show Schedule",
            category=CATEGORY,
            description="Plots up to four schedules step by step: signal-to-noise ratio and the model's own "
            "time.",
            search_aliases=["plot sigmas", "sigma graph", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the schedules are for."),
                io.Sigmas.Input("sigmas", tooltip="The schedule."),
                *more,
            ],
            outputs=[io.Image.Output(display_name="plot")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        sigmas: torch.Tensor,
        sigmas_2: torch.Tensor | None = None,
        sigmas_3: torch.Tensor | None = None,
        sigmas_4: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        path, sigma_of = levels.path_of(sampling), levels.sigma_of(sampling)
        given = {"sigmas": sigmas, "sigmas_2": sigmas_2, "sigmas_3": sigmas_3, "sigmas_4": sigmas_4}
        drawn = {name: levels.check_range(s, sampling, name) for name, s in given.items() if s is not None}
        data = {
            name: {
                "sigmas": g.tolist(),
                "time": grids.time_of(sigma_of, g).tolist(),
                "log_snr": [v if abs(v) < MOST else None for v in path.log_snr(g).tolist()],
            }
            for name, g in drawn.items()
        }
        return show.output(cls, pictures.schedules(data), {"schedules": data})


NODES = [Schedule, EditSchedule, TranslateSchedule, ShowSchedule]
