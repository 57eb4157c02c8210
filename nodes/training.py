"""How a queued job trains: from a MODEL and prompts to a LoRA file.

It is saved as it goes, and resumed when the same is queued again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Failed, Message, NoMemory, lines
from ..training import methods
from ..training.formats.files import check_folder, file_stem, free_name
from ..training.methods.phases import Phases
from ..training.models.devices import can_train
from ..training.models.memory_errors import named
from ..training.run.config import DistilConfig
from ..training.run.job import Job, folder_name
from ..training.run.machine import gib
from ..training.run.memory import BUDGETS, Plan, beside_weights, plan, staying
from ..training.run.run import Run
from ..training.run.source import Cache, starts_wanted, wanted
from ..training.trajectories.cache import LIMIT
from ..training.trajectories.data import Data
from ..training.trajectories.first_stage import FirstStage
from ..training.trajectories.noises import as_noise
from ..training.trajectories.sampling import teacher_cache
from . import run_results, show
from .comfy import families, folders, latents, levels, residency, session, termination
from .comfy.denoiser import ComfyDenoiser
from .comfy.fingerprints import digest, patches_of
from .comfy.guider_proof import settle
from .comfy.guider_teacher import taught_by
from .comfy.latents import latent_of
from .comfy.teacher_proof import proven
from .comfy.whole_prompts import check_whole
from .first_stage import draw_starts
from .server.live import Live, ended

MEMORY = ("auto", *(f"{b} GB" for b in BUDGETS))
# what to do about a part of the graph that training would leave out
WIRE_GUIDER = Message("Wire a guider that has it as the teacher, or take it off")
TAKE_OFF = Message("Take it off")
# the frontend would draw another seed after every queue, and so begin another run
FIXED = io.ControlAfterGenerate.fixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a node was asked for.

    guider     what teaches in the place of the model at its guidance, or None
    taught     (folder, identity) of the trajectories that it drew, once it has
    remedy     what to do about a part of the graph that training would leave out
    first      of a run from the middle of the way: what samples before it
    starts     what that leaves to start from, once it is drawn
    residency  where the model's weights live, of `nodes.comfy.residency.CHOICES`
    data     of a `ComfyDenoiser` -> `Data` to learn from, or None for the model's own pictures
    warm     tensors of a LoRA to begin with, or None
    lower_rank   whether the config's rank may be lowered to what fits
    prompt, workflow   the graph that it is part of, as the host runs it and as the frontend keeps it
    """

    model: Any
    positive: list
    negative: list
    latent: dict
    config: DistilConfig
    memory: str
    name: str
    node: str | None
    prompt: dict | None = None
    workflow: dict | None = None
    vae: Any = None
    residency: str = residency.AUTO
    why: Message | None = None
    data: Callable[[ComfyDenoiser], Data] | None = None
    warm: dict | None = None
    lower_rank: bool = False
    guider: Any = None
    taught: Cache | None = None
    remedy: Message = TAKE_OFF
    first: Any = None
    starts: FirstStage | None = None

    @property
    def budget(self) -> float | None:
        """Bytes that the run may take, None for what is free."""
        return None if self.memory == "auto" else int(self.memory.split()[0]) << 30

    @property
    def starts_wanted(self) -> int:
        """How many states the run starts from, where it does not start from noise."""
        return starts_wanted(self.config, self.data is not None)

    @property
    def after(self) -> str:
        """What an identity tells of the model before."""
        return f" after {self.starts.key}" if self.starts else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run that went to its end, or was told to stop there, hands on."""

    lora: dict[str, torch.Tensor]
    losses: dict[str, list[float]]
    preview: torch.Tensor
    sigmas: torch.Tensor
    file: Path


def check(model: Any, positive: list, negative: list, name: str) -> None:
    """Raise ValueError naming an input that can't be trained from, before the model is loaded."""
    for key, value in (("positive", positive), ("negative", negative)):
        if not value:
            raise BadValue(
                "{key} must hold at least one conditioning, got none. Wire a text encoder's output.", key=key
            )
    if len(negative) > 1:
        raise BadValue(
            "negative must be a single prompt to distil from, got {count} that are combined. Write them as "
            "one prompt, or wire one of them.",
            count=len(negative),
        )
    families.check_trainable(model)
    if not can_train(model.load_device):
        raise Failed(
            "model must be on a device that tells PyTorch its free memory and its random state to be "
            "trained, got {device}, which does not. Start ComfyUI with CUDA, ROCm, XPU or MPS, or with "
            "--cpu.",
            device=str(model.load_device),
        )
    levels.path_of(model.get_model_object("model_sampling"))
    file_stem(name)


