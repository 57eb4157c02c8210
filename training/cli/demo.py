"""`fewstep demo`: distil a LoRA from a packaged teacher and show what it does, with nothing to download."""

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..formats.files import check_folder, write_json, write_near
from ..models.demo import data
from ..models.demo.judge import Judge
from ..models.demo.teacher import DemoTeacher
from ..reports import pictures
from ..run.config import DistilConfig, length_of
from ..run.run import Run
from .spec import check_device

CFG = 2.0
EVALUATED = 64  # starting noises, none of them seen in training
SHOWN = ("smiling face", "cat", "heart", "animal face", "flower", "fruit", "car", "clock")
# the methods that show what longer training is for; without a quality the first
METHODS = {"quick": "phased", "standard": "phased-matching", "best": "phased-matching"}
COLUMNS = ("teacher-50", "base-4", "distilled-1", "distilled-2", "distilled-4")


def demo(
    out: str | Path,
    *,
    kind: str = "flow",
    method: str | None = None,
    quality: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Run the demo into the folder `out`; returns the metrics that it writes there.

    quality: how long to train, as of `fewstep distil`; None for `DistilConfig`'s own length. method: None for
    that of `METHODS`. Raises OSError when `out` cannot be written, ValueError for a setting out of range;
    both before any work.
    """
    started = time.perf_counter()
    check_device(device)
    method = method or METHODS.get(quality, "phased")
    if quality:
        settings = {**length_of(quality), **settings}
    if method == "phased":  # the picture shows one, two and four steps of the same LoRA
        settings = {"one_step": 0.1, **settings}
    config = DistilConfig(method=method, cfg=CFG, seed=seed, **settings)
    out = check_folder(out, 8 << 20)
    teacher = DemoTeacher(kind, device)
    run = Run(teacher, config)
    bar = tqdm(dynamic_ncols=True, file=sys.stderr)  # one for the whole run, whatever it is at
    for progress in run.progress():
        bar.total, bar.n, bar.desc = progress.total, progress.step, progress.stage
        bar.update(0)
        if progress.fidelity is not None:
            bar.set_postfix_str(f"loss {progress.loss:.4f}, distance to teacher {progress.fidelity:.3f}")
    bar.close()
    images, condition = _evaluate(run, seed)
    metrics = _measure(images, condition)
    write_near(out / "lora.safetensors", run.save)
    pictures.save(_picture(images, metrics), out / "demo.png")
    pictures.save(pictures.run_curves(run.loss, run.probe.fidelity), out / "curves.png")
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _peak_memory()
    result = {
        "teacher": kind,
        "seed": seed,
        "device": device,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mib": round(peak),
        "columns": metrics,
        "fidelity": run.probe.fidelity,
    }
    if quality:
        result |= {"quality": quality, "method": method, "updates": run.done}
    write_near(out / "metrics.json", lambda path: write_json(path, result))
    return result


def _peak_memory():
    """Largest resident size of this process so far, MiB; 0 where the system tells none.

    Linux counts it in KiB, macOS in bytes.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _evaluate(run, seed):
    """({column: pixels (N, 3, 32, 32)}, labels (N,)) from the same noises; the shown ones come first."""
    teacher = run.denoiser
    g = torch.Generator().manual_seed(1_000_000 + seed)
    noise = torch.randn(EVALUATED, *teacher.shape, generator=g)
    rest = [i for i, name in enumerate(teacher.labels) if name not in SHOWN]
    labels = [teacher.labels.index(name) for name in SHOWN]
    labels += [(labels + rest)[i % len(teacher.labels)] for i in range(EVALUATED - len(labels))]
    condition = torch.tensor(labels)
    task, student = run.task, run.student
    jobs = {
        "teacher-50": partial(student.sample_base, noise, condition, task.sigmas_for(50), order=2),
        "base-4": partial(student.sample_base, noise, condition, 4),
        "base-4-order-2": partial(student.sample_base, noise, condition, 4, order=2),
    }
    for steps, order in ((2, 1), (4, 1), (4, 2)):
        name = f"base-{steps}{'-order-2' if order == 2 else ''}-same-grid"
        jobs[name] = partial(student.sample_base, noise, condition, task.sigmas_for(steps), order=order)
    for steps, churn in ((1, 0.0), (2, 0.0), (4, 0.0), (2, math.inf), (4, math.inf)):
        name = f"distilled-{steps}{'-consistency' if churn else ''}"
        jobs[name] = partial(
            student.sample,
            noise,
            condition,
            task.sigmas_for(steps),
            adapter=run.adapter,
            churn=churn,
            seed=seed,
        )
    shown = tqdm(jobs.items(), desc="measuring", dynamic_ncols=True, file=sys.stderr)
    return {name: data.to_pixels(job().cpu()).clamp(-1, 1) for name, job in shown}, condition


def _measure(images, condition):
    """{column: figures}: RMSE to the teacher's 50 steps (pixels in 0..1, for columns with c = 0 only), energy
    distance to these and to the emoji, and diversity; `intervals` has the ends of 95 %.
    """
    judge, out = Judge(images["teacher-50"], condition), {}
    for name, pixels in images.items():
        figures = judge(pixels)
        if name.endswith("consistency"):
            figures.pop("rmse")
        out[name] = {key: round(estimate.value, 5) for key, estimate in figures.items()}
        ends = {key: [round(e.low, 5), round(e.high, 5)] for key, e in figures.items() if e.known}
        out[name]["intervals"] = ends
    return out


def _picture(images, metrics):
    heads = {
        "teacher-50": "teacher\n50 steps, CFG 2",
        "base-4": "base\n4 steps, CFG 2",
        "distilled-1": "distilled\n1 step",
        "distilled-2": "distilled\n2 steps",
        "distilled-4": "distilled\n4 steps",
    }
    columns = {}
    for name in COLUMNS:
        note = "reference" if name == "teacher-50" else f"RMSE {metrics[name]['rmse']:.3f}"
        columns[f"{heads[name]}\n{note}"] = images[name][: len(SHOWN)]
    return pictures.grid(columns, list(SHOWN), "Same starting noise in every row", scale=3)
