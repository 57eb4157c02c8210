"""Distilling without ComfyUI: `fewstep distil`, `reflow` and `resume`.

A run lives in one folder: run.json (which model, which prompts), the job's own files (`run.job`), and at the
end curves.png and lora.safetensors in ComfyUI's keys with its recipe; of a diffusers model
lora_diffusers.safetensors too. `resume` needs that folder, and until the first state is in it also the LoRA
that the run begins with, if there is one (`start_from`).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...diffusion.faults import BadValue
from .. import methods
from ..adapter.sharding import Sharded, check_sharding
from ..formats.files import check_folder, save_lora, write_json, write_near
from ..formats.lora_keys import from_diffusers, to_diffusers
from ..formats.precision import in_precision
from ..methods.phases import usual_shift
from ..models.denoiser import Denoiser
from ..models.families import usual
from ..ranks.joining import check_card
from ..ranks.ranks import ALONE, Ranks
from ..reports import pictures
from ..run.config import DistilConfig
from ..run.following import Follower
from ..run.job import STATE, Job, check_asked, folder_name, settings_in
from ..run.machine import used
from ..run.memory import plan
from ..run.progress import Progress
from ..run.run import Run
from ..run.source import check_batch
from . import agreement
from .spec import Spec
from .start_from import StartFrom

SPEC, LORA, FOR_DIFFUSERS = "run.json", "lora.safetensors", "lora_diffusers.safetensors"
LARGE = {"batch": 4, "chunk": 4, "images": 256}  # what suits a packaged teacher is too much of a large model
Show = Callable[[Run, Progress], None]


def suited(denoiser: Denoiser, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings over those that suit the model's family; for a packaged teacher, `DistilConfig`'s own."""
    family = getattr(denoiser, "family", None)
    if not family:
        return settings
    own = dataclasses.asdict(usual(family))
    own["lr"] *= methods.get(settings.get("method", DistilConfig.method)).lr_share
    return {**LARGE, **own, **settings}


def _silent(*told: Any) -> None:
    pass


def distil(
    out: str | Path,
    spec: Spec,
    settings: dict[str, Any],
    memory: float | None = None,
    *,
    start: StartFrom | None = None,
    show: Show = _silent,
    ranks: Ranks = ALONE,
    shared: bool = False,
    shard_base: bool = False,
    below: bool = False,
    placed: Callable[[Path], Any] = _silent,
) -> Run:
    """Run, or go on with, the distillation in the folder `out`; returns the finished `Run`, closed.

    settings: of `DistilConfig`, over what suits the model's family; memory: bytes that the run may take, None
    for what is free; start: the LoRA to begin with. show(run, progress) is called at every step,
    placed(folder) with the run's folder before the first. ranks: this process among those that make the run
    together, each in a call of its own; shared: whether all of them are to see `out`; shard_base: whether
    each holds a piece of the model alone; below: `out` is a folder of runs, in which this one gets the name
    that ComfyUI's panel knows it by. Raises ValueError, OSError, MemoryError or ArithmeticError, all before
    any long work.
    """
    asked = DistilConfig.from_dict(settings)  # refused before the model is loaded
    check_card(ranks, spec.device)
    options = {"--shard-base": shard_base, "--shared": shared, "--runs": below}
    agreement.check_given(ranks, agreement.of_spec(spec, settings, start) | options)
    if "batch" in settings or spec.is_packaged:
        check_batch(asked, ranks)
    from_file = {"start_from": start.digest} if start else {}
    if not below:
        check_asked(out, settings, {"start_from": None, **from_file})
    # the state has what came of the file
    begun = ranks.first((Path(out) / STATE).exists() if ranks.leads else None)
    tensors = None if start is None or begun else start.read()
    if shard_base:
        check_sharding(ranks, settings.get("checkpointing"))
        settings = {**settings, "checkpointing": True}
    out = check_folder(out, 8 << 20)
    agreement.check_shared(ranks, out, shared)
    denoiser = spec.denoiser(in_pieces=shard_base)
    agreement.check_weights(ranks, denoiser)
    if shard_base:
        denoiser = Sharded(denoiser, ranks, spec.device)
    agreement.check_answers(ranks, denoiser)
    asked, settings = settings, suited(denoiser, settings)
    config = DistilConfig.from_dict(settings)
    check_batch(config, ranks)
    if "shift" not in settings:
        config = dataclasses.replace(config, shift=usual_shift(denoiser.path, denoiser.sigma_of))
    if tensors is not None:
        tensors = start.layers_of(tensors, denoiser, config.rank)
    warm = ranks.tensors_of(0, tensors)  # another machine may round otherwise
    budget = agreement.budget(ranks, denoiser, memory)
    lower_rank = "rank" not in asked and start is None  # less of the file would be left
    config = plan(denoiser, config, budget, warm=warm, lower_rank=lower_rank).applied(config)
    config = dataclasses.replace(config, rank=min(ranks.all(config.rank)))
    about = {
        "base": denoiser.base,
        "shape": list(denoiser.shape),
        "prompts": list(spec.prompts),
        "negative": spec.negative,
        **from_file,
    }
    if below:
        out = out / ranks.first(folder_name(config, about))
    placed(out)
    identity = {"patches": "", "conditioning": json.dumps([spec.prompts, spec.negative, spec.model])}
    cache = out / "trajectories", ranks.first(identity)
    run = Run(denoiser, config, cache=cache, warm=warm, ranks=ranks)
    run.student.warmed = start is not None  # also where the state has what came of the file
    try:
        with Job(out, run, about) if ranks.leads else Follower(run) as job:
            if ranks.leads:
                job.notes |= {"model": Path(spec.model).name, "name": out.name}
                rank = {"rank": config.rank}
                made_of = {"spec": dataclasses.asdict(spec), "settings": {**settings, **rank}}
                if start:
                    made_of["start_from"] = dataclasses.asdict(start)
                write_json(out / SPEC, {"version": 1, **made_of, "memory": memory})
            try:
                with ranks.together():
                    for progress in job.progress():
                        _tell(job, progress)
                        show(run, progress)
                    for _ in ranks.all_come():  # whose model may be in pieces
                        pass
            finally:
                if run.done and ranks.leads:
                    _save(run, out)
                    pictures.save(pictures.run_curves(run.loss, run.probe.fidelity), out / "curves.png")
    finally:
        run.close()
    return run


