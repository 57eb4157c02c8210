"""The first of two models: what it leaves for the second, from the middle of the way on."""

import comfy.utils
import torch
from comfy.samplers import CFGGuider
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..training import methods
from ..training.methods.phases import Phases
from ..training.run.config import DistilConfig
from ..training.trajectories.first_stage import FirstStage
from . import show
from .comfy import folders
from .comfy.families import shift
from .comfy.guider_teacher import Prompts, Teacher
from .comfy.levels import path_of, sigma_of


def first_stage_of(
    model: io.Model.Type | None,
    positive: io.Conditioning.Type,
    negative: io.Conditioning.Type,
    second: io.Model.Type,
    prompts: io.Conditioning.Type,
    config: DistilConfig,
) -> CFGGuider | None:
    """What samples before `second`, at the same CFG; None for a run from the beginning.

    prompts: those of the second model. Raises ValueError naming what does not go together.
    """
    begins = config.from_percent > 0
    if model is None and begins:
        raise BadValue(
            "first_stage must be wired where from_percent is above 0 ({start:g}): this model starts from "
            "what another leaves. Wire the model that samples before it.",
            start=config.from_percent,
        )
    if model is None:
        return None
    if not begins:
        raise BadValue(
            "first_stage must be left out where from_percent is 0: nothing is sampled before. Set "
            "from_percent, or unwire first_stage."
        )
    _check_pair(model, second)
    if len(positive) != len(prompts):
        raise BadValue(
            "first_positive must hold as many prompts as positive ({count}), got {got}. Wire the same "
            "prompts, encoded for the first model.",
            count=len(prompts),
            got=len(positive),
        )
    guider = Prompts(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(config.cfg)
    return guider


def _check_pair(first: io.Model.Type, second: io.Model.Type) -> None:
    """Raise ValueError where two models don't share latents and path."""
    paths = [path_of(m.get_model_object("model_sampling"), "first_stage").name for m in (first, second)]
    formats = [type(m.model.latent_format).__name__ for m in (first, second)]
    for ours, theirs in (paths, formats):
        if ours != theirs:
            raise BadValue(
                "first_stage must hand on latents that model takes: {ours} to {theirs} does not go. Wire the "
                "model that samples before it in your graph.",
                ours=ours,
                theirs=theirs,
            )


def draw_starts(
    guider: CFGGuider, second: io.Model.Type, config: DistilConfig, shape: tuple, count: int, node: str | None
) -> FirstStage:
    """The `FirstStage` with `count` states on disk at the level where the second model begins.

    A cancel or a crash loses no whole shard of them.
    """
    sampling = second.get_model_object("model_sampling")
    on_the_grid = methods.get(config.method).on_the_grid
    phases = Phases(config, path_of(sampling), sigma_of(sampling), on_the_grid)
    level = float(phases.fine[0])
    teacher = Teacher(guider, shape, 0)
    steps, own = config.image_steps, shift(guider.model_patcher)
    stage = FirstStage(teacher, level, steps, own, 0, folders.of_user("trajectories"))

    def work() -> None:
        bar = comfy.utils.ProgressBar(1000, node_id=node)
        for share in stage.build(count):
            show.say(node, Message("first stage: {share:.0%}", share=share))
            bar.update_absolute(round(1000 * share), 1000)

    with torch.no_grad():
        teacher.run(work, stage.sigmas)
    return stage
