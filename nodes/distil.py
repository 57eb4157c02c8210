"""Distil Few-Step LoRA: a queued graph job over `training`, the very code that `fewstep demo` runs."""

from typing import Any

import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..training import methods
from ..training.run.config import QUALITY, DistilConfig, guided_by
from ..training.trajectories.data import Data
from . import zero
from .comfy import lora_files, residency
from .comfy.denoiser import ComfyDenoiser
from .comfy.guider_teacher import cfg_of, strength_of
from .first_stage import first_stage_of
from .restore import PROCESS
from .run_inputs import (
    HIDDEN,
    advanced_inputs,
    config_for,
    fingerprint,
    finish,
    job_inputs,
    outcome_inputs,
    outputs,
    workflow_of,
)
from .training import WIRE_GUIDER, Order, train


class Distil(io.ComfyNode):
    """FewstepDistil."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepDistil",
            display_name="Distil Few-Step LoRA",
            category="Fewstep/training",
            description="Trains a LoRA with which the wired model needs only a few steps and no CFG. It "
            "learns from the model's own pictures of the wired prompts. Cancel at any time: what has been "
            "learnt is saved, and queueing the same again continues where it stopped. The file goes to "
            "models/loras with its recipe inside.",
            search_aliases=["train", "lcm", "consistency", "reflow", "lora", "fewstep"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=outputs(),
            hidden=HIDDEN,
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str | None = None, **others: Any) -> str:
        """As the host would not come here again where nothing of the graph has changed, see `fingerprint`."""
        return fingerprint(start_from)

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        latent: io.Latent.Type,
        steps: int,
        cfg: float,
        quality: str,
        name: str,
        seed: int,
        method: str = "auto",
        memory: str = "auto",
        updates: int = 0,
        batch: int = 8,
        rank: int = 0,
        learning_rate: float = 0.0,
        phases: int = 0,
        layers: str = "*",
        start_from: str = lora_files.NONE,
        start_partly: bool = False,
        residency: str = residency.AUTO,
        lora_precision: str = "fp16",
        optimizer: str = "adamw",
        vae: io.Vae.Type | None = None,
        pictures: io.Latent.Type | None = None,
        process: list[dict] | None = None,
        guider: io.Guider.Type | None = None,
        from_percent: float = 0.0,
        to_percent: float = 1.0,
        first_stage: io.Model.Type | None = None,
        first_positive: io.Conditioning.Type | None = None,
        first_negative: io.Conditioning.Type | None = None,
    ) -> io.NodeOutput:
        if process is not None:
            method = "restoration"
        elif method == "auto":
            method = "phased" if pictures is None else "consistency"
        usual_updates, images = QUALITY[quality]

        def data(denoiser: ComfyDenoiser) -> Data:
            return own_pictures(denoiser, pictures["samples"])

        config = config_for(
            model,
            method=method,
            steps=steps,
            cfg=cfg if guider is None else max(1.0, cfg_of(guider)),
            updates=updates or usual_updates,
            images=images,
            batch=batch,
            rank=rank,
            learning_rate=learning_rate,
            phases=phases,
            layers=layers,
            seed=seed,
            lora_precision=lora_precision,
            optimizer=optimizer,
            process=process or (),
            from_percent=from_percent,
            to_percent=to_percent,
        )
        if guider is not None:
            config = guided_by(config, strength_of(guider))
        order = Order(
            model=model,
            positive=positive,
            negative=negative,
            latent=latent,
            config=config,
            memory=memory,
            residency=residency,
            name=name,
            node=cls.hidden.unique_id,
            prompt=cls.hidden.prompt,
            workflow=workflow_of(cls.hidden),
            vae=vae,
            warm=lora_files.tensors(start_from, model, config.rank, start_partly),
            lower_rank=not rank and start_from == lora_files.NONE,
            data=None if pictures is None else data,
            guider=guider,
            remedy=_remedy(config, guider),
            first=first_stage_of(
                first_stage, first_positive or positive, first_negative or negative, model, positive, config
            ),
        )
        return finish(train(order))


def _remedy(config: DistilConfig, guider: io.Guider.Type | None) -> Message:
    """What to do about a part of the graph that training would leave out."""
    if guider is not None:
        return Message("Take it off here: the LoRA learns it from the guider, if that has it")
    if methods.get(config.method).asks_teacher(config):
        return Message("Take it off, or choose another method and wire a guider that has it as the teacher")
    return WIRE_GUIDER


def _inputs() -> list:
    return [
        io.Model.Input(
            "model", tooltip="The model to make few-step: checkpoint, merge, or with LoRAs applied."
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="Prompts to train on; each conditioning entry is one prompt (join more "
            "with Conditioning Combine, or use Prompts for Distilling).",
        ),
        io.Conditioning.Input("negative", tooltip="The negative prompt for the teacher's guidance."),
        io.Latent.Input("latent", tooltip="An empty latent of the size to train at."),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Decodes the preview; without it the preview shows only the curves.",
        ),
        io.Latent.Input(
            "pictures",
            optional=True,
            tooltip="A batch of your own encoded pictures to learn from, in the order of the prompts. "
            "Without it the model draws its own. For the consistency methods and for restorers.",
        ),
        PROCESS.Input(
            "process",
            optional=True,
            tooltip="Wire this to train a restorer instead: the LoRA learns to undo the process, on the "
            "wired pictures or on the model's own. Use it with Restore (Few-Step).",
        ),
        io.Combo.Input(
            "method",
            options=["auto", *methods.names()],
            default="auto",
            tooltip="auto: phased consistency, or consistency if pictures are wired.",
        ),
        io.Int.Input(
            "steps",
            default=4,
            min=1,
            max=8,
            tooltip="The number of sampling steps that the LoRA is made for.",
        ),
        io.Float.Input(
            "cfg",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            extra_dict=zero.AUTO,
            tooltip="The CFG that you use with this model today; the LoRA has it built in. 0 is auto: what "
            "is usual for its family.",
        ),
        io.Combo.Input(
            "quality",
            options=list(QUALITY),
            default="standard",
            tooltip="How long to train: quick to try it, standard, or best for overnight.",
        ),
        *job_inputs("fewstep"),
        *advanced_inputs(),
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip="A teacher to use instead of the model at its cfg: any guider, with whatever guidance, "
            "ControlNets or regions it has. The LoRA has them built in. Each prompt takes the place of the "
            "guider's own positive. Not for the method consistency.",
        ),
        *_part_inputs(),
        *outcome_inputs(),
    ]


def _part_inputs() -> list:
    """The part of the way that a LoRA is for, and who draws what comes before it."""
    return [
        io.Float.Input(
            "from_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            round=False,
            optional=True,
            advanced=True,
            tooltip="Where this model's part of sampling begins, as a share of its whole schedule: 0 is pure "
            "noise. For the second of two models (a refiner or a low-noise expert), which also needs "
            "first_stage.",
        ),
        io.Float.Input(
            "to_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            round=False,
            optional=True,
            advanced=True,
            tooltip="Where this model's part of sampling ends: 1 is the picture. For the first of two "
            "models; its LoRA hands over to the second one just as the model does.",
        ),
        io.Model.Input(
            "first_stage",
            optional=True,
            advanced=True,
            tooltip="The model that samples before this one: it draws the states that training starts from. "
            "Wire it only if from_percent is above 0.",
        ),
        io.Conditioning.Input(
            "first_positive",
            optional=True,
            advanced=True,
            tooltip="The prompts encoded for first_stage, as many as in positive. Leave it unwired if "
            "first_stage takes the same ones.",
        ),
        io.Conditioning.Input(
            "first_negative",
            optional=True,
            advanced=True,
            tooltip="The negative prompt encoded for first_stage. Leave it unwired if first_stage takes the "
            "same one.",
        ),
    ]


def own_pictures(denoiser: ComfyDenoiser, latents: torch.Tensor) -> Data:
    """The user's pictures, one after another for the prompts in turn."""
    shape = tuple(latents.shape[1:])
    if shape != tuple(denoiser.shape):
        raise BadValue(
            "pictures must be latents of the shape {shape} of the wired latent, got {got}. Encode them "
            "at that size with this model's VAE.",
            shape=tuple(denoiser.shape),
            got=shape,
        )
    with torch.inference_mode(False):
        images = denoiser.model.process_latent_in(latents.clone().float()).cpu()
        return Data(images=images, condition=torch.arange(len(images)) % denoiser.conditions)


NODES = [Distil]
