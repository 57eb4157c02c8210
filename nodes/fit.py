"""Fit Few-Step Solver: a queued graph job over `training.run.fitting`, asking the guider that will sample."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..diffusion.faults import BadValue, Message
from ..diffusion.solvers.linear import solve_apart
from ..training.formats.files import check_folder
from ..training.models.memory_errors import named
from ..training.reports import pictures
from ..training.run.fitting import EFFORTS, MOST_STEPS, STANDARD, FitConfig, SolverFit
from . import recipes, show
from .comfy import folders
from .comfy.calls import ModelCalls
from .comfy.decoding import decode
from .comfy.guider_apart import answers_apart, apart_of
from .comfy.guider_proof import settle
from .comfy.guider_teacher import Teacher, first_prompt, prompted
from .comfy.latents import first_frames, latent_of, sample_shape
from .comfy.whole_prompts import check_whole
from .compare import step_counts
from .server import messages
from .training import FIXED

SHOWN = 4  # held-out pictures in the report
TILE = 128  # their pixels, at least


class Fit(io.ComfyNode):
    """FewstepFit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepFit",
            display_name="Fit Few-Step Solver",
            category="Fewstep/sampling",
            description="Fits a few-step solver to the wired model: at which noise levels to call it, and "
            "how to use its predictions, so that few steps come as near as they can to the picture that many "
            "would draw. No weights are changed. Wire a model and prompts, or a guider.",
            search_aliases=["solver", "recipe", "bns", "gits", "few steps", "fewstep"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                recipes.RECIPE.Output(display_name="RECIPE"),
                io.Sampler.Output(display_name="SAMPLER"),
                io.Sigmas.Output(display_name="SIGMAS"),
                io.Float.Output(display_name="cfg"),
                io.Image.Output(display_name="report"),
                io.String.Output(display_name="figures"),
                io.Guider.Output(display_name="GUIDER"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @named(Message("a solver was fitted"))
    def execute(
        cls,
        latent: io.Latent.Type,
        guider: io.Guider.Type | None = None,
        model: io.Model.Type | None = None,
        positive: io.Conditioning.Type | None = None,
        negative: io.Conditioning.Type | None = None,
        vae: io.Vae.Type | None = None,
        cfg: float = 4.0,
        steps: str = "1, 2, 3, 4, 6, 8",
        use_steps: int = 4,
        trajectories: int = 64,
        minutes: float = 5.0,
        seed: int = 0,
        reference_steps: int = 60,
        limit_gib: float = 8.0,
        effort: str = STANDARD,
        denoise: float = 1.0,
        calls: str = "",
    ) -> io.NodeOutput:
        guider = guider_of(guider, model, positive, negative, cfg)
        config = FitConfig(
            steps=tuple(step_counts(steps, MOST_STEPS)),
            calls=tuple(step_counts(calls, 2 * MOST_STEPS, "calls")) if calls.strip() else (),
            trajectories=trajectories,
            reference_steps=reference_steps,
            seed=seed,
            effort=effort,
            denoise=denoise,
        )
        if config.calls and not answers_apart(guider):
            raise BadValue(
                "calls must be empty where the guider is not a plain CFG guider, as nobody knows what its "
                "answers are made of; got {got}. Use steps.",
                got=calls,
            )
        patcher = guider.model_patcher
        teacher = Teacher(guider, sample_shape(patcher, latent_of(patcher, latent)), seed)
        folder = check_folder(folders.of_user("trajectories"))
        run = SolverFit(teacher, config, folder, limit=int(limit_gib * 2**30), seconds=60 * minutes)
        if positive:
            remedy = Message("Wire a guider that has it")
            check_whole("positive", positive, patcher, teacher.shape, run.levels, remedy)
        chosen = min(run.counts, key=lambda n: (abs(n - use_steps), n))
        drawn: dict[Message, torch.Tensor] = {}
        remarks: list[Message] = []

        if run.cache.bytes(trajectories) <= run.cache.limit:  # otherwise refused, before it is asked
            settle(teacher, run.levels)
        if teacher.each_path:
            raise BadValue(
                "guider must answer by a sample and its noise level alone to be fitted, and this one's "
                "answers depend on what it was asked before. Take off what remembers, or distil through it."
            )

        def work() -> None:
            _progress(run, cls.hidden.unique_id)
            remarks.extend(miscounted(teacher, run.grid("auto", max(run.counts))))
            if vae is not None:
                drawn.update(held_out(run, chosen))

        teacher.run(work, run.levels)
        recipe, text = run.recipe(chosen), "\n".join([run.report(), *map(messages.told, remarks)])
        picture = pictures.fit_report(run.rows, pictures.CALLS if config.calls else pictures.STEPS)
        if drawn:
            picture = pictures.stack(_grid(drawn, vae, patcher.model), picture)
        rows = [{key: _plain(value) for key, value in row.items()} for row in run.rows]
        data = {"rows": rows, "chosen": chosen, "report": text}
        shown = show.output(cls, picture, data)
        show.say(cls.hidden.unique_id, functools.reduce(_then, remarks, recipes.summary(recipe)))
        guide = first_prompt(guider)
        return io.NodeOutput(recipe, *recipes.outputs(recipe), *shown.result, text, guide, ui=shown.ui)


def _inputs() -> list:
    return [
        io.Latent.Input("latent", tooltip="An empty latent of the size to fit for."),
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip="The guider that will sample, with its own model and prompts, ControlNets and regions "
            "included. Wire it instead of model.",
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip="The model that will be sampled, with everything that is patched into it.",
        ),
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="Prompts to fit on; each conditioning entry is one prompt "
            "(join more with Conditioning Combine).",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="The negative prompt; not needed if cfg is 1."
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Decodes the pictures in the report; without it the report shows only the curve.",
        ),
        io.Float.Input(
            "cfg",
            default=4.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            optional=True,
            tooltip="The CFG that you use with this model. A wired guider has its own.",
        ),
        io.String.Input(
            "steps",
            default="1, 2, 3, 4, 6, 8",
            optional=True,
            tooltip="Step counts from 1 to 12, separated by commas; a solver is fitted for each. With "
            "guidance each step is two model calls.",
        ),
        io.Int.Input(
            "use_steps",
            default=4,
            min=1,
            max=2 * MOST_STEPS,
            optional=True,
            tooltip="Which of steps, or of calls where those are set, the outputs are for; the nearest if it "
            "is not among them.",
        ),
        io.Int.Input(
            "trajectories",
            default=64,
            min=4,
            max=4096,
            optional=True,
            tooltip="Pictures that the model draws with many steps, to learn from. More make the result more "
            "certain and take longer.",
        ),
        io.Float.Input(
            "minutes",
            default=5.0,
            min=0.1,
            max=1440.0,
            step=0.5,
            optional=True,
            tooltip="When refining stops. Trajectories are finished in any case, and kept for the next fit.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            optional=True,
            control_after_generate=FIXED,
            tooltip="Seed of the starting noises. With another seed the trajectories have to be drawn again.",
        ),
        io.Int.Input(
            "reference_steps",
            default=60,
            min=24,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Steps of each trajectory: more come nearer to the converged picture. Two or more are "
            "needed for each step of the longest solver.",
        ),
        io.Float.Input(
            "limit_gib",
            default=8.0,
            min=0.1,
            max=4096.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="Disk space for trajectories, in GiB; those unused for longest are removed.",
        ),
        io.Combo.Input(
            "effort",
            options=list(EFFORTS),
            default=STANDARD,
            optional=True,
            advanced=True,
            tooltip="Model calls spent on each step count, on top of the trajectories: a quarter of their "
            "cost, three quarters, or four times.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.05,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Below 1 the solver starts from a noised picture, for image to image or the last part of "
            "a split schedule, at this share of the model's time. SIGMAS begin there, and a stage before has "
            "to end there. Each value has trajectories of its own.",
        ),
        io.String.Input(
            "calls",
            default="",
            optional=True,
            advanced=True,
            tooltip="Budgets of model calls instead of steps, separated by commas; use_steps then picks one "
            "of them. With guidance a step takes two calls; here the fit decides which steps need both. Fits "
            "model, or a guider that is a plain CFGGuider; wire the output GUIDER.",
        ),
    ]


