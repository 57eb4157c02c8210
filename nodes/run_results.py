"""What comes of a run: its LoRA file, what is said of it, and its preview."""

import logging
from pathlib import Path

import torch
from comfy_api.latest import io

from ..diffusion.faults import Message
from ..training.formats.files import file_stem, free_name, load_lora, told_by_name, write_near
from ..training.models.memory_errors import is_out_of_memory, named
from ..training.reports import pictures
from ..training.run.config import DistilConfig
from ..training.run.job import Job
from ..training.run.machine import gib
from ..training.run.memory import Plan
from ..training.run.probe import ALIKE, NONE
from ..training.run.progress import Progress
from ..training.run.run import Run
from . import show
from .comfy import latents
from .comfy.decoding import decode
from .server.live import SHOWN

LORA = ".safetensors"


def save(job: Job, folder: Path, name: str) -> tuple[Path, str]:
    """Write the LoRA: over the file that this run wrote before under that name, else under a free one.

    Returns its path, and the name of the file that was to be written over and is held by others, or "".
    Raises MemoryError or OSError that says so where memory runs out, or the disk.
    """
    stem, known = file_stem(name), job.notes.get("lora") or ""
    path = folder / known
    if not known.startswith(f"{stem}_") or not path.exists() or not _is_of(path, job.run.label):
        path = free_name(folder, stem, LORA)
    with named(Message("the LoRA was saved")), told_by_name(path):
        written = write_near(path, job.run.save)
    job.notes["lora"] = written.name
    return written, path.name if written != path else ""


def _is_of(path, label):
    """Whether a LoRA file says that this run wrote it."""
    try:
        recipe = load_lora(path)[1]
    except ValueError:
        return False
    return recipe is not None and recipe.trained.get("run") == label


def told(run: Run, path: Path) -> Message:
    """What came of a run."""
    outcome, skipped = run.probe.outcome, run.learners.skipped
    if outcome == NONE and run.config.restores:
        return Message(
            "Saved {file}. It comes no nearer to the whole pictures than the model did before training: "
            "lower learning_rate, or train longer",
            file=path.name,
        )
    if outcome == NONE:
        return Message(
            "Saved {file}. It is no nearer to the teacher than {start}: lower learning_rate, or train longer",
            file=path.name,
            start=_start(run),
        )
    if outcome == ALIKE:
        return Message(
            "Saved {file}. By the distribution of its pictures it can't be told apart from {start}: train "
            "longer, or judge by the pictures",
            file=path.name,
            start=_start(run),
        )
    if skipped:
        return Message(
            "Saved {file}, {skipped} updates left out as not finite", file=path.name, skipped=skipped
        )
    return Message("Saved {file}", file=path.name)


def _start(run):
    """What the run began as, in words."""
    return Message("the LoRA that it began with") if run.student.warmed else Message("the untrained model")


def with_held(saved: Message, held: str) -> Message:
    """What was saved, and the file that it could not be written over."""
    if not held:
        return saved
    return Message(
        "{held} is held by another program or a LoRA loader, and stays as it was. {saved}",
        saved=saved,
        held=held,
    )


def plan_in_words(planned: Plan, config: DistilConfig, how: list[Message]) -> Message:
    """The plan in words; how: what else there is to say of it."""
    fields = {"peak": gib(planned.peak), "micro": planned.micro, "batch": config.batch}
    if planned.checkpointing:
        how = [*how, Message("blocks recomputed")]
    if planned.rank != config.rank:
        how = [*how, Message("rank {rank}", rank=planned.rank)]
    if how:
        return Message("about {peak}: {micro} of {batch} samples at once, {how}", **fields, how=how)
    return Message("about {peak}: {micro} of {batch} samples at once", **fields)


def progress_in_words(progress: Progress) -> Message:
    """A line of progress: how far the student is, or what else the run is at."""
    if progress.loss is None or progress.seconds_left is None:
        return Message("{stage}", stage=progress.stage)
    return Message(
        "{stage}: loss {loss:.4f}, {left} left",
        stage=progress.stage,
        loss=progress.loss,
        left=time_of(progress.seconds_left),
    )


def time_of(seconds: float) -> Message:
    """A time in words."""
    if seconds < 3600:
        return Message("{minutes:.1f} min", minutes=seconds / 60)
    return Message("{hours:.1f} h", hours=seconds / 3600)


def preview(run: Run, vae: io.Vae.Type | None) -> torch.Tensor:
    """IMAGE: teacher / before / now from the same held-out noise, and curves; without a VAE, or the memory to
    draw and decode, curves alone.
    """
    history = run.loss, run.probe.fidelity
    try:
        if vae is not None:
            return show.image(pictures.run_report(_tiles(run, vae), *history))
    except Exception as error:  # the LoRA is on disk
        if not is_out_of_memory(error):
            raise
        logging.warning("Fewstep: no preview, as memory ran out (%s).", error)
    return show.image(pictures.run_curves(*history))


def _tiles(run, vae):
    steps, held = run.config.steps, run.probe.held
    drawn = {
        Message("teacher"): held.reference,
        Message("before\n{steps} steps", steps=steps): run.task.before(held.first(SHOWN)),
        Message("now\n{steps} steps", steps=steps): run.task.draw(held, run.adapter),
    }
    model = run.denoiser.model
    condition = held.condition[:SHOWN]
    columns = {
        head: decode(vae, model.process_latent_out(latents.first_frames(model, x.cpu())))
        for head, x in ((head, run.task.finished(x[:SHOWN], condition)) for head, x in drawn.items())
    }
    scale = max(1, 128 // next(iter(columns.values())).shape[-1])
    rows = [str(i + 1) for i in range(SHOWN)]
    return pictures.grid(columns, rows, Message("Same starting noise"), scale)
