"""Reflow Pairs and Train on Pairs: the two stages of reflow, for those who want them one by one."""

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..diffusion.schedules.grids import grid, shifted
from ..training import methods
from ..training.formats.files import check_folder, file_stem, free_name
from ..training.models.denoiser import Guided, InParts
from ..training.trajectories.cache import CacheSpec, TrajectoryCache
from ..training.trajectories.data import Data, load_pairs, pair_noise, save_pairs
from . import show
from .comfy import families, folders, lora_files, session
from .comfy.denoiser import ComfyDenoiser
from .comfy.fingerprints import digest, patches_of
from .comfy.latents import latent_of
from .distil import HIDDEN, advanced_inputs, config_for, finish, outputs, workflow_of
from .training import FIXED, MEMORY, Order, check, train

PAIRS = io.Custom("FEWSTEP_PAIRS")
USUAL = "rectified-diffusion"
SUFFIX = ".pairs.safetensors"
FOLDER = "fewstep_pairs"  # in the output directory
USUAL_UPDATES = 600


class ReflowPairs(io.ComfyNode):
    """FewstepReflowPairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepReflowPairs",
            display_name="Reflow Pairs",
            category="Fewstep",
            description="Draws pictures with this model and keeps each with the noise that it came from: "
            "what reflow learns from. For another round, wire the model with the LoRA of the round before. "
            "The file goes to output/fewstep_pairs.",
            search_aliases=["rectified flow", "dataset", "distil", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The teacher: checkpoint, merge, or with LoRAs applied."),
                io.Conditioning.Input(
                    "positive", tooltip="Prompts; each conditioning entry is one, taken in turn."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt of the guidance."),
                io.Latent.Input("latent", tooltip="An empty latent of the size to train at."),
                io.Int.Input("count", default=256, min=1, max=100_000, tooltip="How many pairs."),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Solver steps of each (second order, no fresh noise).",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance; 0: what is usual for the model's family. 1 for a model that is "
                    "few-step.",
                ),
                io.String.Input("name", default="pairs", tooltip="Name of the file; a number is added."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Of the noises.",
                ),
                io.Int.Input(
                    "chunk",
                    default=4,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures drawn at once. Lower it when memory runs out.",
                ),
            ],
            outputs=[PAIRS.Output(display_name="PAIRS"), io.String.Output(display_name="file")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        latent: io.Latent.Type,
        count: int,
        steps: int,
        cfg: float,
        name: str,
        seed: int,
        chunk: int = 4,
    ) -> io.NodeOutput:
        cfg, node = cfg or families.family(model).cfg, cls.hidden.unique_id
        if cfg < 1:
            raise BadValue("cfg must be 1 or more, or 0 for what is usual, got {got:g}.", got=cfg)
        check(model, positive, negative, name)
        empty = latent_of(model, latent)
        folder, stem = folders.of_output(FOLDER), file_stem(name)
        size = 8 * count * empty[:1].numel() + (1 << 20)
        check_folder(folder, size, free_name(folder, stem, SUFFIX).name)
        patches, prompts = patches_of(model, model.model_options), digest([positive, negative[0]])
        beside = model.model.memory_required([2 * chunk, *empty.shape[1:]])
        with session.training_session(model, beside=beside) as patcher, torch.no_grad():
            denoiser = ComfyDenoiser(patcher, positive, negative, empty[:1].clone().float())
            sigmas = grid("uniform", steps, shifted(denoiser.sigma_of, families.shift(model)), denoiser.path)
            spec = CacheSpec(
                model=denoiser.base,
                patches=patches,
                conditioning=prompts,
                conditions=denoiser.conditions,
                guidance=f"CFG {cfg:g}",
                path=denoiser.path.name,
                shape=tuple(denoiser.shape),
                kept=(0, steps),
                sigmas=tuple(sigmas.tolist()),
                noise_scale=denoiser.noise_scale,
                seed=seed,
                predictions=False,
            )
            cache = TrajectoryCache(folders.of_user("trajectories"), spec)
            try:  # what was drawn before a cancel is not drawn again
                _progress(cache.build(Guided(InParts(denoiser, chunk), cfg), count), node)
                start, images = cache.read(count)[0].unbind(1)
                data = Data(
                    images=images,
                    condition=cache.conditions(count),
                    noise=pair_noise(start, images, denoiser.path, sigmas[0]),
                )
            finally:
                cache.close()
        about = {
            "base": denoiser.base,
            "path": denoiser.path.name,
            "patches": patches,
            "conditioning": digest(positive),
            "conditions": denoiser.conditions,
            "cfg": cfg,
            "steps": steps,
            "seed": seed,
        }
        path = save_pairs(free_name(folder, stem, SUFFIX), data, about)
        saved = Message("Saved {file}", file=path.name)
        show.say(node, saved)
        return io.NodeOutput((data, about), path.name, ui={"text": (saved,)})


def _progress(shares: Iterator[float], node: str | None) -> None:
    """Run to the end with the bar, or until the user cancels."""
    bar = comfy.utils.ProgressBar(1000, node_id=node)
    for share in shares:
        bar.update_absolute(round(1000 * share), 1000)
        comfy.model_management.throw_exception_if_processing_interrupted()


class LoadPairs(io.ComfyNode):
    """FewstepLoadPairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepLoadPairs",
            display_name="Load Pairs",
            category="Fewstep",
            description="Pairs that Reflow Pairs saved, here or elsewhere.",
            search_aliases=["reflow", "dataset", "fewstep"],
            inputs=[io.Combo.Input("file", options=_files(), tooltip="A file in output/fewstep_pairs.")],
            outputs=[PAIRS.Output(display_name="PAIRS")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        if file not in _files():
            raise BadValue(
                "file must be one of those in output/fewstep_pairs, got {got!r}. Draw some with Reflow "
                "Pairs.",
                got=file,
            )
        return io.NodeOutput(load_pairs(folders.of_output(FOLDER) / file))


class TrainOnPairs(io.ComfyNode):
    """FewstepTrainOnPairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepTrainOnPairs",
            display_name="Train on Pairs",
            category="Fewstep",
            description="Trains a LoRA on noise and picture pairs, by reflow or rectified diffusion: a "
            "model whose paths are straight needs few steps. Cancel at any time; queueing the same again "
            "goes on.",
            search_aliases=["reflow", "rectified flow", "instaflow", "lora", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that drew the pairs."),
                PAIRS.Input("pairs", tooltip="From Reflow Pairs or Load Pairs."),
                io.Conditioning.Input(
                    "positive", tooltip="The very prompts that the pairs were drawn for, in their order."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt of the teacher's guidance, for the comparison."
                ),
                io.Latent.Input("latent", tooltip="An empty latent of the pairs' size."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the preview."),
                io.Combo.Input(
                    "method",
                    options=methods_on_pairs(),
                    default=USUAL,
                    tooltip="rectified-diffusion keeps the model's own prediction type, reflow learns "
                    "velocities.",
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
                    tooltip="Guidance of the teacher that fidelity is measured against; 0: as the pairs "
                    "were drawn.",
                ),
                io.Combo.Input(
                    "memory", options=list(MEMORY), default="auto", tooltip="What the run may take."
                ),
                io.String.Input(
                    "name", default="reflow", tooltip="Name of the LoRA file; a number is added."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Same seed, same LoRA on the same machine.",
                ),
                *advanced_inputs(),
            ],
            outputs=outputs(),
            hidden=HIDDEN,
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        pairs: tuple[Data, dict[str, Any]],
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        latent: io.Latent.Type,
        method: str,
        steps: int,
        cfg: float,
        memory: str,
        name: str,
        seed: int,
        updates: int = 0,
        batch: int = 8,
        rank: int = 0,
        learning_rate: float = 0.0,
        phases: int = 0,
        layers: str = "*",
        start_from: str = lora_files.NONE,
        vae: io.Vae.Type | None = None,
    ) -> io.NodeOutput:
        data, about = pairs
        config = config_for(
            model,
            method=method,
            steps=steps,
            cfg=cfg or about.get("cfg", 0),
            updates=updates or USUAL_UPDATES,
            batch=batch,
            rank=rank,
            learning_rate=learning_rate,
            phases=phases,
            layers=layers,
            seed=seed,
        )

        def drawn_with(denoiser: ComfyDenoiser) -> Data:
            check_origin(about, denoiser, positive)
            return data

        order = Order(
            model=model,
            positive=positive,
            negative=negative,
            latent=latent,
            config=config,
            memory=memory,
            name=name,
            node=cls.hidden.unique_id,
            prompt=cls.hidden.prompt,
            workflow=workflow_of(cls.hidden),
            vae=vae,
            data=drawn_with,
            warm=lora_files.tensors(start_from, model),
            lower_rank=not rank,
        )
        return finish(train(order))


def methods_on_pairs() -> list[str]:
    """The methods that learn from pairs, the usual one first."""
    return sorted(methods.names(needs="pairs"), key=lambda name: name != USUAL)


def check_origin(about: dict[str, Any], denoiser: ComfyDenoiser, positive: io.Conditioning.Type) -> None:
    """Raise ValueError where pairs were drawn with another model or other prompts, naming what differs."""
    wanted = {
        "base": denoiser.base,
        "path": denoiser.path.name,
        "conditions": denoiser.conditions,
        "conditioning": digest(positive),
    }
    odd = [key for key, value in wanted.items() if about.get(key, value) != value]
    if odd:
        raise BadValue(
            "pairs must have been drawn with this model and these prompts; their {odd} differ. "
            "Draw them again with Reflow Pairs, or wire what they were drawn with.",
            odd=odd,
        )


def _files() -> list[str]:
    folder = folders.of_output(FOLDER)
    return sorted(file.name for file in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


NODES = [ReflowPairs, LoadPairs, TrainOnPairs]
