"""Distil Few-Step LoRA: a queued graph job over `training`, the very code that `fewstep demo` runs."""

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..training import pictures
from ..training.config import DistilConfig
from ..training.distil import Distillation, teacher_samples
from ..training.files import check_folder, free_name
from . import host, show
from .decode import decode
from .guiding import digest, patches_of

# quality: (updates, teacher samples, rank)
QUALITY = {"quick": (100, 64, 16), "standard": (600, 480, 32), "best": (1600, 960, 64)}
SHOWN = 4       # pictures in the preview


class Distil(io.ComfyNode):
    """FewstepDistil."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FewstepDistil",
            display_name="Distil Few-Step LoRA",
            category="Fewstep",
            description="Trains a LoRA with which this very model needs only a few steps and no CFG. The data are the model's own "
                        "pictures of the wired prompts. Cancel at any time: what has been learnt is saved. The file goes to "
                        "models/loras with its recipe inside.",
            search_aliases=["train", "lcm", "consistency", "lora", "fewstep"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to make few-step: checkpoint, merge, or with LoRAs applied."),
                io.Conditioning.Input("positive", tooltip="Prompts to train on; each conditioning entry is one prompt (join more "
                                                          "with Conditioning Combine)."),
                io.Conditioning.Input("negative", tooltip="The negative prompt that the teacher's guidance uses."),
                io.Latent.Input("latent", tooltip="An empty latent of the size to train at."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the preview; without it the preview is only the curves."),
                io.Int.Input("steps", default=4, min=1, max=8, tooltip="Sampling steps that the LoRA is made for."),
                io.Float.Input("cfg", default=2.0, min=1.0, max=30.0, step=0.1,
                               tooltip="The guidance that you use with this model today. The LoRA has it built in."),
                io.Combo.Input("quality", options=list(QUALITY), default="standard",
                               tooltip="How long to train: quick to try, standard, best for overnight."),
                io.String.Input("name", default="fewstep", tooltip="Name of the LoRA file; a number is added."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True,
                             tooltip="Same seed, same LoRA on the same machine."),
                io.Int.Input("updates", default=0, min=0, max=1_000_000, advanced=True,
                             tooltip="Training updates; 0 lets quality choose."),
                io.Int.Input("batch", default=8, min=1, max=256, advanced=True,
                             tooltip="Samples an update. Lower it when memory runs out."),
            ],
            outputs=[io.LoraModel.Output(display_name="LORA_MODEL"), io.LossMap.Output(display_name="LOSS_MAP"),
                     io.Image.Output(display_name="preview"),
                     io.Sigmas.Output(display_name="SIGMAS", tooltip="The grid the LoRA is made for.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, steps, cfg, quality, name, seed, updates, batch, vae=None):
        default_updates, images, rank = QUALITY[quality]
        config = DistilConfig(steps=steps, cfg=cfg, updates=updates or default_updates, images=images, rank=rank, batch=batch,
                              seed=seed, chunk=batch)
        host.check_supported(model, {"positive": positive, "negative": negative})
        host.path_of(model.get_model_object("model_sampling"))
        _check_conditioning("positive", positive)
        _check_conditioning("negative", negative)
        stem = show.file_stem(name)
        folder = check_folder(folder_paths.get_folder_paths("loras")[0])
        empty = comfy.sample.fix_empty_latent_channels(model, latent["samples"], latent.get("downscale_ratio_spacial"))
        with host.training_session(model) as patcher:
            denoiser = host.ComfyDenoiser(patcher, positive, negative, empty[:1].clone().float())
            run = Distillation(denoiser, config, _cache(model, positive, negative))
            try:
                check_folder(folder, sum(4 * p.numel() for p in run.averaged) + (1 << 20))
                path = _train(run, folder, stem, cls.hidden.unique_id)
                preview = _preview(run, model, vae)
                tensors, sigmas = run.lora_tensors(), run.sigmas_for(steps).float()
            finally:
                run.close()
        show.say(cls.hidden.unique_id, f"Saved {path.name}")
        return io.NodeOutput(tensors, {"loss": [value for _, value in run.loss]}, preview, sigmas,
                             ui={"text": (f"Saved {path.name}",)})


def _train(run, folder, stem, node):
    """Run to the end, or until the user cancels or something fails: either way what has been learnt is saved."""
    bar = None
    try:
        for progress in run.progress():
            bar = bar or comfy.utils.ProgressBar(progress.total, node_id=node)
            bar.update_absolute(progress.step, progress.total)
            if progress.step % 10 == 0 and progress.seconds_left is not None:
                show.say(node, f"{progress.stage}: loss {progress.loss:.4f}, {progress.seconds_left / 60:.1f} min left")
            comfy.model_management.throw_exception_if_processing_interrupted()
    except (Exception, comfy.model_management.InterruptProcessingException):      # the cancel is no Exception in newer hosts
        if run.done:
            show.say(node, f"Stopped after {run.done} updates. Saved {run.save(free_name(folder, stem, '.safetensors')).name}")
        raise
    return run.save(free_name(folder, stem, ".safetensors"))


def _preview(run, model, vae):
    """IMAGE: teacher / before / now from the same held-out noise, beside the curves; the curves alone without a VAE."""
    curves = pictures.run_curves(run.loss, run.fidelity)
    if vae is not None:
        denoiser, config = run.denoiser, run.config
        noise, condition, reference = (v[:SHOWN] for v in run.probe)
        before = teacher_samples(run.lora, denoiser, noise, condition, config.cfg, config.steps, order=1,
                                 chunk=config.chunk)
        now = run.student_samples(noise, condition, run.sigmas_for(config.steps))
        heads = ("teacher", f"before\n{config.steps} steps", f"now\n{config.steps} steps")
        columns = {head: decode(vae, denoiser.model.process_latent_out(x.cpu()))
                   for head, x in zip(heads, (reference, before, now))}
        scale = max(1, 128 // next(iter(columns.values())).shape[-1])
        grid_picture = pictures.grid(columns, [str(i + 1) for i in range(len(noise))], "Same starting noise", scale)
        curves = pictures.stack(grid_picture, curves)
    return show.image(curves)


def _cache(model, positive, negative):
    """Where the teacher's trajectories are kept, so that a run which was cancelled while they were sampled goes on there.

    They are the same for all seeds: the widget changes its own after every run.
    """
    identity = {"patches": patches_of(model, model.model_options), "conditioning": digest([positive, negative[0]]), "seed": 0}
    return host.trajectory_folder(), identity


def _check_conditioning(name, value):
    if not value:
        raise ValueError(f"{name} must hold at least one conditioning, got none. Wire a text encoder's output.")


NODES = [Distil]
