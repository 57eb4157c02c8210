"""The only room that knows ComfyUI: thin V3 nodes over `diffusion` and `training`."""

from comfy_api.latest import ComfyExtension

from . import compare, demo_teacher, distil, fit, inspect_sampler, load_lora, pairs, prompts, recipes, sampling, schedules


class FewstepExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self):
        recipes.register_folder()

    async def get_node_list(self):
        files = (demo_teacher, schedules, sampling, inspect_sampler, compare, fit, prompts, distil, pairs,
                 load_lora, recipes)
        return [node for file in files for node in file.NODES]
