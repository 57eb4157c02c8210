"""Recipes in the graph: saved to files, loaded as SAMPLER, SIGMAS and cfg, checked against their model."""

import logging
import os
from typing import Any

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..diffusion.faults import BadValue, Message
from ..diffusion.solvers import linear
from ..training.formats.files import check_folder, file_stem, free_name, load_recipe, save_recipe
from ..training.formats.recipe import Recipe
from .comfy import folders, levels
from .comfy.fingerprints import base_of
from .comfy.guider_apart import ApartGuider
from .sampling import recipe_sampler
from .server import messages

FOLDER = "fewstep_recipes"  # the host's name for models/fewstep
RECIPE = io.Custom("FEWSTEP_RECIPE")
NO_PROMPTS = Message("GUIDER needs prompts: wire positive and negative into the node that gives it.")


def register_folder() -> None:
    """Tell the host where recipes are, so that it lists them as it lists models. Folders that
    extra_model_paths.yaml names for them come first.
    """
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, "fewstep"))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".json")


def outputs(recipe: Recipe) -> tuple[comfy.samplers.Sampler, torch.Tensor, float]:
    """(SAMPLER, SIGMAS, cfg) of a recipe."""
    return recipe_sampler(recipe), torch.tensor(recipe.sigmas), recipe.cfg


def guider(
    recipe: Recipe, model: io.Model.Type, positive: list | None, negative: list | None
) -> io.Guider.Type | ExecutionBlocker:
    """A recipe's GUIDER on that model, which answers what its solver asks; a blocker where there are no
    prompts, and where it was fitted through a guider that is more than a CFG.

    Raises ValueError where the recipe needs a negative prompt and there is none.
    """
    if name := recipe.trained.get("guider"):
        wanted = Message(
            "The recipe was fitted through a {guider}: wire such a guider to the sampling node, not this "
            "GUIDER.",
            guider=name,
        )
        return ExecutionBlocker(messages.told(wanted))
    if not positive:
        return ExecutionBlocker(messages.told(NO_PROMPTS))
    asked = set("".join(recipe.asks)) or {linear.GUIDED}
    unconditional = linear.UNCONDITIONAL in asked or (linear.GUIDED in asked and recipe.cfg != 1)
    if unconditional and not negative:
        raise BadValue(
            "negative must be wired where the recipe's cfg is not 1, got none at cfg {cfg:g}. Wire an empty "
            "prompt.",
            cfg=recipe.cfg,
        )
    made = ApartGuider(model)
    made.set_conds(positive, negative or [])
    made.set_cfg(recipe.cfg)
    return made


def guider_inputs() -> list:
    """The inputs that `guider` needs beside the model."""
    return [
        io.Conditioning.Input("positive", optional=True, tooltip="For GUIDER: the prompt."),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="For GUIDER: the negative prompt; not needed if cfg is 1."
        ),
    ]


def check_model(recipe: Recipe, model: io.Model.Type, name: str, label: str) -> Message | None:
    """A warning where a recipe was made from another base model, None otherwise; logged too.

    name: of the input that the recipe came from, label: what it is called. Raises ValueError where it can't
    be used on this model.
    """
    sampling = model.get_model_object("model_sampling")
    path = levels.path_of(sampling)
    if path.name != recipe.path:
        raise BadValue(
            "{name} must be for a model on the {path} path, {label} was made for {made_for}. Wire the model "
            "that it was made from.",
            name=name,
            path=path.name,
            label=label,
            made_for=recipe.path,
        )
    sigmas = Message("{name}: the sigmas of {label}", name=name, label=label)
    levels.check_range(recipe.sigmas, sampling, sigmas)
    if recipe.base and base_of(model) != recipe.base:
        warning = Message(
            "{label} was made from another base model than the wired one; results may differ.", label=label
        )
        logging.warning("Fewstep: %s", warning)
        return warning
    return None


def check_base(
    recipe: Recipe, model: io.Model.Type, name: str, label: str, any_base: bool = False
) -> Message | None:
    """`check_model`, which refuses another base model too unless `any_base`."""
    warning = check_model(recipe, model, name, label)
    if warning and not any_base:
        raise BadValue(
            "{warning} Wire the model that it was made from, or switch any_base on to try.",
            warning=warning,
        )
    return warning


