"""Forward processes in the graph: chosen, looked at, and undone by a LoRA that was trained to."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import folder_paths
import latent_preview
import torch
from comfy_api.latest import io

from ..diffusion import samplers
from ..diffusion.destruction.forward import ForwardProcess
from ..diffusion.faults import BadValue, Message
from ..diffusion.schedules import grids
from ..training import methods
from ..training.formats import processes
from ..training.formats.files import load_lora
from ..training.formats.recipe import Recipe
from ..training.methods.restoration import Seen, restore, times_for
from ..training.models.memory_errors import named
from . import recipes, zero
from .comfy import folders, fresh_noise, levels, lora_files
from .comfy.decoding import decode
from .comfy.latents import latent_of
from .sampling import last_of
from .training import FIXED

PROCESS = io.Custom("FEWSTEP_PROCESS")
STRIP = 8  # pictures of a strip, at most


TIPS = {
    "largest": "Side of the largest squares, in the model's own pixels: a power of two.",
    "width": "Standard deviation of the strongest blur, in the model's own pixels.",
    "fill": "What masked pixels become, in the model's own values; 0 is their mean.",
    "strength": "Standard deviation of the strongest noise, in the model's own values, whose spread is about "
    "1.",
}


def _options(kind: str) -> list:
    """The inputs of a kind of process."""
    inputs = []
    for name, option in processes.KINDS[kind].options.items():
        make = io.Int.Input if option.whole else io.Float.Input
        more = {} if option.whole else {"step": 0.05, "round": False}
        bounds = {"default": option.default, "min": option.least, "max": option.most}
        inputs.append(make(name, **bounds, tooltip=TIPS[name], **more))
    return inputs


class Process(io.ComfyNode):
    """FewstepForwardProcess."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepForwardProcess",
            display_name="Forward Process",
            category="Fewstep/restore",
            description="A gradual destruction of pictures that a model can learn to undo: squares, blur, "
            "missing pixels, noise. Wire it to Distil Few-Step LoRA, and the LoRA becomes a restorer.",
            search_aliases=["blur", "pixelate", "mask", "cold diffusion", "restore", "fewstep"],
            inputs=[
                io.DynamicCombo.Input(
                    "kind",
                    options=[io.DynamicCombo.Option(kind, _options(kind)) for kind in processes.KINDS],
                    tooltip="pixelate: averages over squares. blur: out of focus. mask: pixels go missing, "
                    "in a random order. noise: a little noise on top. gaussian: all the way to noise.",
                ),
                PROCESS.Input(
                    "after",
                    optional=True,
                    tooltip="A process that comes before this one, such as blur before noise. Only the last "
                    "may be mask, noise or gaussian.",
                ),
            ],
            outputs=[PROCESS.Output(display_name="PROCESS")],
        )

    @classmethod
    def execute(cls, kind: dict[str, Any], after: Sequence[dict] | None = None) -> io.NodeOutput:
        parts = processes.checked([*(after or ()), dict(kind)])
        processes.process_of(parts)  # refused where one can't follow another
        return io.NodeOutput([dict(part) for part in parts])


class Corrupt(io.ComfyNode):
    """FewstepCorrupt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepCorrupt",
            display_name="Corrupt Image",
            category="Fewstep/restore",
            description="Destroys a picture with a Forward Process, in the model's own space, and shows the "
            "stages on the way as a strip.",
            search_aliases=["blur", "pixelate", "mask", "degrade", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model in whose space the picture is destroyed."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture or several."),
                PROCESS.Input("process", tooltip="From Forward Process."),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to go. 1: as far as the process goes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Seed of the noise or the mask.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="For Restore (Few-Step)."),
                io.Image.Output(display_name="IMAGE"),
                io.Image.Output(
                    display_name="strip", tooltip="The first picture in stages, from whole to destroyed."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        vae: io.Vae.Type,
        image: torch.Tensor,
        process: Sequence[dict],
        amount: float,
        seed: int,
    ) -> io.NodeOutput:
        made = processes.process_of(process)
        whole = model.model.process_latent_in(vae.encode(image[..., :3]))
        noise = samplers.batch_noise(seed)(whole)

        def corrupted(count: int, t: float) -> torch.Tensor:
            return model.model.process_latent_out(made.corrupt(whole[:count], noise[:count], t))

        latent = corrupted(len(whole), amount)
        way = torch.cat([corrupted(1, amount * n / (STRIP - 1)) for n in range(STRIP)])
        shown, strip = _image(decode(vae, latent)), _image(decode(vae, way))
        return io.NodeOutput({"samples": latent}, shown, torch.cat(list(strip), 1)[None])


def _image(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (N, 3, H, W) in [-1, 1] as an IMAGE (N, H, W, 3)."""
    return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)


