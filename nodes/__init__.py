"""The only room that knows ComfyUI: thin V3 nodes over `diffusion` and `training`."""

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from . import (
    compare,
    demo_teacher,
    distil,
    draw,
    fit,
    forecast,
    inspect_sampler,
    load_lora,
    pairs,
    prompts,
    recipes,
    restore,
    sampling,
    schedules,
)
from .server import messages, routes


class FewstepExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        recipes.register_folder()
        if getattr(PromptServer, "instance", None) is not None:  # none when ComfyUI is used as a library
            routes.register({forecast.PATH: forecast.answer})

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        files = (
            demo_teacher,
            schedules,
            draw,
            sampling,
            inspect_sampler,
            compare,
            fit,
            prompts,
            distil,
            pairs,
            load_lora,
            recipes,
            restore,
        )
        return [messages.speaking(node) for file in files for node in file.NODES]