def guider_of(
    guider: io.Guider.Type | None,
    model: io.Model.Type | None,
    positive: io.Conditioning.Type | None,
    negative: io.Conditioning.Type | None,
    cfg: float,
) -> io.Guider.Type:
    """The guider that is wired, or one of model and prompts. Raises ValueError for neither, and for both."""
    if guider is not None:
        others = {"model": model, "positive": positive, "negative": negative}
        wired = [name for name, value in others.items() if value is not None]
        if wired:
            raise BadValue(
                "guider must be the only source of model and prompts, got {got} too. Unwire one or the "
                "other.",
                got=functools.reduce(_and, wired),
            )
        return apart_of(guider)
    if model is None:
        raise BadValue(
            "model must be wired where guider is not, got neither. Wire model, positive and negative, or a "
            "guider."
        )
    if not positive:
        raise BadValue(
            "positive must be wired where model is and hold at least one conditioning, got none. Wire a "
            "text encoder's output."
        )
    if not negative and cfg != 1:
        raise BadValue(
            "negative must be wired where cfg is not 1, got none at cfg {cfg:g}. Wire an empty prompt, or "
            "set cfg to 1.",
            cfg=cfg,
        )
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative or [])
    made.set_cfg(cfg)
    return prompted(apart_of(made), positive)


