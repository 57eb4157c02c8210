"""Draw Schedule: SIGMAS along a curve that the user drags on the node."""

import json
from typing import Any

from comfy_api.latest import io

from ..diffusion.faults import BadValue, message_of
from ..diffusion.schedules import drawn
from .comfy import levels, model_info

START = "[[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]"  # a straight line, the uniform schedule
LONGEST = 10_000  # characters


class DrawSchedule(io.ComfyNode):
    """FewstepDrawSchedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepDrawSchedule",
            display_name="Draw Schedule",
            category="Fewstep/sampling",
            description="Draw a schedule by hand: drag the points of the curve. Left to right are the steps; "
            "top to bottom is the wired model's own time, from noise to picture.",
            search_aliases=["curve", "custom sigmas", "manual sigmas", "schedule editor", "fewstep"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled."),
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Number of sampling steps."),
                io.String.Input(
                    "points",
                    default=START,
                    tooltip="The points of the curve as JSON: pairs of [share of the steps, time], both from "
                    "0 to 1.",
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
    def validate_inputs(cls, points: str | None) -> bool | str:
        try:
            if points is not None:  # not known yet: wired from another node
                drawn.control_points(read(points))
        except ValueError as error:
            return message_of(error)
        return True

    @classmethod
    def execute(cls, model: io.Model.Type, steps: int, points: str, denoise: float) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        levels.path_of(sampling)  # refused where it has none of ours
        sigmas = drawn.grid(read(points), steps, levels.sigma_of(sampling), denoise).float()
        return io.NodeOutput(sigmas, ui=model_info.shown(sigmas, sampling))


def read(points: str) -> Any:
    """The JSON text as Python values; raises ValueError where it is none."""
    if not isinstance(points, str) or len(points) > LONGEST:
        raise BadValue(
            "points must be JSON text of at most {longest} characters, got {got!r}.",
            longest=LONGEST,
            got=str(points)[:80],
        )
    try:
        return json.loads(points)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadValue(
            "points must be JSON, a list of [share, time] pairs, got {got!r} ({error}). The editor's reset "
            "button makes a new one.",
            got=points[:80],
            error=error,
        ) from error


NODES = [DrawSchedule]
