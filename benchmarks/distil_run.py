"""One run of `distil.py`, in a process of its own: a teacher, its untrained model, a method of ours or the
LCM-LoRA recipe; judged by `training.models.demo.judge`.

A job and its row are one dict: what is asked (KEY) and what came of it. A job may name another guidance than
CFG, `cfg`, and further settings, `set`; it then wants a folder of its own.
"""

import math
import statistics
import time
from pathlib import Path

import torch
from distil_table import BASE, FIGURES, RECIPE, STEPS, TEACHER
from fewstep.diffusion.schedules.grids import grid, shifted
from fewstep.training.formats.files import read_tensors, write_tensors
from fewstep.training.methods.method import STUDENT
from fewstep.training.models.demo import data
from fewstep.training.models.demo.judge import Judge
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.probe import MEASURED
from fewstep.training.run.run import Run, last
from fewstep.training.run.source import PROBES
from fewstep.training.trajectories.data import Data
from fewstep.training.trajectories.sampling import SHARD
from lcm_recipe import SAMPLERS, Memory, train

CFG, BATCH, REFERENCE = 2.0, 16, 50  # REFERENCE: steps of the teacher that all are judged by
TRIED, SPARE = 8, 0.98  # updates of a trial; share of the seconds that is planned for
RECOUNTED = 8  # parts of a run, after each of which what is left is counted anew
TRIAL = "trial"
SHOWN = 16  # pictures of a row that are kept
KEY = ("teacher", "method", "pictures", "lr", "steps", "asked", "seed", "device", "noises")


def clock_of(device):
    """Seconds that count: of this process's own work on a CPU, so that other load changes nothing."""
    return time.process_time if device == "cpu" else time.perf_counter


# ---- a run of ours -------------------------------------------------------------------------------------


def config_of(job, updates, images=None):
    """Our defaults at that length; images: None for the defaults' trajectories a training sample."""
    usual = DistilConfig(method=job["method"], steps=job["steps"])
    images = images or max(1, round(updates * BATCH * usual.images / (usual.updates * usual.batch)))
    settings = {"cfg": job.get("cfg", CFG), **job.get("set", {})}
    settings |= {"batch": BATCH, "updates": updates, "images": images, "seed": job["seed"]}
    return DistilConfig(method=job["method"], steps=job["steps"], **settings)


def real_pictures(teacher):
    """The emoji that the teacher was trained on, of the labels that it offers, as a run's data."""
    images, places, _ = data.load("train")
    offered = torch.tensor(list(data.label_numbers().values()))
    keep = torch.isin(places, offered)
    condition = (places[keep][:, None] == offered).int().argmax(1)
    return Data(images=images[keep], condition=condition)


def run_of(teacher, job, updates, images=None):
    """The `Run` of a job at that length."""
    given = real_pictures(teacher) if job["pictures"] == "real" else None
    return Run(teacher, config_of(job, updates, images), data=given)


def trial(teacher, job):
    """What takes how long, seconds: {"start", "image", "update", "measure"}."""
    clock = clock_of(job["device"])
    began, marks = clock(), []
    run = run_of(teacher, job, TRIED, 2 * SHARD - PROBES)
    for progress in run.progress():
        marks.append(clock())
        if progress.stage == "training":
            break
    drawn = len(marks) > 2  # two shards of trajectories and the first update
    # by the second shard; the first has all that happens once
    image = (marks[1] - marks[0]) / SHARD if drawn else 0.0
    before = clock()
    run.measure()
    measure = clock() - before
    return {
        "start": max(0.0, marks[0] - began - SHARD * image),
        "image": image,
        "update": _update(run, job, clock),
        "measure": measure,
    }


def _update(run, job, clock):
    """What an update of the student takes in the mean of a run, with those of roles that go along."""
    usual = config_of(job, 1000)
    alone = (run.method.last_turn(usual) or 0) / usual.updates  # share of them before the roles matter
    before = _seconds(run, STUDENT, clock) if alone else 0.0
    run.probe.fidelity = [(run.method.last_turn(run.config) or 0, 0.0)]  # as if it had turned by now
    total = alone * before + (1 - alone) * _seconds(run, STUDENT, clock)
    for name, role in run.learners.roles.items():
        beside = role.first(usual) / usual.updates + (1 - alone) * (usual.lead if role.each else 0)
        total += beside * _seconds(run, name, clock)
    return total