def _check_guided(order: Order) -> None:
    """Raise ValueError where what is asked for can't be learnt from a guider."""
    method = methods.get(order.config.method)
    if method.asks_teacher(order.config):
        cached = [name for name in methods.names(None) if not methods.get(name).asks_teacher(order.config)]
        raise BadValue(
            "method must be one of {methods} where a guider is wired, got {got}, which asks the teacher at "
            "every update. Choose one that learns from what the guider drew, or unwire it.",
            methods=cached,
            got=method.name,
        )
    if order.config.restores and order.data is not None:
        raise BadValue(
            "guider must not be wired where a restorer learns from your own pictures: nothing is drawn. "
            "Unwire one or the other."
        )


def train(order: Order) -> Trained:
    """Train as the node was asked to; the LoRA is on disk when this returns, or raises for a cancel.

    Where memory runs out it raises MemoryError that says while what.
    """
    check(order.model, order.positive, order.negative, order.name)
    with named(Message("the run was made ready")):
        return _train(order)


def _train(order: Order) -> Trained:
    if order.guider is not None:
        _check_guided(order)
    folder = folders.of_models("loras")
    check_folder(folder, name=free_name(folder, file_stem(order.name), run_results.LORA).name)
    latent = latent_of(order.model, order.latent)
    phases = _phases(order)
    for name in ("positive", "negative"):
        shape = tuple(latent.shape[1:])
        check_whole(name, getattr(order, name), order.model, shape, phases.fine, order.remedy)
    patches = patches_of(order.model, order.model.model_options) + order.after
    mask = order.latent.get("noise_mask")
    prompts = digest([order.positive, order.negative[0], *latents.content(latent, mask)])
    beside = _beside(order, latent)
    with session.training_session(
        order.model, order.residency, beside=beside, budget=order.budget, why=order.why
    ) as patcher:
        with families.named(order.model):
            denoiser = ComfyDenoiser(patcher, order.positive, order.negative, latent.clone().float(), mask)
        data = order.data(denoiser) if order.data else None
        asks = order.guider is None and wanted(order.config, data) > 0
        cfg = order.config.cfg if asks else 1.0
        graph = (order.positive, order.negative, cfg)
        with families.named(order.model):
            denoiser = proven(denoiser, patcher, *graph, phases.fine, order.remedy)
        about = {
            "base": denoiser.base,
            "patches": patches,
            "conditioning": prompts,
            "shape": list(denoiser.shape),
            "data": digest([data.images, data.condition, data.noise]) if data else "",
            "warm": digest(order.warm) if order.warm else "",
        }
        if order.taught:
            about["taught"] = order.taught[1]
        planned = _plan(order, patcher, denoiser, data)
        drawn = order.first is None or order.starts is not None
        ready = drawn and (order.guider is None or order.taught is not None)
        if planned is not None and ready:
            # caches are the same for all seeds
            identity = {"patches": patches, "conditioning": prompts, "seed": 0}
            own = None if data else (folders.of_user("trajectories"), identity)
            config = planned.applied(order.config)
            run = Run(
                denoiser,
                config,
                cache=order.taught or own,
                data=data,
                warm=order.warm,
                starts=order.starts and order.starts.states(order.starts_wanted),
            )
            return _trained(run, about, folder, order)
    if planned is None:
        why = Message("weights streamed: beside all of them one sample found no room")
        return _train(dataclasses.replace(order, residency=residency.STREAMED, why=why))
    if not drawn:
        return _train(dataclasses.replace(order, starts=_starts(order, denoiser.shape)))
    return _train(dataclasses.replace(order, taught=_drawn(order, denoiser.shape, data)))


