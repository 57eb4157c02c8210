"""How a queued job trains: from a MODEL and prompts to a LoRA file, saved as it goes, resumed when the same
is queued again.
"""

import dataclasses

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..diffusion.faults import BadValue
from ..training.formats.files import check_folder, free_name, load_lora
from ..training.reports import pictures
from ..training.run.job import Job, folder_name
from ..training.run.memory import BUDGETS, cut, gib
from ..training.run.restoration import run_of
from . import show
from .comfy import folders, levels, session
from .comfy.decoding import decode
from .comfy.denoiser import ComfyDenoiser, check_supported
from .comfy.fingerprints import digest, patches_of
from .comfy.latents import latent_of
from .server.live import SHOWN, Live, ended

MEMORY = ("auto", *(f"{b} GB" for b in BUDGETS))
FIXED = (
    io.ControlAfterGenerate.fixed
)  # the frontend would draw another seed after every queue, and begin another run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a node was asked for. data: of a `ComfyDenoiser` -> `training.data.Data`, or None; warm: tensors
    of a LoRA, or None.

    prompt, workflow: the graph that it is part of, as the host runs it and as the frontend keeps it.
    """

    model: object
    positive: list
    negative: list
    latent: dict
    config: object
    memory: str
    name: str
    node: str | None
    prompt: dict | None = None
    workflow: dict | None = None
    vae: object = None
    data: object = None
    warm: dict | None = None


def check(model, positive, negative, name):
    """Raise ValueError naming an input that can't be trained from, before the model is loaded."""
    for key, value in (("positive", positive), ("negative", negative)):
        if not value:
            raise BadValue(
                "{layer} must hold at least one conditioning, got none. Wire a text encoder's output.",
                layer=key,
            )
    check_supported(model, {"positive": positive, "negative": negative})
    levels.path_of(model.get_model_object("model_sampling"))
    show.file_stem(name)


def train(order):
    """(LoRA tensors, LOSS_MAP, preview IMAGE, SIGMAS, file) of a run that went to its end or was told to stop
    there.
    """
    check(order.model, order.positive, order.negative, order.name)
    folder = check_folder(folder_paths.get_folder_paths("loras")[0])
    latent = latent_of(order.model, order.latent)
    patches = patches_of(order.model, order.model.model_options)
    prompts = digest([order.positive, order.negative[0]])
    with session.training_session(order.model) as patcher:
        denoiser = ComfyDenoiser(patcher, order.positive, order.negative, latent[:1].clone().float())
        data = order.data(denoiser) if order.data else None
        about = {
            "base": denoiser.base,
            "patches": patches,
            "conditioning": prompts,
            "shape": list(denoiser.shape),
            "data": digest([data.images, data.condition, data.noise]) if data else "",
            "warm": digest(order.warm) if order.warm else "",
        }
        folder_of_run = folders.of_user("runs") / folder_name(order.config, about)
        # caches are the same for all seeds
        cache = folders.of_user("trajectories"), {"patches": patches, "conditioning": prompts, "seed": 0}
        budget = None if order.memory == "auto" else int(order.memory.split()[0]) * 1e9
        config, peak = cut(denoiser, order.config, budget, data=data, warm=order.warm)
        show.say(
            order.node,
            f"about {gib(peak)}: {config.micro} of {config.batch} samples at once"
            + (", blocks recomputed" if config.checkpointing else ""),
        )
        run = run_of(denoiser, config, None if data else cache, data=data, warm=order.warm)
        try:
            check_folder(folder, 2 * run.lora.bytes + (1 << 20))
            run.label = folder_of_run.name
            try:
                with Job(folder_of_run, run, about) as job, Live(job, order) as live:
                    path = _run(job, folder, order, live)
            finally:
                ended(folder_of_run)
            return (
                run.lora_tensors(),
                {"loss": [value for _, value in run.loss]},
                _preview(run, order.vae),
                run.sigmas_for(config.steps).float(),
                path,
            )
        finally:
            run.close()


def _run(job, folder, order, live):
    """Run to the end, or until the user cancels or something fails: either way what has been learnt is saved
    as a LoRA too.
    """
    run, node, bar = job.run, order.node, None
    if job.resumed:
        show.say(node, f"Going on at update {job.resumed} of {run.config.updates}")
    try:
        for progress in job.progress():
            bar = bar or comfy.utils.ProgressBar(progress.total, node_id=node)
            bar.update_absolute(progress.step, progress.total)
            if progress.step % 10 == 0 and progress.seconds_left is not None:
                show.say(
                    node,
                    job.unsaved
                    or f"{progress.stage}: loss {progress.loss:.4f}, {_time(progress.seconds_left)} left",
                )
            live.tell(progress)
            live.check()
    except (
        Exception,
        comfy.model_management.InterruptProcessingException,
    ):  # the cancel is no Exception in newer hosts
        if run.done:
            path = _save(job, folder, order.name)
            show.say(node, f"Stopped after {run.done} updates. Saved {path.name}. Queue again to go on.")
        raise
    path = _save(job, folder, order.name)
    if run.best and run.best[0] >= run.fidelity[0][1]:
        show.say(
            node,
            f"Saved {path.name}. It is no nearer to the teacher than the untrained model: lower learning_rate, or "
            "train longer",
        )
    elif skipped := run.descent.skipped:
        show.say(node, f"Saved {path.name}, {skipped} updates left out as not finite")
    else:
        show.say(node, f"Saved {path.name}")
    return path


def _save(job, folder, name):
    """Write the LoRA: over the file that this very run wrote before under that name, else under a free one."""
    stem, known = show.file_stem(name), job.notes.get("lora") or ""
    path = folder / known
    if not known.startswith(f"{stem}_") or not path.exists() or not _is_of(path, job.run.label):
        path = free_name(folder, stem, ".safetensors")
    job.run.save(path)
    job.notes["lora"] = path.name
    return path


def _is_of(path, label):
    """Whether a LoRA file says that this run wrote it."""
    try:
        recipe = load_lora(path)[1]
    except ValueError:
        return False
    return recipe is not None and recipe.trained.get("run") == label


def _time(seconds):
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _preview(run, vae):
    """IMAGE: teacher / before / now from the same held-out noise, beside the curves; the curves alone without
    a VAE.
    """
    if vae is None:
        return show.image(pictures.run_curves(run.loss, run.fidelity))
    steps = run.config.steps
    drawn = {
        "teacher": run.probe[2],
        f"before\n{steps} steps": run.before(SHOWN),
        f"now\n{steps} steps": run.of_probe(run.adapter),
    }
    columns = {
        head: decode(vae, run.denoiser.model.process_latent_out(x[:SHOWN].cpu())) for head, x in drawn.items()
    }
    scale = max(1, 128 // next(iter(columns.values())).shape[-1])
    tiles = pictures.grid(columns, [str(i + 1) for i in range(SHOWN)], "Same starting noise", scale)
    return show.image(pictures.run_report(tiles, run.loss, run.fidelity))
