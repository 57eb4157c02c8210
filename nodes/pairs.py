"""Reflow Pairs and Train on Pairs: the two stages of reflow, for those who want them one by one."""

import contextlib
import functools
from typing import Any

import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..diffusion.paths import path as path_of
from ..diffusion.schedules.grids import grid, shifted
from ..training import methods
from ..training.formats.files import check_folder, file_stem, free_name
from ..training.models.denoiser import Guided, InParts
from ..training.models.memory_errors import named
from ..training.trajectories.cache import CacheSpec, TrajectoryCache
from ..training.trajectories.data import Data, load_pairs, pair_noise, save_pairs
from . import show, zero
from .comfy import families, folders, levels, lora_files, residency, session
from .comfy.denoiser import ComfyDenoiser
from .comfy.fingerprints import base_of, digest, patches_of
from .comfy.guider_proof import settle
from .comfy.guider_teacher import Teacher, cfg_of, taught_by
from .comfy.latents import content, latent_of, sample_shape
from .comfy.teacher_proof import proven
from .comfy.whole_prompts import check_whole
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
from .training import FIXED, WIRE_GUIDER, Order, check, follow_drawing, train

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
            category="Fewstep/training",
            description="Draws pictures with this model and keeps each with the noise it came from: this is "
            "what reflow learns from. For another round, wire the model with the LoRA of the previous round. "
            "The file goes to output/fewstep_pairs.",
            search_aliases=["rectified flow", "dataset", "distil", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The teacher: checkpoint, merge, or with LoRAs applied."),
                io.Conditioning.Input(
                    "positive", tooltip="Prompts; each conditioning entry is one prompt, used in turn."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt for the guidance."),
                io.Latent.Input("latent", tooltip="An empty latent of the size to train at."),
                io.Int.Input("count", default=256, min=1, max=100_000, tooltip="How many pairs to draw."),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=1,
                    max=1000,
                    tooltip="Solver steps per picture (second order, no fresh noise).",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    extra_dict=zero.AUTO,
                    tooltip="Guidance. 0 is auto: what is usual for the model's family. Use 1 for a model "
                    "that is already few-step.",
                ),
                io.String.Input("name", default="pairs", tooltip="File name; a number is added."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Seed of the starting noises.",
                ),
                io.Int.Input(
                    "chunk",
                    default=4,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Pictures drawn at once. Lower it if memory runs out.",
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="Draws the pictures instead of the model at its cfg: any guider, with whatever "
                    "guidance, ControlNets or regions it has. Each prompt takes the place of the guider's "
                    "own positive.",
                ),
            ],
            outputs=[PAIRS.Output(display_name="PAIRS"), io.String.Output(display_name="file")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @named(Message("pairs were drawn"))
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
        guider: io.Guider.Type | None = None,
    ) -> io.NodeOutput:
        cfg, node = cfg or families.family(model).cfg, cls.hidden.unique_id
        if guider is not None:
            cfg = max(1.0, cfg_of(guider))
        if cfg < 1:
            raise BadValue("cfg must be 1 or more, or 0 for what is usual, got {got:g}.", got=cfg)
        check(model, positive, negative, name)
        empty = latent_of(model, latent)
        folder, stem = folders.of_output(FOLDER), file_stem(name)
        size = 8 * count * empty[:1].numel() + (1 << 20)
        check_folder(folder, size, free_name(folder, stem, SUFFIX).name)
        sampling = model.get_model_object("model_sampling")
        path = levels.path_of(sampling)
        sigmas = grid("uniform", steps, shifted(levels.sigma_of(sampling), families.shift(model)), path)
        for key, entries in (("positive", positive), ("negative", negative)):
            check_whole(key, entries, model, tuple(empty.shape[1:]), sigmas, WIRE_GUIDER)
        shape = sample_shape(model, empty)
        with contextlib.ExitStack() as stack:
            if guider is not None:
                teacher = settle(taught_by(guider, model, positive, shape, sigmas), sigmas)
            else:
                beside = model.model.memory_required([2 * chunk, *shape])
                patcher = stack.enter_context(session.training_session(model, beside=beside))
                stack.enter_context(torch.no_grad())
                with families.named(model):
                    denoiser = ComfyDenoiser(
                        patcher, positive, negative, empty.clone().float(), latent.get("noise_mask")
                    )
                    denoiser = proven(denoiser, patcher, positive, negative, cfg, sigmas, WIRE_GUIDER)
                teacher = Guided(InParts(denoiser, chunk), cfg)
                teacher.identity |= {
                    "patches": patches_of(model, model.model_options),
                    "conditioning": digest(
                        [positive, negative[0], *content(empty, latent.get("noise_mask"))]
                    ),
                }
            spec = CacheSpec(
                **teacher.identity,
                conditions=teacher.conditions,
                path=path.name,
                shape=shape,
                kept=(0, steps),
                sigmas=tuple(sigmas.tolist()),
                noise_scale=teacher.noise_scale,
                seed=seed,
                predictions=False,
                shard=1 if getattr(teacher, "each_path", None) else CacheSpec.shard,
            )
            data = _drawn(TrajectoryCache(folders.of_user("trajectories"), spec), teacher, count, node)
        about = {
            "base": base_of(model),
            "path": path.name,
            "patches": teacher.identity["patches"],
            "conditioning": digest(positive),
            "conditions": teacher.conditions,
            "cfg": cfg,
            "guidance": teacher.identity["guidance"],
            "steps": steps,
            "seed": seed,
        }
        file = save_pairs(free_name(folder, stem, SUFFIX), data, about)
        saved = Message("Saved {file}", file=file.name)
        show.say(node, saved)
        return io.NodeOutput((data, about), file.name, ui={"text": (saved,)})