def _seconds(run, who, clock):
    """What an update of that adapter takes."""
    found = []
    for _ in range(TRIED):
        before = clock()
        run.update(who)
        found.append(clock() - before)
    return statistics.median(found)


def length(times, job):
    """(updates, images) that fit into the seconds."""
    usual = DistilConfig(method=job["method"], steps=job["steps"])
    images = usual.images / (usual.updates * usual.batch) * BATCH  # an update
    if job["pictures"] == "real":
        images = 0.0
    left = SPARE * job["asked"] - times["start"] - PROBES * times["image"] - (MEASURED + 2) * times["measure"]
    updates = max(2, int(left / (times["update"] + images * times["image"])))
    return updates, config_of(job, updates).images


def ours(teacher, job):
    """(row, sample) of a run of ours."""
    clock, memory = clock_of(job["device"]), Memory(teacher.device)
    began = clock()
    run = run_of(teacher, job, job["updates"], job["images"])
    parts = [job["updates"] * n // RECOUNTED for n in range(1, RECOUNTED)]
    drawn, trained, before = 0.0, 0.0, began  # seconds of the data, and of the student and who goes along
    mark = 0, 0.0  # updates and seconds of training by the last count
    for progress in run.progress():
        now = clock()
        if progress.stage == "sampling the teacher":
            drawn += now - before
        elif progress.stage == "training":
            trained += now - before
        before = now
        if parts and run.done >= max(1, parts[0]):
            parts.pop(0)
            each, mark = (trained - mark[1]) / max(1, run.done - mark[0]), (run.done, trained)
            if run.context().turned is not None:  # before, an update is another one
                left = began + SPARE * job["asked"] - now
                last(run, run.done + max(1, int(left / each)))
    row = {
        "samples": BATCH * run.done,
        "seconds": clock() - began,
        "data_seconds": drawn,
        "images": run.config.images,
        "peak_memory_mib": memory.peak() / 2**20,
    }

    def sample(noise, condition, steps):
        sigmas, churn = run.task.sigmas_for(steps), run.task.churn
        return run.student.sample(noise, condition, sigmas, adapter=run.adapter, churn=churn)

    return row, sample


# ---- what it is held against ---------------------------------------------------------------------------


def recipe(teacher, job):
    """(row, sample) of a run of the recipe."""
    clock = clock_of(job["device"])
    run = train(teacher, batch=BATCH, lr=job["lr"], seed=job["seed"], seconds=job["asked"], clock=clock)
    row = {
        "samples": run.samples_seen,
        "seconds": run.seconds,
        "data_seconds": 0.0,
        "peak_memory_mib": run.peak_memory / 2**20,
    }
    return row, run.sample


def untrained(teacher, job):
    """(sample, samplers) of the model itself at the teacher's guidance."""
    run = Run(teacher, DistilConfig(cfg=job.get("cfg", CFG)))
    shift = run.config.shift

    def sample(noise, condition, steps, order, shift):
        sigmas = grid("uniform", steps, shifted(teacher.sigma_of, shift), teacher.path)
        return run.student.sample_base(noise, condition, sigmas, order=order)

    samplers = {
        f"order {order}, shift {by:g}": {"order": order, "shift": by}
        for order in (1, 2)
        for by in (1.0, shift)
    }
    return sample, samplers


def asked_of(teacher, job):
    """(noise, condition) that all are judged on, which no run has seen."""
    noise = torch.randn(2 * job["noises"], *teacher.shape, generator=torch.Generator().manual_seed(1_000_000))
    return noise, torch.arange(job["noises"]) % teacher.conditions


def pictures_at(job, folder):
    """The file that keeps the teacher's pictures."""
    return Path(folder) / f"{job['teacher']} {job['noises']} {REFERENCE}.safetensors"


def reference_of(teacher, job, folder):
    """(the teacher's pixels from the noises, and from others), made once and kept in the folder."""
    path = pictures_at(job, folder)
    if not path.exists():
        noise, condition = asked_of(teacher, job)
        sample, samplers = untrained(teacher, job)
        options = samplers["order 2, shift 3"]
        pixels = [
            data.to_pixels(sample(part, condition, REFERENCE, **options).cpu()).clamp(-1, 1)
            for part in noise.split(job["noises"])
        ]
        write_tensors(path, {"reference": pixels[0].contiguous(), "other": pixels[1].contiguous()}, {})
    found = read_tensors(path)[0]
    return found["reference"], found["other"]


# ---- judged --------------------------------------------------------------------------------------------


def shown(figures):
    """Figures by steps as a row has them: {figure: {steps: value}}, and the ends of the intervals apart.

    figures: {steps: {figure: Estimate}}.
    """
    row = {name: {} for name in FIGURES}
    row["intervals"] = {name: {} for name in FIGURES}
    for steps, found in figures.items():
        for name, estimate in found.items():
            row[name][str(steps)] = finite(estimate.value)
            row["intervals"][name][str(steps)] = [finite(estimate.low), finite(estimate.high)]
    return row


def finite(value):
    """The number as JSON has it; None for one that is not known."""
    return value if math.isfinite(value) else None


def drawn_at(job, folder):
    """The file that keeps the first pictures of a row, by steps."""
    return Path(folder) / f"{' '.join(str(job[name]) for name in KEY)}.safetensors"


@torch.no_grad()
def judged(sample, samplers, judge, noise, condition):
    """(a row's figures, each at each step count by that of the samplers which is best at it in hindsight;
    the first SHOWN pictures by steps, of what is best by the distance to the teacher's).
    """
    figures, chosen, first = {}, {}, {}
    for steps in STEPS:
        found, drawn = {}, {}
        for name, options in samplers.items():
            pixels = data.to_pixels(sample(noise, condition, steps, **options).cpu()).clamp(-1, 1)
            found[name], drawn[name] = judge(pixels), pixels[:SHOWN].contiguous()
        best = {
            figure: min(found, key=lambda name: found[name][figure].value)
            for figure in ("rmse", "distance_teacher", "distance_data")
        }
        best["diversity"] = best["distance_teacher"]
        figures[steps] = {figure: found[name][figure] for figure, name in best.items()}
        chosen[str(steps)], first[str(steps)] = best, drawn[best["distance_teacher"]]
    return {**shown(figures), "samplers": chosen}, first


def one(job, folder):
    """The row of a job."""
    torch.set_num_threads(1)
    teacher = DemoTeacher(job["teacher"], job["device"])
    if job["pictures"] == TRIAL:
        return trial(teacher, {**job, "pictures": job["of"]})
    reference, other = reference_of(teacher, job, folder)
    noise, condition = asked_of(teacher, job)
    noise, judge = noise[: job["noises"]], Judge(reference, condition)
    if job["method"] == TEACHER:
        floor = judge.floor(other)
        row = {"floor": floor.value, "floor_interval": [floor.low, floor.high]}
        return {**{k: job[k] for k in KEY}, **row, **shown({REFERENCE: judge(reference)})}
    began, row = clock_of(job["device"])(), {"samples": 0, "seconds": 0.0}
    if job["method"] == BASE:
        sample, samplers = untrained(teacher, job)
    else:
        with torch.no_grad():
            teacher(noise[:1], torch.full((1,), 0.5), condition[:1])
        row, sample = recipe(teacher, job) if job["method"] == RECIPE else ours(teacher, job)
        samplers = SAMPLERS if job["method"] == RECIPE else {"own": {}}
        row["samples_per_second"] = row["samples"] / row["seconds"]
        row["cpu_seconds"] = clock_of("cpu")() - began if job["device"] == "cpu" else math.nan
    figures, first = judged(sample, samplers, judge, noise, condition)
    write_tensors(drawn_at(job, folder), first, {})
    return {**{k: job[k] for k in KEY}, **row, **figures}
