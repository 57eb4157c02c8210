"""Our trainer beside an independent run of the LCM-LoRA recipe (`lcm_recipe`), both demo teachers, CFG 2.

    python benchmarks/distil.py [--json FILE] [--seconds S] [--samples N] [--teachers a,b] [--methods a,b]
                                [--device cpu|cuda]

Every method runs at equal training samples and at equal wall seconds, which count from the start of a run to
its last update, the teacher's trajectories and the run's own measurements included. Each side has its own
defaults, which is what a user runs: ours a rank of 16 and one rate, given beforehand; the recipe a rank of 64
and the best of three rates in hindsight (1e-3 is too high: it made the flow teacher worse than untrained).
The same for both: batch 16, float32, every Linear and convolution layer. Ours has to know its length: a trial
takes the time of a few updates, and the run gets as many as fit, with trajectories in the proportion of the
defaults; after each quarter what is left is counted anew from its own speed. The recipe stops when the time
is over. Run it on a machine that does nothing else: `cpu_seconds` of a row far below its seconds (times its
threads) tells that others took part.

RMSE      to the teacher's 50 steps of order 2 from the same noise, pixels in 0..1; 64 noises that no run has
          seen, over all labels. Ours is sampled as its own recipe says; for the LCM-LoRA the best of its
          samplers in hindsight (`lcm_recipe.SAMPLERS`)
Frechet   distance of these 64 pictures to the emoji, in the features of the packaged classifier
samples/s training samples divided by all seconds of the run
memory    largest of the process (on CUDA: of tensors) while it trains, beyond what it holds with the teacher
          loaded and run once; each run has a process of its own

Three ratios, best of ours / recipe, geometric means over the teachers, from the runs of equal seconds: RMSE
at 4 steps (target 0.7), samples/s (target 1.2) and memory (target 0.8). The best of ours is one method for
both teachers, the one of the lowest geometric mean of RMSE at 4 steps; the recipe's rate is the one best by
that RMSE, for each teacher. The base model's row is the untrained one at CFG 2, the best of orders 1 and 2
with and without our shift. With --json, rows that the file already holds are kept, and each new one is saved
as soon as it is known.
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from distil_table import BASE, RECIPE, STEPS, line, show, summary
from fewstep.diffusion.schedules.grids import grid, shifted
from fewstep.training import methods
from fewstep.training.formats.files import write_json
from fewstep.training.models.demo import data
from fewstep.training.models.demo.features import features
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports.metrics import frechet, rmse
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.probe import MEASURED
from fewstep.training.run.run import Run
from fewstep.training.run.source import PROBES
from fewstep.training.trajectories.sampling import SHARD
from lcm_recipe import SAMPLERS, Memory, train
from safetensors.torch import load_file, save_file

CFG, BATCH = 2.0, 16
RATES = 3e-5, 1e-4, 3e-4
TRIED, SPARE = 8, 0.98  # updates of a trial; share of the seconds that is planned for
KEY = ("teacher", "method", "lr", "budget", "asked", "device", "noises")


# ---- one run, in a process of its own --------------------------------------------------------------


def config_of(method, updates, images=None):
    """Our defaults at that length; images: None for the defaults' trajectories a training sample."""
    usual = DistilConfig(method=method)
    images = images or max(1, round(updates * BATCH * usual.images / (usual.updates * usual.batch)))
    return DistilConfig(method=method, cfg=CFG, batch=BATCH, updates=updates, images=images)


def trial(teacher, method):
    """What takes how long, seconds: {"start", "image", "update", "measure"}."""
    began, marks = time.perf_counter(), []
    run = Run(teacher, config_of(method, TRIED, 2 * SHARD - PROBES))
    for progress in run.progress():
        marks.append(time.perf_counter())
        if progress.stage == "training":
            break
    image = (marks[1] - marks[0]) / SHARD  # by the second shard; the first has all that happens once
    updates = []
    for _ in range(TRIED):
        before = time.perf_counter()
        run.update()
        updates.append(time.perf_counter() - before)
    before = time.perf_counter()
    run.measure()
    return {
        "start": max(0.0, marks[0] - began - SHARD * image),
        "image": image,
        "update": statistics.median(updates),
        "measure": time.perf_counter() - before,
    }


