"""Distil Few-Step LoRA: a queued graph job over `training`, the very code that `fewstep demo` runs."""

import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..training import methods
from ..training.run.config import DistilConfig
from ..training.trajectories.data import Data
from .comfy import families, lora_files
from .restore import PROCESS
from .training import FIXED, MEMORY, Order, Trained, train

HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]
# quality: (updates, teacher samples)
QUALITY = {"quick": (100, 64), "standard": (600, 480), "best": (1600, 960)}


class Distil(io.ComfyNode):
    """FewstepDistil."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepDistil",
            display_name="Distil Few-Step LoRA",
            category="Fewstep",
            description="Trains a LoRA with which this very model needs only a few steps and no CFG. The data are the model's own "
            "pictures of the wired prompts. Cancel at any time: what has been learnt is saved, and queueing the same "
            "again goes on where it stopped. The file goes to models/loras with its recipe inside.",
            search_aliases=["train", "lcm", "consistency", "reflow", "lora", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to make few-step: checkpoint, merge, or with LoRAs applied."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompts to train on; each conditioning entry is one prompt (join more "
                    "with Conditioning Combine, or use Prompts for Distilling).",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt that the teacher's guidance uses."
                ),
                io.Latent.Input("latent", tooltip="An empty latent of the size to train at."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the preview; without it the preview is only the curves.",
                ),
                io.Latent.Input(
                    "pictures",
                    optional=True,
                    tooltip="A batch of your own encoded pictures to learn on, in the order of the prompts. Without it "
                    "the model draws its own. For the consistency methods.",
                ),
                PROCESS.Input(
                    "process",
                    optional=True,
                    tooltip="Train a restorer instead: the LoRA learns to undo this process, on the wired pictures or on "
                    "the model's own. Use it with Restore (Few-Step).",
                ),
                io.Combo.Input(
                    "method",
                    options=["auto", *methods.names()],
                    default="auto",
                    tooltip="auto: phased consistency, or consistency where pictures are wired.",
                ),
                io.Int.Input(
                    "steps", default=4, min=1, max=8, tooltip="Sampling steps that the LoRA is made for."
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="The guidance that you use with this model today; 0: what is usual for its family. The LoRA "
                    "has it built in.",
                ),
                io.Combo.Input(
                    "quality",
                    options=list(QUALITY),
                    default="standard",
                    tooltip="How long to train: quick to try, standard, best for overnight.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY),
                    default="auto",
                    tooltip="What the run may take. It is worked out before anything long begins.",
                ),
                io.String.Input(
                    "name", default="fewstep", tooltip="Name of the LoRA file; a number is added."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Same seed, same LoRA on the same machine. Queued again with nothing changed, a run goes on "
                    "where it stopped; another seed begins a new one.",
                ),
                *advanced_inputs(),
            ],
            outputs=outputs(),
            hidden=HIDDEN,
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        steps,
        cfg,
        quality,
        name,
        seed,
        method="auto",
        memory="auto",
        updates=0,
        batch=8,
        rank=0,
        learning_rate=0.0,
        phases=0,
        layers="*",
        start_from=lora_files.NONE,
        vae=None,
        pictures=None,
        process=None,
    ):
        if process is not None:
            method = "restoration"
        elif method == "auto":
            method = "phased" if pictures is None else "consistency"
        usual_updates, images = QUALITY[quality]
        config = config_for(
            model,
            method=method,
            steps=steps,
            cfg=cfg,
            updates=updates or usual_updates,
            images=images,
            batch=batch,
            rank=rank,
            lr=learning_rate,
            phases=phases or None,
            layers=layers,
            seed=seed,
            process=process or (),
        )
        return finish(
            train(
                Order(
                    model=model,
                    positive=positive,
                    negative=negative,
                    latent=latent,
                    config=config,
                    memory=memory,
                    name=name,
                    **graph_of(cls.hidden),
                    vae=vae,
                    warm=lora_files.tensors(start_from, model),
                    data=None if pictures is None else lambda denoiser: _data(denoiser, pictures["samples"]),
                )
            )
        )


def advanced_inputs():
    """The settings of a run that the two training nodes hide behind "advanced"."""
    return [
        io.Int.Input(
            "updates",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip="Training updates; 0 lets quality choose.",
        ),
        io.Int.Input(
            "batch",
            default=8,
            min=1,
            max=256,
            optional=True,
            advanced=True,
            tooltip="Samples an update, whatever of them fits into memory at once.",
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=512,
            optional=True,
            advanced=True,
            tooltip="Rank of the LoRA; 0: what is usual for the model's family.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=0.1,
            step=1e-6,
            round=False,
            optional=True,
            advanced=True,
            tooltip="Peak learning rate; 0: what is usual for the model's family.",
        ),
        io.Int.Input(
            "phases",
            default=0,
            min=0,
            max=8,
            optional=True,
            advanced=True,
            tooltip="Parts of the way within which the student is consistent or straight; 0: as many as steps, 1 is LCM.",
        ),
        io.String.Input(
            "layers",
            default="*",
            optional=True,
            advanced=True,
            tooltip="Which layers the LoRA sits on: name patterns with commas between, *attn*, *mlp*; a - before one "
            "leaves it out.",
        ),
        io.Combo.Input(
            "start_from",
            options=lora_files.names(),
            default=lora_files.NONE,
            optional=True,
            advanced=True,
            tooltip="Begin with this LoRA's weights, a public accelerator's for instance.",
        ),
    ]


def outputs():
    """Of the training nodes."""
    return [
        io.LoraModel.Output(display_name="LORA_MODEL"),
        io.LossMap.Output(display_name="LOSS_MAP"),
        io.Image.Output(display_name="preview"),
        io.Sigmas.Output(display_name="SIGMAS", tooltip="The grid the LoRA is made for."),
        io.String.Output(display_name="lora_name", tooltip="Name of the file in models/loras."),
    ]


def config_for(model, *, cfg, rank, lr, layers, **settings):
    """A `DistilConfig` with the family's usual settings where a widget is 0."""
    usual = families.family(model)
    patterns = [p.strip() for p in layers.split(",") if p.strip()]
    settings.setdefault("chunk", max(4, settings["batch"]))  # of which memory takes its part (`memory.cut`)
    return DistilConfig(
        cfg=cfg or usual.cfg,
        rank=rank or usual.rank,
        lr=lr or usual.lr,
        shift=families.shift(model),
        include=tuple(p for p in patterns if p[0] != "-") or ("*",),
        exclude=tuple(p[1:] for p in patterns if p[0] == "-"),
        **settings,
    )


def graph_of(hidden):
    """What an `Order` keeps of the graph that its node is part of, from the hidden inputs `HIDDEN`."""
    return {
        "node": hidden.unique_id,
        "prompt": hidden.prompt,
        "workflow": (hidden.extra_pnginfo or {}).get("workflow"),
    }


def finish(trained: Trained) -> io.NodeOutput:
    """The outputs of a run."""
    return io.NodeOutput(
        trained.lora,
        trained.losses,
        trained.preview,
        trained.sigmas,
        trained.file.name,
        ui={"text": (Message("Saved {file}", file=trained.file.name),)},
    )


def _data(denoiser, latents):
    """The user's pictures, one after another for the prompts in turn."""
    with torch.inference_mode(False):
        if tuple(latents.shape[1:]) != tuple(denoiser.shape):
            raise BadValue(
                "pictures must be latents of the shape {shape} of the wired latent, got {got}. Encode them "
                "at that size with this model's VAE.",
                shape=tuple(denoiser.shape),
                got=tuple(latents.shape[1:]),
            )
        images = denoiser.model.process_latent_in(latents.clone().float()).cpu()
        return Data(images=images, condition=torch.arange(len(images)) % denoiser.conditions)


NODES = [Distil]
