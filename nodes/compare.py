"""How many steps does this model need? Samplers and step counts against a converged reference.

All of them start from the same noise.
"""

import dataclasses
import difflib
import math
import time
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..diffusion import samplers
from ..diffusion.faults import BadValue, Message
from ..diffusion.schedules import grids
from ..training.reports import comparison
from . import show, verdict
from .comfy import levels
from .comfy.calls import ModelCalls
from .comfy.decoding import decode
from .comfy.latents import latent_of
from .sampling import sample
from .server import messages
from .training import FIXED

OURS = {
    "auto": {"order": "auto"},
    "order 1": {"order": 1},
    "order 2": {"order": 2},
    "order 3": {"order": 3},
    "heun": {"order": samplers.HEUN},
    "consistency": {"kappa": 1.0},
}
CACHED = {
    "cached": "The same model with a cache on it, such as EasyCache, to compete in every sampler and step "
    "count. It is judged by the calls it really makes, and needs step counts such as 20.",
    "cached_2": "Another cached model, such as one with LazyCache.",
}
REFERENCE_STEPS = (30, 60, 120)
LONGEST = 200  # steps that may be asked for


@dataclasses.dataclass
class Result:
    """One setting that was run on a model: name, steps, model calls for an image, seconds, distance to the
    reference, latents. cache: the input that the model came from, "" for the plain one.
    """

    name: str
    steps: int
    model: io.Model.Type
    sampler: comfy.samplers.Sampler
    sigmas: torch.Tensor
    cache: str = ""
    calls: float = 0.0
    seconds: float = 0.0
    distance: float = 0.0
    latents: torch.Tensor | None = None


class Compare(io.ComfyNode):
    """FewstepCompare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepCompare",
            display_name="Compare Few-Step",
            category="Fewstep/sampling",
            description="How many steps do I need? Samples the same noise with several samplers and step "
            "counts, measures how far each result is from the converged picture, and outputs the cheapest "
            "that is near enough.",
            search_aliases=["sampler grid", "xy plot", "how many steps", "fewstep"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input(
                    "latent", tooltip="A latent of the size to sample; distances are averaged over its batch."
                ),
                io.Vae.Input("vae", tooltip="Decodes the pictures for the grid."),
                io.String.Input(
                    "samplers",
                    default="auto, order 1, euler, dpmpp_2m/karras",
                    tooltip="Names separated by commas, each with an optional /schedule. Ours: auto, order "
                    "1, order 2, order 3, heun, consistency. ComfyUI's: by their names in KSampler.",
                ),
                io.String.Input("steps", default="2, 4, 8", tooltip="Step counts separated by commas."),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance, as in KSampler.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=FIXED,
                    tooltip="Seed of the starting noise.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.1,
                    min=0.001,
                    max=1.0,
                    step=0.005,
                    round=False,
                    tooltip="The distance from the converged picture that counts as near enough, as a share "
                    "of the latents' own spread. 0.1 is hard to see.",
                ),
                *(io.Model.Input(name, optional=True, tooltip=CACHED[name]) for name in CACHED),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.Sampler.Output(display_name="SAMPLER"),
                io.Sigmas.Output(display_name="SIGMAS"),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        latent: io.Latent.Type,
        vae: io.Vae.Type,
        samplers: str,
        steps: str,
        cfg: float,
        seed: int,
        tolerance: float,
        cached: io.Model.Type | None = None,
        cached_2: io.Model.Type | None = None,
    ) -> io.NodeOutput:
        counts = step_counts(steps)
        models = {"": model, "cached": cached, "cached_2": cached_2}
        check_same(models)
        settings = [
            dataclasses.replace(setting(used, name, count), cache=cache)
            for name in names(samplers)
            for cache, used in models.items()
            if used is not None
            for count in counts
        ]
        total = sum(result.steps for result in settings) + sum(REFERENCE_STEPS[:2])
        run = _Runner(model, positive, negative, latent, cfg, seed, total)
        with run.counted:
            reference, drift = converged(model, run, tolerance)
            for result in settings:
                result.distance = run.distance(run(result), reference)
        best, enough = verdict.cheapest(settings, tolerance)
        remarks = verdict.remarks(settings, reference, drift, tolerance, 1 if cfg == 1 else 2)
        told = [messages.told(m) for m in (verdict.answer(best, enough, tolerance), *remarks)]
        table = [messages.told(verdict.row(result, result.seconds)) for result in settings]
        data = {
            "reference": {"steps": reference.steps, "drift": drift if math.isfinite(drift) else None},
            "tolerance": tolerance,
            "rows": [{**figures(result), "chosen": result is best} for result in settings],
            "chosen": f"{verdict.label(best)}, {best.steps} steps",
            "enough": enough,
            "verdict": told,
        }
        text = "\n".join([*told, "", reference_line(reference, drift), *table])
        picture = _picture(vae, reference, settings, counts, best, tolerance)
        return show.output(cls, picture, {**data, "report": text}, best.sampler, best.sigmas, text)


def check_same(models: dict[str, io.Model.Type | None]) -> None:
    """Raises ValueError, naming the input, where a cached model is not the model with a cache on it."""
    for name, other in models.items():
        if other is not None and other.model is not models[""].model:
            raise BadValue(
                "{name} must be the model itself with a cache wired behind it, and is another model. Wire "
                "the node of the cache to what goes into model.",
                name=name,
            )


def step_counts(text: str, longest: int = LONGEST, name: str = "steps") -> list[int]:
    """The whole numbers in "2, 4, 8", rising; raises ValueError for anything else and for one above
    `longest`, naming the input.
    """
    try:
        counts = sorted({int(part) for part in text.replace(",", " ").split()})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1 or counts[-1] > longest:
        raise BadValue(
            "{name} must be whole numbers from 1 to {longest} between commas, such as 2, 4, 8; got {got!r}.",
            name=name,
            longest=longest,
            got=text,
        )
    return counts


def names(text: str) -> list[str]:
    """The settings in "auto, euler/simple", each once; raises ValueError when there is none."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise BadValue("samplers must name at least one sampler, such as auto, euler; got {got!r}.", got=text)
    return found