def _tell(job, progress):
    """How this process stands, to the others; how all stand, to the run's status."""
    run, ranks = job.run, job.run.ranks
    memory = used(getattr(run.denoiser, "device", "cpu"))
    job.notes["memory"] = memory
    if progress.samples_per_second:
        job.notes["samples_per_second"] = round(progress.samples_per_second, 2)
    if ranks.world > 1:
        ranks.tell(memory=memory, micro=run.descent.micro)
        rows = [{n: row.get(n) for n in ("rank", "host", "memory", "micro")} for row in ranks.table()]
        job.notes["processes"] = rows
        job.notes["memory"] = max((row["memory"] or 0 for row in rows), default=0) or None


def _save(run, out):
    """Save a packaged teacher's LoRA in its own keys (ComfyUI's), a diffusers model's in both programs'."""
    family = getattr(run.denoiser, "family", None)
    if family is None:
        write_near(out / LORA, run.save)
        return
    blocks, tensors, recipe = run.denoiser.blocks, run.lora_tensors(), run.recipe()
    # names and shapes are part of a fingerprint, so that ComfyUI's of the same weights is another; `export`
    # reads the family
    recipe = dataclasses.replace(
        recipe, base="", trained={**recipe.trained, "family": family, "blocks": blocks}
    )
    for name, convert in ((LORA, from_diffusers), (FOR_DIFFUSERS, to_diffusers)):
        rounded = in_precision(convert(tensors, family, blocks), run.config.lora_precision)
        write_near(out / name, lambda path, rounded=rounded: save_lora(path, rounded, recipe))


def resume(out: str | Path, **how: Any) -> Run:
    """Go on with the run in a folder, as `distil` with what its run.json says; how: its keywords."""
    ranks = how.get("ranks", ALONE)
    file = Path(out) / SPEC
    try:
        found = json.loads(ranks.first(file.read_text(encoding="utf-8") if ranks.leads else None))
        spec, settings, memory = Spec(**found["spec"]), dict(found["settings"]), found["memory"]
        start = StartFrom(**found["start_from"]) if found.get("start_from") else None
    except FileNotFoundError:
        raise BadValue(
            "{out} must be the folder of a run, and has no {spec}. Start one with fewstep distil.",
            out=out,
            spec=SPEC,
        ) from None
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise BadValue(
            "{file} must tell what a run is of, and can't be used ({error}). Mend it, or start another run "
            "with fewstep distil.",
            file=file,
            error=error,
        ) from error
    if memory is not None and not (type(memory) in (int, float) and 0 < memory < 1e300):
        raise BadValue(
            "memory in {file} must be a number of bytes or null, got {got!r}.",
            file=file,
            got=memory,
        )
    begun = ranks.first(settings_in(Path(out)) if ranks.leads else None)
    return distil(out, spec, {**begun, **settings}, memory, start=start, **how)