def _phases(order: Order) -> Phases:
    """The grid of the run, of which the model's own noise levels are part."""
    sampling = order.model.get_model_object("model_sampling")
    on_the_grid = methods.get(order.config.method).on_the_grid
    return Phases(order.config, levels.path_of(sampling), levels.sigma_of(sampling), on_the_grid)


def _starts(order: Order, shape: tuple[int, ...]) -> FirstStage:
    """What the run starts from, drawn by the model before it while that has the memory to itself."""
    return draw_starts(order.first, order.model, order.config, shape, order.starts_wanted, order.node)


def _drawn(order: Order, shape: tuple[int, ...], data: Data | None) -> Cache:
    """(folder, identity) of what the guider drew for the run; what is there already is not drawn again. The
    student is not loaded meanwhile.
    """
    config, phases = order.config, _phases(order)
    teacher = taught_by(order.guider, order.model, order.positive, shape, phases.fine)
    settle(teacher, phases.fine)
    identity = {**teacher.identity, "seed": 0, **({"shard": 1} if teacher.each_path else {})}
    identity["patches"] += order.after
    starts = order.starts and as_noise(
        order.starts.states(order.starts_wanted), phases.fine, teacher.path, teacher.noise_scale
    )
    cache = teacher_cache(
        teacher,
        cfg=teacher.cfg,
        sigmas=phases.fine,
        kept=phases.kept,
        count=wanted(config, data),
        seed=0,
        folder=folders.of_user("trajectories"),
        identity=identity,
        starts=starts,
    )
    if cache is None:
        raise BadValue(
            "The guider's trajectories must fit into the {limit} that are kept on disk, and don't. Choose a "
            "lower quality or a smaller latent.",
            limit=gib(LIMIT),
        )
    try:
        work = functools.partial(follow_drawing, cache.build(teacher, wanted(config, data)), order.node)
        teacher.draw(work, phases.fine)
    finally:
        cache.close()
    return folders.of_user("trajectories"), identity


def follow_drawing(shares: Iterator[float], node: str | None) -> None:
    """Run to the end with the bar, or until the user cancels."""
    bar = comfy.utils.ProgressBar(1000, node_id=node)
    for share in shares:
        bar.update_absolute(round(1000 * share), 1000)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _beside(order: Order, latent: torch.Tensor) -> float:
    """Bytes that the run needs on a card beside the weights, at least: the LoRA, and one sample's activations
    by the host's own estimate.
    """
    if not residency.on_card(order.model):
        return 0
    module = order.model.get_model_object("diffusion_model")
    rows = len(latent) if latents.takes_batch_for_frames(order.model.model) else 1
    beside = beside_weights(module, order.config, order.lower_rank)
    return beside + order.model.model.memory_required([rows, *latent.shape[1:]])


def _plan(order: Order, patcher: Any, denoiser: ComfyDenoiser, data: Data | None) -> Plan | None:
    """The plan, told on the node. None where one sample finds no room beside a model that stays on the card
    whole, and may be streamed.
    """
    budget = residency.room(patcher, staying(denoiser), order.budget)
    whole = residency.on_card(patcher) and not denoiser.streamed()
    may_stream = whole and order.residency == residency.AUTO
    try:
        with families.named(order.model):
            planned = plan(
                denoiser,
                order.config,
                budget,
                data=data,
                warm=order.warm,
                lower_rank=order.lower_rank,
                first_rank=may_stream,
            )
    except NoMemory:
        if may_stream:
            return None
        raise
    weights = [denoiser.weights] if denoiser.weights else []
    denoiser.planned = run_results.plan_in_words(planned, order.config, weights)
    show.say(order.node, denoiser.planned, _used(dataclasses.replace(order.config, rank=planned.rank)))
    return planned