class SaveRecipe(io.ComfyNode):
    """FewstepSaveRecipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepSaveRecipe",
            display_name="Save Recipe",
            category="Fewstep/sampling",
            description="Saves a recipe as a small file in models/fewstep. Load Recipe sets up sampling "
            "from it.",
            search_aliases=["recipe", "solver", "fewstep"],
            inputs=[
                RECIPE.Input("recipe", tooltip="A recipe from Fit Few-Step Solver."),
                io.String.Input("name", default="fewstep", tooltip="File name; a number is added."),
            ],
            outputs=[RECIPE.Output(display_name="RECIPE", tooltip="The same recipe.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, recipe: Recipe, name: str) -> io.NodeOutput:
        folder, stem = folders.of_models(FOLDER), file_stem(name)
        path = free_name(folder, stem, ".json")
        check_folder(folder, name=path.name)
        save_recipe(path, recipe)
        return io.NodeOutput(recipe, ui={"text": (Message("Saved {file}", file=path.name),)})


class LoadRecipe(io.ComfyNode):
    """FewstepLoadRecipe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepLoadRecipe",
            display_name="Load Recipe",
            category="Fewstep/sampling",
            description="Sets up sampling from a recipe: wire SAMPLER, SIGMAS and cfg to the sampling node, "
            "or GUIDER instead of cfg.",
            search_aliases=["recipe", "solver", "fewstep"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample: the one that the recipe was made from, or one like it.",
                ),
                io.Combo.Input(
                    "recipe_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    optional=True,
                    tooltip="A recipe saved by Save Recipe.",
                ),
                RECIPE.Input(
                    "recipe", optional=True, tooltip="If wired, this recipe is used instead of the file."
                ),
                *guider_inputs(),
            ],
            outputs=[
                io.Sampler.Output(display_name="SAMPLER"),
                io.Sigmas.Output(display_name="SIGMAS"),
                io.Float.Output(display_name="cfg"),
                io.Guider.Output(display_name="GUIDER"),
            ],
        )

    @classmethod
    def validate_inputs(cls, recipe_name: str | None = None) -> bool:
        # a name that is not listed does no harm where a recipe is wired; without one, execute refuses it
        return True

    @classmethod
    def fingerprint_inputs(cls, recipe_name: str | None = None, **others: Any) -> int | str:
        """Another file of the same name is read again."""
        return folders.written_at(FOLDER, recipe_name)

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        recipe_name: str | None = None,
        recipe: Recipe | None = None,
        positive: io.Conditioning.Type | None = None,
        negative: io.Conditioning.Type | None = None,
    ) -> io.NodeOutput:
        name, label = "recipe", "the wired recipe"
        if recipe is None:
            name, label = "recipe_name", recipe_name
            recipe = load_recipe(_file(recipe_name))
        warning = check_model(recipe, model, name, label)
        guide = guider(recipe, model, positive, negative)
        return io.NodeOutput(*outputs(recipe), guide, ui={"text": (warning or summary(recipe),)})


def _file(name: str | None) -> str:
    """The path of a recipe; raises ValueError where there is none of that name."""
    path = folder_paths.get_full_path(FOLDER, name) if name else None
    if path is None:
        raise BadValue(
            "recipe_name must be a file in models/fewstep, got {got!r}, which is not there. Save one with "
            "Save Recipe, press R to list the files again, or wire a recipe.",
            got=name,
        )
    return path


def summary(recipe: Recipe) -> Message:
    """What a recipe is, in a line."""
    told = {"method": recipe.method, "steps": recipe.steps, "path": recipe.path}
    if name := recipe.trained.get("guider"):  # what a step of it costs nobody knows
        line = Message("{method}, {steps} steps, {path}, through a {guider}", **told, guider=name)
    else:
        line = Message(
            "{method}, {steps} steps, {calls} model calls, {path}, cfg {cfg:g}",
            **told,
            calls=recipe.calls,
            cfg=recipe.cfg,
        )
    error = recipe.errors.get("held_out")
    if error is None:
        return line
    return Message("{recipe}, {error:.3f} from the converged picture", recipe=line, error=error)


NODES = [SaveRecipe, LoadRecipe]