def setting(model: io.Model.Type, name: str, steps: int) -> Result:
    """A `Result` to be run; raises ValueError for a sampler or schedule that there is not, naming it."""
    sampler_name, _, schedule = (part.strip() for part in name.partition("/"))
    sampling = model.get_model_object("model_sampling")
    if sampler_name in OURS:
        sampler = comfy.samplers.KSAMPLER(sample, OURS[sampler_name])
        schedule = schedule or ("auto" if sampler_name == "auto" else "uniform")
    elif sampler_name in comfy.samplers.KSampler.SAMPLERS:
        sampler, schedule = comfy.samplers.sampler_object(sampler_name), schedule or "simple"
    else:
        raise BadValue(
            "samplers must be among {ours}, or a sampler of ComfyUI; got {got!r}. Nearest: {nearest}.",
            ours=list(OURS),
            got=sampler_name,
            nearest=nearest(sampler_name, [*OURS, *comfy.samplers.KSampler.SAMPLERS]),
        )
    if schedule in comfy.samplers.KSampler.SCHEDULERS and sampler_name not in OURS:
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, schedule).sigmas.cpu()
    elif schedule in grids.NAMES:
        sigmas = grids.grid(schedule, steps, levels.sigma_of(sampling), levels.path_of(sampling)).float()
    else:
        raise BadValue(
            "the schedule of {name!r} must be one of Few-Step Schedule or, for ComfyUI's samplers, of "
            "ComfyUI; got {got!r}. Nearest: {nearest}.",
            name=name,
            got=schedule,
            nearest=nearest(schedule, [*grids.NAMES, *comfy.samplers.KSampler.SCHEDULERS]),
        )
    called = Message("the schedule of {name!r} with {steps} steps", name=name, steps=steps)
    levels.check_range(sigmas, sampling, called)
    return Result(name, steps, model, sampler, sigmas)


def nearest(name: str, known: Sequence[str], most: int = 4) -> list[str]:
    """The known names that are most like this one, for people who slipped; the first few where none is."""
    return difflib.get_close_matches(name, known, most, 0.5) or list(known[:most])


