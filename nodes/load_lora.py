"""Load Few-Step LoRA: the file's recipe configures sampler, schedule and CFG, so that no one has to remember them."""

import logging

import comfy.samplers
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from ..training.files import load_lora
from ..training.lora import fingerprint
from . import host
from .sampling import sample


class LoadFewStepLora(io.ComfyNode):
    """FewstepLoadLora."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepLoadLora",
            display_name="Load Few-Step LoRA",
            category="Fewstep",
            description="Loads a LoRA made by Fewstep and sets up sampling from the recipe inside it: wire all four outputs to the "
                        "sampling node.",
            search_aliases=["lora", "recipe", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made from."),
                io.Combo.Input("lora_name", options=folder_paths.get_filename_list("loras"), tooltip="A LoRA made by Fewstep."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="1 is what it was made for."),
            ],
            outputs=[io.Model.Output(display_name="MODEL"), io.Sampler.Output(display_name="SAMPLER"),
                     io.Sigmas.Output(display_name="SIGMAS"), io.Float.Output(display_name="cfg")],
        )

    @classmethod
    def execute(cls, model, lora_name, strength):
        tensors, recipe = load_lora(folder_paths.get_full_path_or_raise("loras", lora_name))
        if recipe is None:
            raise ValueError(f"lora_name must be a LoRA with a Fewstep recipe inside, {lora_name} has none. Load it with "
                             "LoraLoaderModelOnly and choose sampler and schedule yourself.")
        path = host.path_of(model.get_model_object("model_sampling"))
        if path.name != recipe.path:
            raise ValueError(f"lora_name must be a LoRA for a model on the {path.name} path, {lora_name} was made for "
                             f"{recipe.path}. Wire the model that it was made from.")
        if fingerprint(model.model.diffusion_model) != recipe.base:
            logging.warning("Fewstep: %s was made from another base model than the wired one; results may differ.", lora_name)
        loaded, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)
        sampler = comfy.samplers.KSAMPLER(sample, {"churn": recipe.churn, "order": recipe.order})
        return io.NodeOutput(loaded, sampler, torch.tensor(recipe.sigmas), recipe.cfg)


NODES = [LoadFewStepLora]