def miscounted(teacher: Teacher, sigmas: torch.Tensor) -> list[Message]:
    """What to say where the model is called more or less often than a recipe counts, by one sample at each of
    the sigmas above 0; only within `teacher.run`.
    """
    if teacher.guider_name:  # its recipe counts none
        return []
    levels, counted = sigmas[sigmas > 0], 1 if teacher.cfg == 1 else 2
    noise = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(0))
    with ModelCalls(teacher.guider.model_patcher) as calls:
        for level in levels:
            teacher(noise * level, level.expand(1), torch.tensor([0]))
        made = calls.take(len(levels) * (teacher.frames or 1))
    if abs(made - counted) < 0.01:
        return []
    return [
        Message(
            "A step of this model makes {made:.3g} model calls, where recipe and report count {counted}: a "
            "patch asks it again or saves calls, or the prompts have several parts.",
            made=made,
            counted=counted,
        )
    ]


def _then(some: Message, other: Message) -> Message:
    return Message("{some}. {other}", some=some, other=other)


def _and(some: str | Message, other: str) -> Message:
    return Message("{some} and {other}", some=some, other=other)


def _progress(run: SolverFit, node: str | None) -> None:
    """Run to the end with the bar and a line of text on the node."""
    bar, told = None, None
    for progress in run.progress():
        bar = bar or comfy.utils.ProgressBar(progress.total, node_id=node)
        bar.update_absolute(progress.step, progress.total)
        if progress.fitting:
            if run.config.calls:
                text = Message("fitting {calls} model calls", calls=progress.fitting)
            else:
                text = Message("fitting {steps} steps", steps=progress.fitting)
        else:
            text = Message("{stage}", stage=progress.stage)
        if progress.fidelity is not None:
            text = Message(
                "{stage}: {error:.4f} from the converged picture", stage=text, error=progress.fidelity
            )
        if text != told:
            show.say(node, text)
            told = text


def held_out(run: SolverFit, count: int) -> dict[Message, torch.Tensor]:
    """{heading: latents} of some held-out trajectories: their ends, and the automatic and fitted solver's."""
    which = run.data.split()[1][:SHOWN]
    found, cfg = run.found[count], run.teacher.cfg
    auto, fitted = (
        {"steps": solver.steps, "calls": solver.calls(cfg)} for solver in (found.auto, found.solver)
    )
    solvers = {Message("auto\n{steps} steps, {calls} calls", **auto): found.auto}
    if found.solver != found.auto:
        solvers[Message("fitted\n{steps} steps, {calls} calls", **fitted)] = found.solver

    def ask(x: torch.Tensor, sigma: float, kinds: str) -> Sequence[torch.Tensor]:
        return run.data.ask(x, sigma, which, kinds)

    converged = Message("converged\n{steps} steps", steps=run.config.reference_steps)
    drawn = {converged: run.data.states[which, -1]}
    for name, solver in solvers.items():
        drawn[name] = solve_apart(solver, ask, run.data.states[which, 0])
    return drawn


def _grid(drawn, vae, model):
    """The latents as pictures side by side."""
    out = model.process_latent_out
    columns = {head: decode(vae, out(first_frames(model, x))) for head, x in drawn.items()}
    first = next(iter(columns.values()))
    rows = [str(i + 1) for i in range(len(first))]
    scale = max(1, TILE // first.shape[-1])
    return pictures.grid(columns, rows, Message("Same starting noise, not fitted to"), scale)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


NODES = [Fit]