def _drawn(cache: TrajectoryCache, teacher: Guided | Teacher, count: int, node: str | None) -> Data:
    """The pairs that the teacher draws; what was drawn before a cancel is not drawn again."""
    spec = cache.spec
    sigmas = torch.tensor(spec.sigmas, dtype=torch.float64)
    work = functools.partial(follow_drawing, cache.build(teacher, count), node)
    try:
        if isinstance(teacher, Teacher):
            teacher.draw(work, sigmas)
        else:
            work()
        with torch.inference_mode(False):  # they are trained on
            start, images = cache.read(count)[0].unbind(1)
            noise = pair_noise(start, images, path_of(spec.path), sigmas[0])
            return Data(images=images, condition=cache.conditions(count), noise=noise)
    finally:
        cache.close()


class LoadPairs(io.ComfyNode):
    """FewstepLoadPairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepLoadPairs",
            display_name="Load Pairs",
            category="Fewstep/training",
            description="Loads pairs that Reflow Pairs saved, here or on another machine.",
            search_aliases=["reflow", "dataset", "fewstep"],
            inputs=[io.Combo.Input("file", options=_files(), tooltip="A file in output/fewstep_pairs.")],
            outputs=[PAIRS.Output(display_name="PAIRS")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others: Any) -> int | str:
        """Another file of the same name is read again."""
        return (folders.of_output(FOLDER) / file).stat().st_mtime_ns if file in _files() else ""

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
            category="Fewstep/training",
            description="Trains a LoRA on pairs of noise and picture, by reflow or rectified diffusion: a "
            "model whose paths are straight needs few steps. Cancel at any time; queueing the same again "
            "continues.",
            search_aliases=["reflow", "rectified flow", "instaflow", "lora", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that drew the pairs."),
                PAIRS.Input("pairs", tooltip="From Reflow Pairs or Load Pairs."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Exactly the prompts that the pairs were drawn for, in the same order.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt for the teacher's guidance, for the comparison."
                ),
                io.Latent.Input("latent", tooltip="An empty latent of the pairs' size."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the preview."),
                io.Combo.Input(
                    "method",
                    options=methods_on_pairs(),
                    default=USUAL,
                    tooltip="rectified-diffusion keeps the model's own prediction type; reflow learns "
                    "velocities.",
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
                    tooltip="Guidance of the teacher that fidelity is measured against. 0 is auto: as the "
                    "pairs were drawn.",
                ),
                *job_inputs("reflow"),
                *advanced_inputs(),
                *outcome_inputs(),
            ],
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
        start_partly: bool = False,
        residency: str = residency.AUTO,
        lora_precision: str = "fp16",
        optimizer: str = "adamw",
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
            lora_precision=lora_precision,
            optimizer=optimizer,
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
            residency=residency,
            name=name,
            node=cls.hidden.unique_id,
            prompt=cls.hidden.prompt,
            workflow=workflow_of(cls.hidden),
            vae=vae,
            data=drawn_with,
            warm=lora_files.tensors(start_from, model, config.rank, start_partly),
            lower_rank=not rank and start_from == lora_files.NONE,
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
