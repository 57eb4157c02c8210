"""How near a few steps come to the converged ODE, or to the data: our automatic choice beside every pair of
the host's own.

    python benchmarks/solvers.py [--json FILE] [--noises N] [--cases a,b] [--nfe 3,4,...]
                                 [--no-sde] [--no-fit]

ode     same noise, samplers that draw none: RMSE to the converged ODE in units of the data's standard
        deviation
sde     samplers that draw noise, on mixtures: sliced Wasserstein-2 distance to data in the same units (64
        directions, 4000 samples)

Every pair may use up to NFE model calls. The host's pair is the best in hindsight, ours is chosen beforehand;
"fitted" is a solver fitted on other noises (and, for the teachers, other labels), up to 12 calls. With
--json, rows that the file already holds for a case, NFE and kind are kept, and each new one is saved as soon
as it is known.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import core
import exact
import torch
from fewstep.diffusion.paths import Path as DiffusionPath
from fewstep.diffusion.samplers import batch_noise, solve
from fewstep.diffusion.schedules import auto, grids
from fewstep.training.models.demo import data
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import for_sampler, guided
from fewstep.training.run.fit_denoiser import sample_recipe
from fewstep.training.run.fitting import MOST_STEPS, FitConfig, SolverFit

TEACHERS = {"teacher-flow": "flow", "teacher-epsilon": "epsilon"}
CASES = (*exact.CASES, *TEACHERS)
NFE = (3, 4, 5, 6, 8, 10, 16)
NOISES = {"mixture": 64, "emoji": 64, "teacher": 12}
HELD_OUT = 4  # labels of the teachers that are measured here, and never fitted on
FITS = {
    "mixture": {"trajectories": 1024, "reference_steps": 120, "effort": 40.0, "starts": 6},
    "emoji": {"trajectories": 256, "effort": 9.0, "starts": 8},
    "teacher": {"trajectories": 96, "effort": 1.0},
}
SAMPLES, DIRECTIONS, CFG = 4000, 64, 2.0
TITLES = {"ode": "error to the converged ODE", "sde": "distance to the data, with fresh noise"}


@dataclasses.dataclass(frozen=True)
class Task:
    """A denoiser (x, sigma) -> x0 of a model type, unit noise (N, C, H, W), and what it converges to."""

    name: str
    type: str
    path: DiffusionPath
    sigma_of: Callable
    denoise: Callable
    noise: torch.Tensor
    deviation: float
    reference: torch.Tensor
    accuracy: float
    cloud: exact.Cloud | None


class FitTeacher:
    """What a solver is fitted on: the task's denoiser, or the teacher on the labels that aren't measured."""

    noise_scale, cfg, base = 1.0, 1.0, ""

    def __init__(self, task):
        self.task = task
        self.path, self.sigma_of = task.path, task.sigma_of
        self.shape = tuple(task.noise.shape[1:])
        self.teacher = DemoTeacher(TEACHERS[task.name]) if task.name in TEACHERS else None
        self.conditions = self.teacher.conditions - HELD_OUT if self.teacher else 1
        self.identity = {"model": task.name, "patches": "", "conditioning": "", "guidance": ""}

    def __call__(self, x, sigma, condition):
        if self.teacher is None:
            return self.task.denoise(x, float(sigma[0]))  # all rows of a solver's call are at one level
        return guided(self.teacher, x, sigma.to(torch.float32), condition + HELD_OUT, CFG)


def family(name):
    """The kind of case, which decides its settings."""
    if name in TEACHERS:
        return "teacher"
    return "emoji" if name.startswith("emoji") else "mixture"


def add_fitted(task, rows, keep):
    """Put "fitted" into those rows, the error of the solver fitted for as many calls; `keep()` after each."""
    config = FitConfig(steps=tuple(row["nfe"] for row in rows), **FITS[family(task.name)])
    judge = judge_ode(task)
    left = {f"fitting {row['nfe']} steps": row for row in rows}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run = SolverFit(FitTeacher(task), config, folder)
        for progress in run.progress():
            if progress.stage not in left or progress.step % 100:
                continue
            row = left.pop(progress.stage)
            recipe = run.recipe(row["nfe"])
            row["fitted"] = judge(sample_recipe(recipe, task.denoise, task.noise))
            row["fitted_ratio"] = row["fitted"] / row["core_best"]
            row["fitted_by"] = {"method": recipe.method, **recipe.trained, **recipe.errors}
            print(
                f"{task.name:16} fitted {row['nfe']:3}  {row['fitted']:6.4f}  core {row['core_best']:6.4f}  "
                f"{row['fitted_ratio']:5.2f}  {recipe.method} {recipe.trained['evaluations']}",
                flush=True,
            )
            keep()


def task(name, noises=None):
    """The task of a case, its reference solved."""
    count, generator = noises or NOISES[family(name)], torch.Generator().manual_seed(1)
    if name in TEACHERS:
        teacher = DemoTeacher(TEACHERS[name])
        guided_teacher = for_sampler(teacher, torch.arange(count) % HELD_OUT, CFG)

        def denoise(x, sigma):
            return guided_teacher(x.float(), sigma).to(x.dtype)

        kind, cloud = f"teacher {TEACHERS[name]}", None
        path, sigma_of, shape = teacher.path, teacher.sigma_of, teacher.shape
        low = float(sigma_of(torch.tensor([1e-3])))
        deviation = float(data.load("train")[0].std())
        limits = {"tolerance": 1e-3, "steps": 100, "most": 400}
    else:
        case = exact.case(name)
        denoise = case.denoise
        kind, cloud = case.type, case.cloud
        path, sigma_of, shape = case.path, case.sigma_of, case.cloud.shape
        low, deviation = case.low, case.deviation
        limits = {"most": 2000} if family(name) == "emoji" else {}
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    top = float(sigma_of(torch.ones(1, dtype=torch.float64)))
    first = start(noise, top, top, path)
    with torch.no_grad():
        reference, accuracy = exact.converged(denoise, first, path, top, low, deviation, **limits)
    return Task(name, kind, path, sigma_of, denoise, noise, deviation, reference, accuracy, cloud)


def start(noise, sigma, sigma_max, path):
    """What the host makes of unit noise over an empty latent (`noise_scaling` of comfy.model_sampling)."""
    if path.sigma_max < math.inf:
        return sigma * noise
    return noise * (math.hypot(1, sigma) if math.isclose(sigma, sigma_max, rel_tol=1e-5) else sigma)


def ours(task, noise, grid_name, options, nfe, seed=0, grid_options=None):
    """(images, model calls) of our kernel on that grid, on the host's starting state."""
    calls = 0

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        return task.denoise(x, sigma)

    sigmas = grids.grid(grid_name, nfe, task.sigma_of, task.path, **(grid_options or {}))
    top = float(task.sigma_of(torch.ones(1, dtype=torch.float64)))
    first = start(noise, float(sigmas[0]), top, task.path)
    with torch.no_grad():
        images = solve(counted, first, sigmas, task.path, noise=batch_noise(seed), **options)
    return images, calls