def sample_process(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    *,
    process: ForwardProcess,
    destroyed: torch.Tensor,
    kappa: float,
    amount: float,
    keys: Sequence[bytes] | None = None,
) -> torch.Tensor:
    """`training.run.restoration.restore` in the signature of ComfyUI's sampler functions, from `destroyed`
    (model space) in the place of x; keys: of each row's fresh noise, None for the host's seed and its place.
    Sigmas of one level are no step: x is returned.
    """
    if len(sigmas) < 2:
        return x
    extra_args = extra_args or {}
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    seen = Seen(process, levels.path_of(sampling), levels.sigma_of(sampling))
    steps, x = len(sigmas) - 1, destroyed.to(x)
    usual = fresh_noise.numbered(extra_args.get("seed") or 0, None, len(x))
    fresh = samplers.RowNoise(keys or usual).at(0.0)

    def call(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model(x, sigma, **extra_args)

    run = restore(call, seen, x, amount * times_for(steps), kappa, fresh)
    return last_of(run, x, steps, steps - 1, callback, disable)


class Restore(io.ComfyNode):
    """FewstepRestore."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepRestore",
            display_name="Restore (Few-Step)",
            category="Fewstep/restore",
            description="Undoes a forward process with a LoRA that was trained for it: de-pixelates, "
            "de-blurs, fills in. The LoRA's recipe says which process.",
            search_aliases=["deblur", "depixelate", "inpaint", "super resolution", "udm", "fewstep"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the LoRA was made from, without the LoRA; or with it, if you "
                    "wire a process and choose no LoRA.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=lora_files.names(),
                    tooltip="A LoRA made by Distil Few-Step LoRA with a process wired; its recipe holds the "
                    "process.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt used in training; an empty one if it was empty."
                ),
                io.Latent.Input(
                    "latent", tooltip="The destroyed picture: from Corrupt Image, or encoded by the VAE."
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the picture is destroyed, as in Corrupt Image. 1: as far as the "
                    "process goes.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    extra_dict=zero.AUTO,
                    tooltip="Model calls. 0 is auto: the number the LoRA was made for, or 1 if no LoRA is "
                    "chosen here.",
                ),
                io.Float.Input(
                    "renew",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the noise that each step draws anew: 0 keeps to what the picture says, "
                    "1 forgets everything but the prediction.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=FIXED,
                    tooltip="Seed of the noise, if any is drawn.",
                ),
                PROCESS.Input(
                    "process",
                    optional=True,
                    tooltip="The process to undo, instead of the one in the LoRA's recipe.",
                ),
                io.Boolean.Input(
                    "any_base",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Load the LoRA on a model that it was not made from, such as a related one.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others: Any) -> int | str:
        """Another file of the same name is read again: a run that goes on writes over its own."""
        return folders.written_at("loras", lora_name)

    @classmethod
    @named(Message("the picture was restored"))
    def execute(
        cls,
        model: io.Model.Type,
        lora_name: str,
        positive: io.Conditioning.Type,
        latent: io.Latent.Type,
        amount: float,
        steps: int,
        renew: float,
        seed: int,
        process: Sequence[dict] | None = None,
        any_base: bool = False,
    ) -> io.NodeOutput:
        if lora_name == lora_files.NONE and process is None:
            raise BadValue(
                "lora_name must be a LoRA that was trained to restore where no process is wired, got none. "
                "Choose one, or wire the process and a model with the LoRA in it."
            )
        loaded, usual = model, 1
        if lora_name != lora_files.NONE:
            loaded, recipe = _with_lora(model, lora_name, any_base)
            process, usual = process or recipe.trained["process"], len(recipe.sigmas) - 1
        made, samples = processes.process_of(process), latent_of(loaded, latent)
        destroyed = _filled(made, loaded.model.process_latent_in(samples), latent.get("noise_mask"))
        options = {
            "process": made,
            "destroyed": destroyed,
            "kappa": renew,
            "amount": amount,
            "keys": fresh_noise.numbered(seed, latent.get("batch_index"), len(samples)),
        }
        sigmas = _levels(made, loaded, amount * times_for(steps or usual))
        out = comfy.sample.sample_custom(
            loaded,
            torch.zeros_like(samples),
            1.0,
            comfy.samplers.KSAMPLER(sample_process, options),
            sigmas,
            positive,
            positive,
            samples,
            seed=seed,
            callback=latent_preview.prepare_callback(loaded, len(sigmas) - 1),
        )
        return io.NodeOutput({**latent, "samples": out})


def _levels(process: ForwardProcess, model: io.Model.Type, times: torch.Tensor) -> torch.Tensor:
    """The noise levels, float32 (steps + 1,), that the model is asked at along these times to 0."""
    sampling = model.get_model_object("model_sampling")
    seen = Seen(process, levels.path_of(sampling), levels.sigma_of(sampling))
    asked, _ = seen(times[:-1])
    return grids.descending(torch.cat([asked, asked.new_zeros(1)])).float()


def _filled(process: ForwardProcess, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The latent, masked pixels as a mask process leaves them; raises ValueError where none is missing."""
    if not process.sudden:
        return x
    if mask is not None:
        x = torch.where(comfy.sampler_helpers.prepare_mask(mask, x.shape, x.device) > 0.5, process.fill, x)
    if not process.masked(x).any():
        raise BadValue(
            "latent must have missing pixels to be filled in, got none. Wire Corrupt Image, or Set Latent "
            "Noise Mask."
        )
    return x


def _with_lora(model: io.Model.Type, name: str, any_base: bool) -> tuple[io.Model.Type, Recipe]:
    """The model with a LoRA that was trained to restore, and its recipe; raises ValueError for another."""
    tensors, recipe = load_lora(folder_paths.get_full_path_or_raise("loras", name))
    if recipe is None or not methods.restores(recipe.method):
        raise BadValue(
            "lora_name must be a LoRA that was trained to restore, {name} was not. Train one with Distil "
            "Few-Step LoRA and a process, or load this one with Load Few-Step LoRA.",
            name=name,
        )
    recipes.check_base(recipe, model, "lora_name", name, any_base)
    return comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)[0], recipe


NODES = [Process, Corrupt, Restore]
