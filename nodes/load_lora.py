"""Load Few-Step LoRA: the file's recipe sets sampler, schedule and CFG, so nobody has to remember them."""

from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..diffusion.faults import BadValue
from ..training import methods
from ..training.formats.files import load_lora
from . import recipes
from .comfy import folders


class LoadFewStepLora(io.ComfyNode):
    """FewstepLoadLora."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepLoadLora",
            display_name="Load Few-Step LoRA",
            category="Fewstep/sampling",
            description="Loads a LoRA made by Fewstep and sets up sampling from the recipe inside it: wire "
            "MODEL, SAMPLER, SIGMAS and cfg to the sampling node, or GUIDER instead of MODEL and cfg.",
            search_aliases=["lora", "recipe", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made from."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A LoRA made by Fewstep.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1 is what the LoRA was made for.",
                ),
                io.Boolean.Input(
                    "any_base",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Load it on a model that it was not made from, such as a related one.",
                ),
                *recipes.guider_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Sampler.Output(display_name="SAMPLER"),
                io.Sigmas.Output(display_name="SIGMAS"),
                io.Float.Output(display_name="cfg"),
                io.Guider.Output(display_name="GUIDER"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others: Any) -> int | str:
        """Another file of the same name is read again: a run that goes on writes over its own."""
        return folders.written_at("loras", lora_name)

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        lora_name: str,
        strength: float,
        any_base: bool = False,
        positive: io.Conditioning.Type | None = None,
        negative: io.Conditioning.Type | None = None,
    ) -> io.NodeOutput:
        tensors, recipe = load_lora(folder_paths.get_full_path_or_raise("loras", lora_name))
        if recipe is None:
            raise BadValue(
                "lora_name must be a LoRA with a Fewstep recipe inside, {lora_name} has none. Load it with "
                "LoraLoaderModelOnly and choose sampler and schedule yourself.",
                lora_name=lora_name,
            )
        if methods.restores(recipe.method):
            raise BadValue(
                "lora_name must be a LoRA to draw pictures with, {lora_name} was trained to restore them. "
                "Wire it to Restore (Few-Step).",
                lora_name=lora_name,
            )
        warning = recipes.check_base(recipe, model, "lora_name", lora_name, any_base)
        loaded, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)
        guide = recipes.guider(recipe, loaded, positive, negative)
        ui = {"text": (warning,)} if warning else None
        return io.NodeOutput(loaded, *recipes.outputs(recipe), guide, ui=ui)


NODES = [LoadFewStepLora]