def judge_ode(task):
    """images -> error, for the task's own noises."""
    return lambda images: exact.rmse(images, task.reference) / task.deviation


def judge_sde(task):
    """(images -> distance to data, the distance between two sets of data)."""
    generator = torch.Generator().manual_seed(2)
    truth, again = (task.cloud.sample(SAMPLES, generator) for _ in range(2))
    directions = exact.unit_directions(DIRECTIONS, math.prod(task.cloud.shape))

    def judge(images):
        return exact.sliced_wasserstein(images, truth, directions) / task.deviation

    return judge, judge(again)


def compare(task, nfe, kind, judge, noise, report):
    """One row: our automatic choice, our fixed settings, and the host's pairs, all at `nfe` model calls."""
    stochastic = kind == "sde"
    grid_options, options = {"dimension": task.noise[0].numel()}, auto.solver(stochastic)
    images, calls = ours(task, noise, "auto", options, nfe, grid_options=grid_options)
    row = {
        "case": task.name,
        "nfe": nfe,
        "kind": kind,
        "ours": judge(images),
        "ours_name": f"auto {grid_options | options}",
        "ours_calls": calls,
    }
    row["fixed"] = {} if stochastic else fixed(task, noise, nfe, judge)
    model, scores = core.model(task.type), {}
    for pair in core.core_pairs(model, nfe, report):
        if core.draws_noise(model, pair.sampler) != stochastic:
            continue
        sampler = core.sampler(pair.sampler)
        images, calls = core.run(model, sampler, pair.sigmas, noise.float(), task.denoise)
        score = judge(images)
        if calls != pair.calls:
            report(f"left out: {pair.name}, {calls} model calls here and {pair.calls} when counted")
        elif math.isfinite(score):
            scores[pair.name] = score
    ranked = sorted(scores.items(), key=lambda item: item[1])
    name, value = ranked[0]
    row["core_best"], row["core_name"] = value, name
    row["core_next"] = ranked[1:5]
    row["core_pairs"] = len(ranked)
    row["ratio"] = row["ours"] / row["core_best"]
    return row


def fixed(task, noise, nfe, judge):
    """{"grid, order": error} of our settings that choose nothing, on the grids that have that step count."""
    scores = {}
    for name in grids.NAMES:
        for order in (1, 2, 3):
            try:
                scores[f"{name}, order {order}"] = judge(ours(task, noise, name, {"order": order}, nfe)[0])
            except ValueError:
                continue
    return scores