def length(times, method, seconds):
    """(updates, images) that fit into the seconds."""
    usual = DistilConfig(method=method)
    images = usual.images / (usual.updates * usual.batch) * BATCH  # an update
    left = SPARE * seconds - times["start"] - PROBES * times["image"] - (MEASURED + 2) * times["measure"]
    updates = max(2, int(left / (times["update"] + images * times["image"])))
    return updates, config_of(method, updates).images


def ours(teacher, job):
    """(row, sample) of a run of ours."""
    memory, began = Memory(teacher.device), time.perf_counter()
    run = Run(teacher, config_of(job["method"], job["updates"], job["images"]))
    quarters = []  # where the length of the run is worked out anew
    if job["budget"] == "seconds":
        quarters = [job["updates"] * n // 4 for n in (1, 2, 3)]
    drawn, last = 0.0, began  # seconds that the data took; when the last progress came
    for progress in run.progress():
        now = time.perf_counter()
        if progress.stage != "training":
            drawn += now - last
        if quarters and run.done >= quarters[0]:
            quarters.pop(0)
            end_at(run, began + SPARE * job["asked"], (now - began - drawn) / run.done)
        last = now
    samples, seconds = BATCH * run.done, time.perf_counter() - began
    row = {
        "samples": samples,
        "seconds": seconds,
        "data_seconds": drawn,
        "images": run.config.images,
        "peak_memory_mib": memory.peak() / 2**20,
    }

    def sample(noise, condition, steps):
        sigmas, churn = run.task.sigmas_for(steps), run.task.churn
        return run.student.sample(noise, condition, sigmas, adapter=run.adapter, churn=churn)

    return row, sample


def end_at(run, moment, update):
    """Count a run's updates anew, so that it ends at that moment of the clock.

    update: seconds of one, with its share of the measurements.
    """
    updates = run.done + max(1, int((moment - time.perf_counter()) / update))
    run.config = run.descent.config = dataclasses.replace(run.config, updates=updates)
    run.probe.updates = updates


def recipe(teacher, job):
    """(row, sample) of a run of the recipe."""
    if job["budget"] == "samples":
        run = train(teacher, batch=BATCH, lr=job["lr"], updates=math.ceil(job["asked"] / BATCH))
    else:
        run = train(teacher, batch=BATCH, lr=job["lr"], seconds=job["asked"])
    row = {
        "samples": run.samples_seen,
        "seconds": run.seconds,
        "data_seconds": 0.0,
        "peak_memory_mib": run.peak_memory / 2**20,
    }
    return row, run.sample


@torch.no_grad()
def evaluate(sample, samplers, noise, condition, reference):
    """{steps: {"rmse", "frechet", "sampler"}}, of the samplers the best by RMSE; reference: pixels."""
    real, out = features(data.to_pixels(data.load("all")[0])), {}
    for steps in STEPS:
        found = []
        for name, options in samplers.items():
            pixels = data.to_pixels(sample(noise, condition, steps, **options).cpu()).clamp(-1, 1)
            found.append((rmse(pixels, reference) / 2, frechet(features(pixels), real), name))
        out[str(steps)] = dict(zip(("rmse", "frechet", "sampler"), min(found)))
    return out


def one(job, path):
    """The row of a job. The base model's also writes the reference to `path`, which the others read."""
    teacher = DemoTeacher(job["teacher"], job["device"])
    if job["budget"] == "trial":
        return trial(teacher, job["method"])
    noise = torch.randn(job["noises"], *teacher.shape, generator=torch.Generator().manual_seed(1_000_000))
    condition = torch.arange(job["noises"]) % teacher.conditions
    if job["method"] == BASE:
        run = Run(teacher, DistilConfig(cfg=CFG))

        def sample(noise, condition, steps, order, shift):
            sigmas = grid("uniform", steps, shifted(teacher.sigma_of, shift), teacher.path)
            return run.student.sample_base(noise, condition, sigmas, order=order)

        reference = data.to_pixels(sample(noise, condition, 50, 2, run.config.shift).cpu()).clamp(-1, 1)
        save_file({"reference": reference}, path)
        row = {"samples": 0, "seconds": 0.0}
        samplers = {
            f"order {order}, shift {shift:g}": {"order": order, "shift": shift}
            for order in (1, 2)
            for shift in (1.0, run.config.shift)
        }
    else:
        with torch.no_grad():
            teacher(noise[:1], torch.full((1,), 0.5), condition[:1])
        began = time.process_time()
        if job["method"] == RECIPE:
            row, sample = recipe(teacher, job)
            samplers = SAMPLERS
        else:
            row, sample = ours(teacher, job)
            samplers = {"own": {}}
        row["samples_per_second"] = row["samples"] / row["seconds"]
        row["cpu_seconds"] = time.process_time() - began
        reference = load_file(path)["reference"]
    return {
        **{k: job[k] for k in KEY},
        **row,
        "threads": torch.get_num_threads(),
        "steps": evaluate(sample, samplers, noise, condition, reference),
    }


# ---- all of them -----------------------------------------------------------------------------------


def key(row):
    """What tells a row, or the job of one, from all others."""
    return tuple(row[name] for name in KEY)


def child(job, path):
    """`one` in a process of its own; None, with a line, when it fails."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(job), "--reference", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        print(f"FAILED ({done.returncode}): {job}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def jobs(kind, args):
    """The runs on one teacher, as `KEY` names them."""
    same = {"teacher": kind, "device": args.device, "noises": args.noises}
    for budget, asked in (("seconds", args.seconds), ("samples", args.samples)):
        for method, lr in [*((m, None) for m in args.methods), *((RECIPE, lr) for lr in RATES)]:
            yield {**same, "method": method, "lr": lr, "budget": budget, "asked": asked}


def planned(job, times, path):
    """The job with the length of our run, None when its trial fails; times: {method: what its trial took}."""
    method = job["method"]
    if method == RECIPE:
        return job
    if job["budget"] == "samples":
        updates, images = math.ceil(job["asked"] / BATCH), None
    else:
        times[method] = times.get(method) or child({**job, "budget": "trial"}, path)
        if times[method] is None:
            return None
        updates, images = length(times[method], method, job["asked"])
    return {**job, "updates": updates, "images": images}


def run_missing(kind, args, rows, save):
    """Run on one teacher what `rows` lack, and append it."""
    have = {key(row) for row in rows}
    missing = [job for job in jobs(kind, args) if key(job) not in have]
    if not missing:
        return

    def keep(row):
        rows.append(row)
        save()
        print(line(row), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path, times = Path(folder) / "reference.safetensors", {}
        base = {**missing[0], "method": BASE, "lr": None, "budget": "none", "asked": 0}
        untrained = child(base, path)  # it also writes the reference
        rows[:] = [row for row in rows if key(row) != key(base)]
        if untrained:
            keep(untrained)
        for job in missing:
            whole = planned(job, times, path)
            made = child(whole, path) if whole else None
            if made:
                keep(made)


def some_of(known):
    """A type for argparse: names from `known`, separated by commas."""

    def names(text):
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name}: {', '.join(known)}")
        return found

    return names


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there; those that it holds are kept")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: %(default)g)")
    parser.add_argument("--samples", type=int, default=2400, help="of each run (default: %(default)s)")
    parser.add_argument("--teachers", type=some_of(("flow", "epsilon")), default=["flow", "epsilon"])
    parser.add_argument(
        "--methods",
        type=some_of(methods.names()),
        default=list(methods.names()),
        help="of ours; the recipe always runs",
    )
    parser.add_argument("--noises", type=int, default=64, help="to judge on, above 48 (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.reference)))
        return
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []

    def save():
        if args.json:
            write_json(args.json, {"rows": rows, "summary": summary(rows, args)})

    for kind in args.teachers:
        run_missing(kind, args, rows, save)
    save()
    show(rows, summary(rows, args))


if __name__ == "__main__":
    main()
