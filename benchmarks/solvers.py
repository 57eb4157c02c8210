"""How near a few steps come to the converged ODE, or to the data: our automatic choice beside every pair of
the host's own.

    python benchmarks/solvers.py [--json FILE] [--noises N] [--cases a,b] [--nfe 3,4,...] [--no-sde]
    [--no-fit]

ode     same noise, samplers that draw none: RMSE to the converged ODE in units of the data's standard
        deviation
sde     samplers that draw noise, on mixtures: sliced Wasserstein-2 distance to data in the same units (64
        directions, 4000 samples)
Every pair may use up to NFE model calls. The host's pair is the best in hindsight, ours is chosen beforehand;
"fitted" is a solver
fitted on other noises (and, for the teachers, other labels), up to 12 calls. With --json, rows that the file
already holds for a
case, NFE and kind are kept, and each new one is saved as soon as it is known.
"""

import argparse
import dataclasses
import json
import math
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


@dataclasses.dataclass(frozen=True)
class Task:
    """A denoiser (x, sigma) -> x0 with its model in the host, unit noise (N, C, H, W), and the converged
    images from it.
    """

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
    """What a solver is fitted on: the task's denoiser, or the teacher with the labels that are not measured."""

    noise_scale, cfg, base = 1.0, 1.0, ""

    def __init__(self, task):
        self.task, self.path, self.sigma_of, self.shape = (
            task,
            task.path,
            task.sigma_of,
            tuple(task.noise.shape[1:]),
        )
        self.teacher = DemoTeacher(TEACHERS[task.name]) if task.name in TEACHERS else None
        self.conditions = self.teacher.conditions - HELD_OUT if self.teacher else 1
        self.identity = {"model": task.name, "patches": "", "conditioning": "", "guidance": ""}

    def __call__(self, x, sigma, condition):
        if self.teacher is None:
            return self.task.denoise(x, float(sigma[0]))
        return guided(self.teacher, x, sigma.float(), condition + HELD_OUT, CFG)


def family(name):
    """What decides about a case's settings."""
    return "teacher" if name in TEACHERS else "emoji" if name.startswith("emoji") else "mixture"


def add_fitted(task, rows, keep):
    """Put "fitted" into those rows, one by one: the error of the solver fitted for that many calls; `keep()`
    after each.
    """
    config = FitConfig(steps=tuple(row["nfe"] for row in rows), **FITS[family(task.name)])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run, left = SolverFit(FitTeacher(task), config, folder), {row["nfe"]: row for row in rows}
        for progress in run.progress():
            for nfe in [
                n for n in left if progress.stage == f"fitting {n} steps" and progress.step % 100 == 0
            ]:
                recipe, row = run.recipe(nfe), left.pop(nfe)
                images = sample_recipe(recipe, task.denoise, task.noise)
                row["fitted"] = judge_ode(task)(images)
                row["fitted_ratio"] = row["fitted"] / row["core_best"]
                row["fitted_by"] = {"method": recipe.method, **recipe.trained, **recipe.errors}
                figures = f"{row['fitted']:6.4f}  core {row['core_best']:6.4f}  {row['fitted_ratio']:5.2f}"
                print(
                    f"{task.name:16} fitted {nfe:3}  {figures}  {recipe.method} {recipe.trained['evaluations']}",
                    flush=True,
                )
                keep()


def task(name, noises=None):
    """The task of a case, its reference solved."""
    count, generator = noises or NOISES[family(name)], torch.Generator().manual_seed(1)
    if name in TEACHERS:
        teacher = DemoTeacher(TEACHERS[name])
        at_cfg = for_sampler(teacher, torch.arange(count) % HELD_OUT, CFG)
        kind, path, sigma_of, shape, cloud = (
            f"teacher {TEACHERS[name]}",
            teacher.path,
            teacher.sigma_of,
            teacher.shape,
            None,
        )
        denoise = lambda x, sigma: at_cfg(x.float(), sigma).to(x.dtype)
        low, deviation = float(sigma_of(torch.tensor([1e-3]))), float(data.load("train")[0].std())
        limits = {"tolerance": 1e-3, "steps": 100, "most": 400}
    else:
        case = exact.case(name)
        kind, path, sigma_of, shape, denoise = (
            case.type,
            case.path,
            case.sigma_of,
            case.cloud.shape,
            case.denoise,
        )
        cloud, low, deviation = case.cloud, case.low, case.deviation
        limits = {"most": 2000} if family(name) == "emoji" else {}
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    top = float(sigma_of(torch.ones(1, dtype=torch.float64)))
    with torch.no_grad():
        reference, accuracy = exact.converged(
            denoise, start(noise, top, top, path), path, top, low, deviation, **limits
        )
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
    with torch.no_grad():
        images = solve(
            counted,
            start(noise, float(sigmas[0]), top, task.path),
            sigmas,
            task.path,
            noise=batch_noise(seed),
            **options,
        )
    return images, calls


def judge_ode(task):
    """images -> error, for the task's own noises."""
    return lambda images: exact.rmse(images, task.reference) / task.deviation


def judge_sde(task):
    """images -> distance to data, and the distance between two sets of data."""
    generator = torch.Generator().manual_seed(2)
    truth, again = (task.cloud.sample(SAMPLES, generator) for _ in range(2))
    directions = exact.unit_directions(DIRECTIONS, math.prod(task.cloud.shape))
    judge = lambda images: exact.sliced_wasserstein(images, truth, directions) / task.deviation
    return judge, judge(again)