def show(row):
    """One line."""
    line = (
        f"{row['case']:16} {row['kind']} {row['nfe']:3}  ours {row['ours']:6.4f}  "
        f"core {row['core_best']:6.4f} {row['core_name']:40} {row['ratio']:5.2f}"
    )
    if row["fixed"]:
        name, value = min(row["fixed"].items(), key=lambda item: item[1])
        line += f"  our best fixed {value:6.4f} {name}"
    print(line, flush=True)


def show_table(title, rows, figure, counts):
    """A line for each case, a column for each number of calls."""
    cases = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["nfe"]] = row[figure]
    print(f"\n| {title} | {' | '.join(f'{n} calls' for n in counts)} |")
    print("|---" * (1 + len(counts)) + "|")
    for name, cells in cases.items():
        print(f"| {name} | {' | '.join(f'{cells[n]:.2f}' if n in cells else '' for n in counts)} |")


def summary(rows):
    """Our error as a share of the best pair's in hindsight, and how often it is no worse."""
    counts = sorted({row["nfe"] for row in rows})
    for kind, title in TITLES.items():
        those = [row for row in rows if row["kind"] == kind]
        show_table(title, those, "ratio", counts)
        ratios = [row["ratio"] for row in those]
        if ratios:
            no_worse = sum(ratio <= 1 for ratio in ratios)
            print(
                f"no worse in {no_worse} of {len(ratios)}, geometric mean "
                f"{statistics.geometric_mean(ratios):.2f}, worst {max(ratios):.2f}"
            )
    fitted = [row for row in rows if "fitted" in row]
    if fitted:
        show_table("fitted solver", fitted, "fitted_ratio", sorted({row["nfe"] for row in fitted}))
    for low, high in ((3, 6), (8, 10)):
        ratios = [row["fitted_ratio"] for row in fitted if low <= row["nfe"] <= high]
        if ratios:
            print(
                f"fitted, {low} to {high} calls: geometric mean {statistics.geometric_mean(ratios):.3f}, "
                f"worst {max(ratios):.2f}, {len(ratios)} cells"
            )


def save(path, rows):
    """Write all rows at once, so that a stopped run leaves a whole file."""
    if path:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        part.replace(path)


def numbers(text):
    return [int(v) for v in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, help="keep the rows there; rows already in it are not worked out again"
    )
    parser.add_argument("--noises", type=int, help=f"starting noises of a case; by default {NOISES}")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--nfe", type=numbers, default=NFE, help="model calls, such as 3,4,8")
    parser.add_argument("--no-sde", action="store_true", help="leave out samplers that draw noise")
    parser.add_argument("--no-fit", action="store_true", help="leave out the fitted solvers")
    args = parser.parse_args()
    unknown = set(args.cases.split(",")) - set(CASES)
    if unknown:
        parser.error(f"--cases must be some of {', '.join(CASES)}; got {', '.join(sorted(unknown))}")
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    core.start()
    said = set()

    def report(line):
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    for name in args.cases.split(","):
        own = [row for row in rows if row["case"] == name]
        kinds = ["ode"] if args.no_sde or family(name) != "mixture" else ["ode", "sde"]
        have = {(row["nfe"], row["kind"]) for row in own}
        wanted = [(n, kind) for kind in kinds for n in args.nfe if (n, kind) not in have]
        fitted = {row["nfe"] for row in own if row["kind"] == "ode" and "fitted" in row}
        unfitted = [n for n in args.nfe if n <= MOST_STEPS and n not in fitted and not args.no_fit]
        if not wanted and not unfitted:
            continue
        began, work = time.monotonic(), task(name, args.noises)
        print(
            f"{name}: reference converged to {work.accuracy:.1e} in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for nfe, kind in wanted:
            if kind == "sde":
                judge, floor = judge_sde(work)
                generator = torch.Generator().manual_seed(3)
                noise = torch.randn(SAMPLES, *work.cloud.shape, generator=generator, dtype=torch.float64)
                extra = {"floor": floor}
            else:
                judge, noise = judge_ode(work), work.noise
                extra = {"accuracy": work.accuracy, "noises": len(noise)}
            rows.append(compare(work, nfe, kind, judge, noise, report) | extra)
            show(rows[-1])
            save(args.json, rows)
        if unfitted:
            own = [row for row in rows if row["case"] == name and row["kind"] == "ode"]
            lacking = [row for row in own if row["nfe"] in unfitted]
            add_fitted(work, lacking, keep=lambda: save(args.json, rows))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    summary(rows)


if __name__ == "__main__":
    main()