class _Runner:
    """Runs settings from one starting noise, counting model calls while `counted` is open; one progress bar
    for all of them.
    """

    def __init__(
        self,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        latent: io.Latent.Type,
        cfg: float,
        seed: int,
        total: int,
    ):
        self.counted = ModelCalls(model)
        self.conditioning, self.cfg, self.seed = (positive, negative), cfg, seed
        self.latent = latent_of(model, latent)
        self.mask = latent.get("noise_mask")
        self.weight = _weight(self.mask, self.latent)
        self.noise = comfy.sample.prepare_noise(self.latent, seed, latent.get("batch_index"))
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, result: Result) -> Result:
        """Fill in latents, calls and seconds of a result."""
        begun = time.perf_counter()
        positive, negative = self.conditioning
        sigmas = result.sigmas.clone()  # uni_pc writes into them
        result.latents = comfy.sample.sample_custom(
            result.model,
            self.noise,
            self.cfg,
            result.sampler,
            sigmas,
            positive,
            negative,
            self.latent,
            noise_mask=self.mask,
            disable_pbar=True,
            seed=self.seed,
        )
        result.seconds = time.perf_counter() - begun
        result.calls = self.counted.take(len(self.latent))
        self.bar.update(result.steps)
        comfy.model_management.throw_exception_if_processing_interrupted()
        return result

    def distance(self, a: Result, b: Result) -> float:
        """RMSE of two results' latents as a share of the second's spread, where the mask allows change."""
        a, b, weight = a.latents.float(), b.latents.float(), self.weight.expand(a.latents.shape)
        total = weight.sum().clamp_min(1e-6)
        mean = (weight * b).sum() / total
        error = (weight * (a - b).square()).sum() / total
        spread = (weight * (b - mean).square()).sum() / total
        value = float((error / spread).sqrt())
        return value if math.isfinite(value) else math.inf


def _weight(mask: torch.Tensor | None, latent: torch.Tensor) -> torch.Tensor:
    """What counts of a latent (B, 1, ...): 1 everywhere, or where an inpainting mask lets anything change."""
    if mask is None:
        return torch.ones_like(latent[:, :1])
    return comfy.sampler_helpers.prepare_mask(mask, latent.shape, torch.device("cpu")).float()


def converged(model: io.Model.Type, run: _Runner, tolerance: float) -> tuple[Result, float]:
    """The reference, and how far its last doubling of steps still moved it, as a share of the spread."""
    before, drift = None, 1.0
    for steps in REFERENCE_STEPS:
        result = run(setting(model, "order 2", steps))
        if before is not None:
            drift = run.distance(before, result)
            if drift <= tolerance / verdict.SHARE:
                break
        before = result
    return result, drift


def figures(result: Result) -> dict[str, Any]:
    """A row of the table, as JSON can hold it."""
    return {
        "name": verdict.label(result),
        "steps": result.steps,
        "nfe": round(result.calls, 2),
        "seconds": round(result.seconds, 3),
        "distance": round(result.distance, 5) if math.isfinite(result.distance) else None,
    }


def reference_line(reference: Result, drift: float) -> str:
    """What the distances are measured to."""
    return messages.told(
        Message(
            "Reference: order 2, {steps} steps; its last doubling moved it by {drift:.3f}.",
            steps=reference.steps,
            drift=drift,
        )
    )


def _picture(vae, reference, results, counts, best, tolerance):
    """Rows of samplers, columns of step counts, the first picture of the batch; the reference on the left."""
    pixels = {id(r): decode(vae, r.latents[:1])[0] for r in (reference, *results)}
    rows = {}
    for r in results:
        texts = (f"{r.distance:.3f}", Message("{calls:g} calls", calls=r.calls))
        tile = comparison.Tile(pixels[id(r)], texts, near=r.distance <= tolerance, chosen=r is best)
        name = verdict.label(r)
        first = comparison.Tile(pixels[id(reference)], name.split(" · "), name=True)
        rows.setdefault(name, [first]).append(tile)
    title = Message(
        "Distance to the picture of {steps} steps. Green: within {tolerance:g}. Framed: chosen.",
        steps=reference.steps,
        tolerance=tolerance,
    )
    heads = [Message("{steps} steps", steps=count) for count in (reference.steps, *counts)]
    return comparison.grid(title, heads, list(rows.values()))


NODES = [Compare]
