"""`fewstep fit`: fit solvers to a packaged teacher and show what they do, with nothing to download."""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...diffusion.faults import BadValue
from ...diffusion.samplers import solve
from ...diffusion.solvers.linear import GUIDED, solve_apart
from ..formats.files import check_folder, save_recipe, write, write_near
from ..models.demo import data
from ..models.demo.teacher import DemoTeacher
from ..models.denoiser import Guided, for_sampler
from ..ranks.joining import check_card
from ..ranks.ranks import ALONE, Ranks
from ..reports import pictures
from ..run.fitting import FitConfig, SolverFit
from ..trajectories.noises import start
from . import agreement
from .demo import SHOWN
from .spec import check_device

CACHE = "trajectories"  # folder of the trajectories, below that of the results


def fit(
    out: str | Path,
    *,
    kind: str = "flow",
    cfg: float = 2.0,
    seconds: float = math.inf,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    shared: bool = False,
    **settings: Any,
) -> SolverFit:
    """Fit into the folder `out`; returns the `SolverFit`. `settings` as in `FitConfig`; ranks, shared: as of
    `headless.distil`.

    A recipe (`recipe_file`) of each step count, or budget of calls, is written as soon as there is one, and
    again for each better one; report.png, report.txt and samples.png at the end. Raises OSError when `out`
    cannot be written, ValueError for a setting out of range, both before any work; KeyboardInterrupt, when
    stopped, says what is kept.
    """
    check_device(device)
    if not 0 <= cfg <= 100:
        raise BadValue("cfg must be a number from 0 to 100, got {got!r}.", got=cfg)
    if not seconds > 0:
        raise BadValue("seconds must be above 0, got {got!r}.", got=seconds)
    config = FitConfig(**settings)
    check_card(ranks, device)
    agreement.check_given(ranks, {"teacher": [kind, cfg], "settings": dataclasses.asdict(config)})
    teacher = DemoTeacher(kind, device)
    run = SolverFit(Guided(teacher, cfg), config, Path(out) / CACHE, seconds=seconds, ranks=ranks)
    out = check_folder(out)
    agreement.check_shared(ranks, out, shared)
    try:
        _follow(run, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(run, out)) from None
    if not ranks.leads:
        return run
    counted = pictures.CALLS if config.calls else pictures.STEPS
    pictures.save(pictures.fit_report(run.rows, counted), out / "report.png")
    write_near(out / "report.txt", lambda path: write(path, (run.report() + "\n").encode()))
    pictures.save(_samples(run, teacher.labels), out / "samples.png")
    return run


def recipe_file(out: Path, run: SolverFit, count: int) -> Path:
    """Where a run's recipe for that step count, or budget of calls, is."""
    return out / (f"recipe_{count}_calls.json" if run.config.calls else f"recipe_{count}.json")


def _follow(run, out):
    """The run with a bar for each stage; each recipe is written whenever it has become better."""
    bar, stages = None, []
    try:
        for progress in run.progress():
            if progress.stage not in stages:
                if bar is not None:
                    bar.close()
                stages.append(progress.stage)
                bar = tqdm(
                    total=100,
                    disable=not run.ranks.leads,
                    desc=progress.stage,
                    dynamic_ncols=True,
                    file=sys.stderr,
                    bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
                )
            bar.update(progress.step - 100 * (len(stages) - 1) - bar.n)
            if progress.fidelity is not None:
                count = list(run.found)[-1]
                recipe = run.recipe(count)
                bar.set_postfix_str(f"error {recipe.errors['held_out']:.4f}, {recipe.method}")
                write_near(recipe_file(out, run, count), partial(save_recipe, recipe=recipe))
    finally:
        if bar is not None:
            bar.close()


def _kept(run, out):
    """What a run that was stopped leaves behind, in words."""
    shards = len(list(run.cache.folder.glob("*.safetensors")))
    wanted = run.config.trajectories
    count = min(wanted, run.cache.spec.shard * shards)
    recipes = "".join(f", {recipe_file(out, run, count).name}" for count in run.found)
    return (
        f"{count} of {wanted} trajectories{recipes} are kept in {out}; the same command goes on from the "
        "trajectories."
    )


@torch.no_grad()
def _samples(run, labels):
    """Teacher, Euler and the recipes from the same noise, which no trajectory of the fit began with; with
    denoise below 1 in the teacher's own pictures of another noise.
    """
    teacher, shown = run.teacher, [label for label in SHOWN if label in labels]
    condition = torch.tensor([labels.index(label) for label in shown])
    generator = torch.Generator().manual_seed(1_000_000 + run.config.seed)
    noise = torch.randn(len(shown), *teacher.shape, generator=generator)
    denoise = for_sampler(teacher, condition, dtype=torch.float64)

    def ask(x, sigma, kinds):
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        return [denoise(x, sigma)] if kinds == GUIDED else teacher.apart(x, level, condition, kinds)

    def solved(x, name, steps, part=1.0, **solver):
        return solve(denoise, x, run.grid(name, steps, part), teacher.path, **solver)

    fine, begun = {"name": "auto", "steps": 50, "order": 2, "corrector": True}, run.data.sigmas[0]
    x, part = start(noise, run.data.sigmas, teacher.path), run.config.denoise
    if part < 1:
        other = torch.randn(noise.shape, generator=generator)
        picture = solved(start(other, run.grid("auto", 50), teacher.path), **fine)
        x = (teacher.path.alpha(begun) * picture + begun * noise).to(noise)
    reference = solved(x, part=part, **fine)
    images = {"Euler\n4 steps": solved(x, "uniform", 4, part)}
    for count in sorted(run.found):
        recipe = run.recipe(count)
        heading = f"{recipe.method}\n{recipe.steps} {'step' if recipe.steps == 1 else 'steps'}"
        if run.config.calls:
            heading += f", {recipe.calls} calls"
        images[heading] = solve_apart(recipe.solver, ask, x)
    columns = {f"teacher\n50 steps, CFG {teacher.cfg:g}\nreference": reference}
    for name, x in images.items():
        error = float((x - reference).square().mean().sqrt()) / run.data.deviation
        columns[f"{name}\nRMSE {error:.3f}"] = x
    pixels = {name: data.to_pixels(x) for name, x in columns.items()}
    return pictures.grid(pixels, shown, "Same starting noise in every row", scale=3)
