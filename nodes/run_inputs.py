"""What the training nodes share: inputs, outputs, and the settings of a run made of them."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..diffusion.faults import Message
from ..training import methods
from ..training.formats.precision import PRECISIONS
from ..training.run.config import DistilConfig
from ..training.run.optimisers import OPTIMISERS
from . import zero
from .comfy import families, folders, lora_files, residency
from .server.live import revision
from .training import FIXED, MEMORY, Trained

HIDDEN = [io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo]
# samples of a call where nothing is trained; memory takes its part of them (`memory.Plan.applied`)
LEAST_CHUNK = 4


def job_inputs(name: str) -> list:
    """What a run may take, what its file is called (`name` where the user says nothing), and its seed."""
    return [
        io.Combo.Input(
            "memory",
            options=list(MEMORY),
            default="auto",
            tooltip="How much memory the run may take. What fits is worked out before anything long begins.",
        ),
        io.String.Input("name", default=name, tooltip="File name of the LoRA; a number is added."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=FIXED,
            tooltip="The same seed gives the same LoRA on the same machine. Queueing again with nothing "
            "changed continues a stopped run; another seed begins a new one.",
        ),
    ]


def advanced_inputs() -> list:
    """The settings of a run that the two training nodes hide behind "advanced"."""
    return [
        io.Int.Input(
            "updates",
            default=0,
            min=0,
            max=1_000_000,
            optional=True,
            advanced=True,
            extra_dict=zero.AUTO,
            tooltip="Training updates. 0 is auto: set by quality, or 600 in Train on Pairs.",
        ),
        io.Int.Input(
            "batch",
            default=8,
            min=1,
            max=256,
            optional=True,
            advanced=True,
            tooltip="Samples per update, however many of them fit into memory at once.",
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=512,
            optional=True,
            advanced=True,
            extra_dict=zero.AUTO,
            tooltip="Rank of the LoRA. 0 is auto: what is usual for the model's family, or less if that does "
            "not fit.",
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
            extra_dict=zero.AUTO,
            tooltip="Peak learning rate. 0 is auto: what is usual for the model's family.",
        ),
        io.Int.Input(
            "phases",
            default=0,
            min=0,
            max=8,
            optional=True,
            advanced=True,
            extra_dict=zero.AUTO,
            tooltip="Parts of the way from noise to picture; within each the student is consistent or "
            "straight. 0 is auto: as many as steps. 1 is LCM.",
        ),
        io.String.Input(
            "layers",
            default="*",
            optional=True,
            advanced=True,
            tooltip="Which layers the LoRA trains: name patterns separated by commas, such as *attn*, *mlp*; "
            "a - in front leaves a pattern out.",
        ),
        io.Combo.Input(
            "start_from",
            options=lora_files.names(),
            default=lora_files.NONE,
            optional=True,
            advanced=True,
            tooltip="Begin with the weights of this LoRA, such as a public accelerator: any file that the "
            "LoRA loader takes (LoRA, LoHa, LoKr, DoRA, OFT, ...).",
        ),
        io.Boolean.Input(
            "start_partly",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Begin with the part of start_from that fits, if a LoRA of this rank can't hold all of "
            "it (changes of norms and biases, for instance). Off: refuse it.",
        ),
        io.Combo.Input(
            "residency",
            options=list(residency.CHOICES),
            default=residency.AUTO,
            optional=True,
            advanced=True,
            tooltip="Where the model's weights are kept while it trains on a graphics card. resident: all on "
            "the card, fastest. streamed: in system memory, each layer fetched when it computes, for models "
            "that don't fit. auto: resident if they fit beside the run.",
        ),
    ]


def outcome_inputs() -> list:
    """How the optimiser's state and the result are kept."""
    return [
        io.Combo.Input(
            "lora_precision",
            options=list(PRECISIONS),
            default="fp16",
            optional=True,
            advanced=True,
            tooltip="Precision of the LoRA file. fp16 halves its size and loses least, bf16 is as small, "
            "fp32 keeps all that was trained. If you change it and queue a run again, the run continues and "
            "saves in the new precision.",
        ),
        io.Combo.Input(
            "optimizer",
            options=list(OPTIMISERS),
            default="adamw",
            optional=True,
            advanced=True,
            tooltip="adamw8bit takes a quarter of adamw's memory, for a large rank on a small card. It needs "
            "bitsandbytes or torchao in ComfyUI's Python.",
        ),
    ]


def outputs() -> list:
    """The outputs of the training nodes."""
    return [
        io.LoraModel.Output(display_name="LORA_MODEL"),
        io.LossMap.Output(display_name="LOSS_MAP"),
        io.Image.Output(display_name="preview"),
        io.Sigmas.Output(display_name="SIGMAS", tooltip="The schedule that the LoRA is made for."),
        io.String.Output(display_name="lora_name", tooltip="File name in models/loras."),
    ]


def config_for(
    model: io.Model.Type,
    *,
    method: str,
    steps: int,
    cfg: float,
    updates: int,
    batch: int,
    rank: int,
    learning_rate: float,
    phases: int,
    layers: str,
    seed: int,
    images: int = DistilConfig.images,
    process: Sequence[dict] = (),
    from_percent: float = 0.0,
    to_percent: float = 1.0,
    lora_precision: str = DistilConfig.lora_precision,
    optimizer: str = DistilConfig.optimizer,
) -> DistilConfig:
    """The settings of a run from those of a node: where `cfg`, `rank`, `learning_rate` or `phases` is 0, what
    is usual for the model's family.
    """
    usual = families.family(model)
    include, exclude = patterns(layers)
    return DistilConfig(
        method=method,
        steps=steps,
        updates=updates,
        batch=batch,
        chunk=max(LEAST_CHUNK, batch),
        images=images,
        shift=families.shift(model),
        cfg=cfg or usual.cfg,
        phases=phases or None,
        process=process,
        rank=rank or usual.rank,
        include=include,
        exclude=exclude,
        lr=learning_rate or usual.lr * methods.get(method).lr_share,
        seed=seed,
        from_percent=from_percent,
        to_percent=to_percent,
        lora_precision=lora_precision,
        optimizer=optimizer,
    )


def fingerprint(start_from: str | None) -> str:
    """Of a training node: another one once its run was stopped early or deleted, or start_from is another
    file of the same name.
    """
    return f"{revision()} {folders.written_at('loras', start_from)}"


def patterns(layers: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(include, exclude) of "*attn*, -*mlp*": name patterns with commas between, those after a - excluded."""
    named = [part.strip() for part in layers.split(",") if part.strip()]
    include = tuple(pattern for pattern in named if not pattern.startswith("-"))
    exclude = tuple(pattern.removeprefix("-") for pattern in named if pattern.startswith("-"))
    return include or ("*",), exclude


def workflow_of(hidden: Any) -> dict | None:
    """The graph as the frontend keeps it, from a node's hidden inputs; None for a job from elsewhere."""
    return (hidden.extra_pnginfo or {}).get("workflow")


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