def _used(config: DistilConfig) -> dict[str, float]:
    """What the automatic settings of a node stand for, by the names of its inputs."""
    return {
        "cfg": config.cfg,
        "rank": config.rank,
        "learning_rate": config.lr,
        "updates": config.updates,
        "phases": config.phases or config.steps,
    }


def _trained(run: Run, about: dict, folder: Path, order: Order) -> Trained:
    """Train to the end, and close the run."""
    try:
        check_folder(folder, 2 * run.student.lora.bytes + (1 << 20))
        asked = dataclasses.replace(order.config, rank=run.config.rank)  # a lower rank is another run
        file = _run_as_job(run, folders.of_user("runs") / folder_name(asked, about), about, folder, order)
        return Trained(
            lora=run.lora_tensors(),
            losses={"loss": [value for _, value in run.loss]},
            preview=run_results.preview(run, order.vae),
            sigmas=run.task.sigmas_for(run.config.steps).float(),
            file=file,
        )
    finally:
        run.close()


def _run_as_job(run: Run, folder_of_run: Path, about: dict, folder: Path, order: Order) -> Path:
    """Run in that folder; the panel is told of it until its state is on disk."""
    run.label = folder_of_run.name
    try:
        with termination.after_saving(), Job(folder_of_run, run, about) as job, Live(job, order) as live:
            if not run.learners.made():
                job.remark(*_remarks(order))
            return _follow(job, folder, order, live)
    finally:
        ended(folder_of_run)


def _remarks(order: Order) -> list[Message]:
    """What the user should know of what is wired: it is what the graph samples with, but hardly meant so.

    Zeros where guidance expects a prompt are refused nowhere: at CFG 1 they are not used, a base may have
    been trained with them, and an artist who samples so gets a LoRA of just that.
    """
    config, negative = order.config, order.negative[0][0]
    drawn = order.guider is None and not (config.restores and order.data is not None)
    zeros = torch.is_tensor(negative) and not negative.any()
    if not (drawn and zeros and config.cfg != 1) or families.zeros_mean_nothing(order.model):
        return []
    return [
        Message(
            "The negative prompt is all zeros, and at CFG {cfg:g} the LoRA learns pictures that are guided "
            "away from it. That is right if you sample with it too (ConditioningZeroOut). Else wire an "
            "encoded prompt, if only an empty text: few models were trained with zeros.",
            cfg=config.cfg,
        )
    ]


def _follow(job: Job, folder: Path, order: Order, live: Live) -> Path:
    """Run to the end, or until the user cancels or something fails.

    Either way what has been learnt is saved as a LoRA too.
    """
    run, node, bar, shown = job.run, order.node, None, ("", 0)

    def say(text: Message) -> None:
        show.say(node, lines(text, *job.remarks.said))

    if run.learners.made():
        updates = run.config.updates
        say(Message("Going on at update {done} of {updates}", done=run.done, updates=updates))
    try:
        for progress in job.progress():
            bar = bar or comfy.utils.ProgressBar(progress.total, node_id=node)
            bar.update_absolute(progress.step, progress.total)
            now_and_then = progress.step % 10 == 0 and None not in (progress.loss, progress.seconds_left)
            stands = progress.stage, len(job.remarks.said)
            if now_and_then or stands != shown:
                say(job.unsaved or run_results.progress_in_words(progress))
            shown = stands
            live.tell(progress)
            live.check()
    except (Exception, comfy.model_management.InterruptProcessingException):
        # the cancel is no Exception in newer hosts
        if not run.done and run.learners.made():
            early = (
                "Stopped before the student's first update. What was learnt is saved: queue again to go on."
            )
            say(Message(early))
        if run.done:
            path, held = run_results.save(job, folder, order.name)
            stopped = Message(
                "Stopped after {done} updates. Saved {file}. Queue again to go on.",
                done=run.done,
                file=path.name,
            )
            say(run_results.with_held(stopped, held))
        raise
    path, held = run_results.save(job, folder, order.name)
    say(run_results.with_held(run_results.told(run, path), held))
    return path
