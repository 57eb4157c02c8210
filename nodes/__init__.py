"""The only room that knows ComfyUI: thin V3 nodes over `diffusion` and `training`."""

from comfy_api.latest import ComfyExtension

from . import compare, demo_teacher, distil, inspect_sampler, load_lora, sampling, schedules


class FewstepExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self):
        files = (demo_teacher, schedules, sampling, inspect_sampler, compare, distil, load_lora)
        return [node for file in files for node in file.NODES]