def compare(task, nfe, kind, judge, noise, report):
    """One row: our automatic choice, our fixed settings, and the host's pairs, all at `nfe` model calls."""
    stochastic = kind == "sde"
    name, grid_options, options = "auto", {"dimension": task.noise[0].numel()}, auto.solver(stochastic)
    images, calls = ours(task, noise, name, options, nfe, grid_options=grid_options)
    row = {
        "case": task.name,
        "nfe": nfe,
        "kind": kind,
        "ours": judge(images),
        "ours_name": f"{name} {grid_options | options}",
        "ours_calls": calls,
    }
    row["fixed"] = {} if stochastic else fixed(task, noise, nfe, judge)
    model, scores = core.model(task.type), {}
    for pair in core.core_pairs(model, nfe, report):
        if core.draws_noise(model, pair.sampler) == stochastic:
            images, calls = core.run(
                model, core.sampler(pair.sampler), pair.sigmas, noise.float(), task.denoise
            )
            score = judge(images)
            if calls != pair.calls:
                report(f"left out: {pair.name}, {calls} model calls here and {pair.calls} when counted")
            elif math.isfinite(score):
                scores[pair.name] = score
    best = sorted(scores.items(), key=lambda item: item[1])
    row |= {"core_best": best[0][1], "core_name": best[0][0], "core_next": best[1:5], "core_pairs": len(best)}
    return row | {"ratio": row["ours"] / best[0][1]}


def fixed(task, noise, nfe, judge):
    """{"grid, order": error} of our settings that choose nothing; a grid that has no such step count is left
    out.
    """
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
        f"{row['case']:16} {row['kind']} {row['nfe']:3}  ours {row['ours']:6.4f}  core {row['core_best']:6.4f} "
        f"{row['core_name']:40} {row['ratio']:5.2f}"
    )
    if row["fixed"]:
        name, value = min(row["fixed"].items(), key=lambda item: item[1])
        line += f"  our best fixed {value:6.4f} {name}"
    print(line, flush=True)


def summary(rows):
    """The README's table: our error as a share of the best pair's in hindsight, and how often it is no worse."""
    counts = sorted({row["nfe"] for row in rows})
    for kind, title in (
        ("ode", "error to the converged ODE"),
        ("sde", "distance to the data, with fresh noise"),
    ):
        table = {}
        for row in (r for r in rows if r["kind"] == kind):
            table.setdefault(row["case"], {})[row["nfe"]] = row["ratio"]
        print(
            f"\n| {title} | " + " | ".join(f"{n} calls" for n in counts) + " |\n|---|" + "---|" * len(counts)
        )
        for name, cells in table.items():
            print(f"| {name} | " + " | ".join(f"{cells[n]:.2f}" if n in cells else "" for n in counts) + " |")
        ratios = sorted(ratio for cells in table.values() for ratio in cells.values())
        if ratios:
            middle = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(
                f"no worse in {sum(r <= 1 for r in ratios)} of {len(ratios)}, geometric mean {middle:.2f}, "
                f"worst {ratios[-1]:.2f}"
            )
    fitted = [row for row in rows if "fitted" in row]
    if fitted:
        counts = sorted({row["nfe"] for row in fitted})
        print(
            "\n| fitted solver | "
            + " | ".join(f"{n} calls" for n in counts)
            + " |\n|---|"
            + "---|" * len(counts)
        )
        for name in dict.fromkeys(row["case"] for row in fitted):
            cells = {row["nfe"]: row["fitted_ratio"] for row in fitted if row["case"] == name}
            print(f"| {name} | " + " | ".join(f"{cells[n]:.2f}" if n in cells else "" for n in counts) + " |")
    for low, high in ((3, 6), (8, 10)):
        ratios = [row["fitted_ratio"] for row in fitted if low <= row["nfe"] <= high]
        if ratios:
            print(
                f"fitted, {low} to {high} calls: geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}, worst "
                f"{max(ratios):.2f}, {len(ratios)} cells"
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
        kinds = (
            ["ode", "sde"]
            if name in exact.CASES and not name.startswith("emoji") and not args.no_sde
            else ["ode"]
        )
        have = {(r["nfe"], r["kind"]) for r in rows if r["case"] == name}
        wanted = [(n, kind) for kind in kinds for n in args.nfe if (n, kind) not in have]
        unfitted = (
            []
            if args.no_fit
            else [
                n
                for n in args.nfe
                if n <= MOST_STEPS
                and not any(
                    "fitted" in r for r in rows if (r["case"], r["nfe"], r["kind"]) == (name, n, "ode")
                )
            ]
        )
        if not wanted and not unfitted:
            continue
        began, work = time.monotonic(), task(name, args.noises)
        print(
            f"{name}: reference converged to {work.accuracy:.1e} in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for nfe, kind in wanted:
            judge, noise, extra = (
                judge_ode(work),
                work.noise,
                {"accuracy": work.accuracy, "noises": len(work.noise)},
            )
            if kind == "sde":
                judge, floor = judge_sde(work)
                generator = torch.Generator().manual_seed(3)
                noise = torch.randn(SAMPLES, *work.cloud.shape, generator=generator, dtype=torch.float64)
                extra = {"floor": floor}
            rows.append(compare(work, nfe, kind, judge, noise, report) | extra)
            show(rows[-1])
            save(args.json, rows)
        if unfitted:
            add_fitted(
                work,
                [r for r in rows if r["case"] == name and r["kind"] == "ode" and r["nfe"] in unfitted],
                lambda: save(args.json, rows),
            )
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    summary(rows)


if __name__ == "__main__":
    main()
