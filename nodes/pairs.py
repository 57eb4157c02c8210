"""Reflow Pairs and Train on Pairs: the two stages of reflow, for those who want them one by one."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue
from ..diffusion.schedules.grids import grid, shifted
from ..training.formats.files import check_folder, free_name
from ..training.models.denoiser import Guided, InParts
from ..training.trajectories.cache import CacheSpec, TrajectoryCache
from ..training.trajectories.data import Data, load_pairs, pair_noise, save_pairs
from . import show
from .comfy import families, host, lora_files
from .comfy.guiding import digest, patches_of
from .distil import HIDDEN, advanced_inputs, config_for, finish, graph_of, outputs
from .training import FIXED, MEMORY, Order, check, train

PAIRS = io.Custom("FEWSTEP_PAIRS")
TRAINED_ON = ("rectified-diffusion", "reflow")
SUFFIX = ".pairs.safetensors"


class ReflowPairs(io.ComfyNode):
    """FewstepReflowPairs."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepReflowPairs",
            display_name="Reflow Pairs",
            category="Fewstep",
            description="Draws pictures with this model and keeps each with the noise that it came from: what reflow learns from. "
            "For another round, wire the model with the LoRA of the round before. The file goes to "
            "output/fewstep_pairs.",
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
                    tooltip="Guidance; 0: what is usual for the model's family. 1 for a model that is few-step.",
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
    def execute(cls, model, positive, negative, latent, count, steps, cfg, name, seed, chunk=4):
        cfg, node = cfg or families.family(model).cfg, cls.hidden.unique_id
        if cfg < 1:
            raise BadValue("cfg must be 1 or more, or 0 for what is usual, got {got:g}.", got=cfg)
        check(model, positive, negative, name)
        empty = host.latent_of(model, latent)
        folder = check_folder(host.output("fewstep_pairs"), 8 * count * empty[:1].numel() + (1 << 20))
        patches, prompts = patches_of(model, model.model_options), digest([positive, negative[0]])
        with host.training_session(model) as patcher, torch.no_grad():
            denoiser = host.ComfyDenoiser(patcher, positive, negative, empty[:1].clone().float())
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
            cache, bar = (
                TrajectoryCache(host.folder("trajectories"), spec),
                comfy.utils.ProgressBar(1000, node_id=node),
            )
            try:  # what was drawn before a cancel is not drawn again
                for share in cache.build(Guided(InParts(denoiser, chunk), cfg), count):
                    bar.update_absolute(round(1000 * share), 1000)
                    comfy.model_management.throw_exception_if_processing_interrupted()
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
        path = save_pairs(free_name(folder, show.file_stem(name), SUFFIX), data, about)
        show.say(node, f"Saved {path.name}")
        return io.NodeOutput((data, about), path.name, ui={"text": (f"Saved {path.name}",)})


class LoadPairs(io.ComfyNode):
    """FewstepLoadPairs."""

    @classmethod
    def define_schema(cls):
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
    def execute(cls, file):
        if file not in _files():
            raise BadValue(
                "file must be one of those in output/fewstep_pairs, got {got!r}. Draw some with Reflow "
                "Pairs.",
                got=file,
            )
        return io.NodeOutput(load_pairs(host.output("fewstep_pairs") / file))


class TrainOnPairs(io.ComfyNode):
    """FewstepTrainOnPairs."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepTrainOnPairs",
            display_name="Train on Pairs",
            category="Fewstep",
            description="Trains a LoRA on noise and picture pairs, by reflow or rectified diffusion: a model whose paths are "
            "straight needs few steps. Cancel at any time; queueing the same again goes on.",
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
                    options=list(TRAINED_ON),
                    default=TRAINED_ON[0],
                    tooltip="rectified-diffusion keeps the model's own prediction type, reflow learns velocities.",
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
                    tooltip="Guidance of the teacher that fidelity is measured against; 0: as the pairs were drawn.",
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
        model,
        pairs,
        positive,
        negative,
        latent,
        method,
        steps,
        cfg,
        memory,
        name,
        seed,
        updates=0,
        batch=8,
        rank=0,
        learning_rate=0.0,
        phases=0,
        layers="*",
        start_from=lora_files.NONE,
        vae=None,
    ):
        data, about = pairs
        config = config_for(
            model,
            method=method,
            steps=steps,
            cfg=cfg or about.get("cfg", 0),
            updates=updates or 600,
            batch=batch,
            rank=rank,
            lr=learning_rate,
            phases=phases or None,
            layers=layers,
            seed=seed,
        )

        def given(denoiser):
            wanted = {
                "base": denoiser.base,
                "path": denoiser.path.name,
                "conditions": denoiser.conditions,
                "conditioning": digest(positive),
            }
            odd = [k for k, v in wanted.items() if about.get(k, v) != v]
            if odd:
                raise BadValue(
                    "pairs must have been drawn with this model and these prompts; their {odd} differ. "
                    "Draw them again with Reflow Pairs, or wire what they were drawn with.",
                    odd=list(odd),
                )
            return data

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
                    data=given,
                    warm=lora_files.tensors(start_from, model),
                )
            )
        )


def _files():
    folder = host.output("fewstep_pairs")
    return sorted(f.name for f in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


NODES = [ReflowPairs, LoadPairs, TrainOnPairs]
