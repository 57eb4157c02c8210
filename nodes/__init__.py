"""The only room that knows ComfyUI: thin V3 nodes over `diffusion` and `training`."""

from comfy_api.latest import ComfyExtension

from . import demo_teacher, distil, load_lora, sampling


class FewstepExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self):
        return [*demo_teacher.NODES, *sampling.NODES, *distil.NODES, *load_lora.NODES]
