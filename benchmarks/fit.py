"""What fitting a solver to the demo teachers brings, and costs.

    python benchmarks/fit.py [--teacher flow|epsilon] [--out benchmarks/results] [--trajectories N]
                             [--noises N] [--cache DIR]

The fit sees all labels but the first four, at CFG 2. On those four, with noise of their own, each way to
sample is held against the converged picture: RMSE in units of the data's standard deviation. The host's pair
is the best of all in hindsight: all are run on 8 of the noises, the best few of them on all. Seconds of the
cache are compared with as many bare model calls, which take turns with the cache's own. Writes
fit_<teacher>.json and a picture; prints the tables.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path

import core
import torch
from fewstep.diffusion.samplers import solve
from fewstep.diffusion.schedules import auto
from fewstep.training.formats.files import write_json
from fewstep.training.models.demo import data
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import Guided, for_sampler
from fewstep.training.reports import pictures
from fewstep.training.run.fit_denoiser import sample_recipe
from fewstep.training.run.fitting import FitConfig, SolverFit
from fewstep.training.trajectories.noises import start

CFG = 2.0
STEPS, SHOWN_STEPS, REFERENCE = (
    (1, 2, 3, 4, 6, 8),
    4,
    60,
)  # of the fits, of the picture, of what counts as exact
HELD_OUT = 4  # labels that the fit never sees
NOISES = 32
JUDGED, FINALISTS = 8, 8  # noises that every pair of the host's is run on; pairs that are run on all noises
ROWS = 8  # of the picture


class Without:
    """A `Denoiser` that lacks the first conditions of another."""

    def __init__(self, denoiser, first):
        self.denoiser, self.first, self.conditions = denoiser, first, denoiser.conditions - first
        self.path, self.sigma_of, self.shape = denoiser.path, denoiser.sigma_of, denoiser.shape
        self.noise_scale, self.base = denoiser.noise_scale, denoiser.base

    def __call__(self, x, sigma, condition):
        return self.denoiser(x, sigma, torch.where(condition < 0, condition, condition + self.first))


class Counted:
    """A guided teacher that counts its calls."""

    def __init__(self, teacher):
        self.teacher, self.calls = teacher, 0

    def __call__(self, x, sigma, condition):
        self.calls += 1
        self.last = (x, sigma, condition)
        return self.teacher(x, sigma, condition)


@torch.no_grad()
def build(run):
    """Fill the cache; (seconds, seconds of as many bare calls of the same batch, calls)."""
    counted = Counted(run.teacher)
    built, bare, calls = 0.0, 0.0, 0
    steps = run.cache.build(counted, run.config.trajectories)
    while True:
        began = time.perf_counter()
        done = next(steps, None)
        built += time.perf_counter() - began
        if done is None:
            return built, bare, counted.calls
        if counted.calls > calls:
            calls = counted.calls
            began = time.perf_counter()
            run.teacher(*counted.last)
            bare += time.perf_counter() - began


def fit(run):
    """Run the fit on a cache that is whole; {steps: seconds}."""
    seconds, stage = {}, None
    last = time.perf_counter()
    for progress in run.progress():
        now = time.perf_counter()
        if progress.fidelity is not None:  # not while it reads the cache
            if stage != progress.stage:
                stage, began = progress.stage, last
            steps = list(run.found)[-1]
            seconds[steps] = now - began
        last = now
    return seconds


class HeldOut:
    """The labels that no fit has seen, with noises of their own and the converged pictures."""

    def __init__(self, teacher, grid, noises):
        self.teacher, self.grid = teacher, grid
        self.condition = torch.arange(noises) % HELD_OUT
        self.noise = torch.randn(noises, *teacher.shape, generator=torch.Generator().manual_seed(7))
        self.deviation = float(data.load("train")[0].std())
        self.reference = self.auto(REFERENCE)
        self.accuracy = self.error(self.auto(REFERENCE // 2))

    def denoise(self, x, sigma):
        return for_sampler(self.teacher, self.condition[: len(x)], dtype=torch.float64)(x, sigma)

    def solved(self, name, steps, **options):
        """Our kernel along the grid of that name."""
        sigmas = self.grid(name, steps)
        path = self.teacher.path
        return solve(self.denoise, start(self.noise, sigmas, path), sigmas, path, **options)

    def auto(self, steps):
        options = auto.solver(self.grid("auto", steps), self.teacher.path, self.teacher.cfg)
        return self.solved("auto", steps, **options)

    def recipe(self, recipe):
        return sample_recipe(recipe, self.denoise, self.noise)

    def core(self, model, pair, noises):
        """A pair of the host's, on the first so many noises."""
        return core.run(model, core.sampler(pair.sampler), pair.sigmas, self.noise[:noises], self.denoise)[0]

    def errors(self, images):
        """Error of each image, (B,)."""
        off = images.double() - self.reference[: len(images)].double()
        return off.flatten(1).square().mean(1).sqrt() / self.deviation

    def error(self, images):
        """Error of all: the root of the mean square, infinite where there is no number."""
        value = float(self.errors(images).square().mean().sqrt())
        return value if math.isfinite(value) else math.inf


def best_pair(held, kind, nfe):
    """(images, name, how many pairs) of the host's best pair at that many calls; samplers that draw noise are
    left out.
    """
    model = core.model(f"teacher {kind}")
    every = core.core_pairs(model, nfe, report=lambda line: None)
    pairs = [pair for pair in every if not core.draws_noise(model, pair.sampler)]
    judged = sorted(pairs, key=lambda pair: held.error(held.core(model, pair, JUDGED)))
    finals = {pair.name: held.core(model, pair, len(held.noise)) for pair in judged[:FINALISTS]}
    best = min(finals, key=lambda name: held.error(finals[name]))
    return finals[best], best, len(pairs)


def measure(kind, trajectories, noises, folder, report=print):
    """(result, picture) for one teacher."""
    whole = DemoTeacher(kind)
    teacher = Guided(Without(whole, HELD_OUT), CFG, f"labels from {HELD_OUT} on")
    config = FitConfig(steps=STEPS, trajectories=trajectories, reference_steps=REFERENCE)
    run = SolverFit(teacher, config, folder)
    quick = SolverFit(teacher, dataclasses.replace(config, effort="quick"), folder)  # on the same cache
    began = time.perf_counter()
    seconds, bare, calls = build(run)
    if calls:
        report(f"cache: {calls} guided calls in {seconds:.1f} s, bare {bare:.1f} s")
    else:
        report("cache: was there")
    fits, quick_fits = fit(run), fit(quick)
    report(run.report())
    with torch.no_grad():
        held = HeldOut(Guided(whole, CFG), run.grid, noises)
        pair, pair_name, pairs = best_pair(held, kind, SHOWN_STEPS)
        images = {
            "Euler": held.solved("uniform", SHOWN_STEPS),
            "best core": pair,
            "auto": held.auto(SHOWN_STEPS),
            "fitted": held.recipe(run.recipe(SHOWN_STEPS)),
        }
        new = {}  # errors on the new labels
        for steps in STEPS:
            new[steps] = {"auto": held.error(held.auto(steps))}
            for name, done in (("fitted", run), ("quick", quick)):
                new[steps][name] = held.error(held.recipe(done.recipe(steps)))
        shown = held.auto(50)
    errors = {name: held.error(x) for name, x in images.items()}
    each = {name: held.errors(x) for name, x in images.items()}
    rows = [
        row | {"steps": row["count"], "seconds": fits[row["count"]], "new labels": new[row["count"]]}
        for row in run.rows
    ]
    result = {
        "teacher": kind,
        "cfg": CFG,
        "trajectories": trajectories,
        "reference_steps": REFERENCE,
        "noises": noises,
        "labels": whole.labels[:HELD_OUT],
        "reference_accuracy": held.accuracy,
        "cache": {
            "calls": calls,
            "seconds": seconds,
            "bare_seconds": bare,
            "ratio": seconds / bare if bare else None,
            "mib": run.cache.bytes(trajectories) / 2**20,
        },
        "fits": rows,
        "quick_seconds": quick_fits,
        "at_4_calls": errors,
        "core_pair": pair_name,
        "core_pairs": pairs,
        "each": {name: [round(v, 4) for v in values.tolist()] for name, values in each.items()},
        "seconds": time.perf_counter() - began,
        "recipe": json.loads(run.recipe(SHOWN_STEPS).to_json()),
    }
    fitted = "fitted" if result["recipe"]["method"] == "fitted" else "fit: no gain, classical"
    heads = {
        "Euler": "Euler\n4 steps",
        "best core": f"best in ComfyUI\n{pair_name}\n4 calls",
        "fitted": f"{fitted}\n4 steps",
    }
    columns, notes = {"teacher\n50 steps": shown}, {}
    for name, head in heads.items():
        head += f"\nRMSE {errors[name]:.3f}"
        columns[head] = images[name]
        notes[head] = [f"{value:.3f}" for value in each[name][:ROWS]]
    rows = [whole.labels[number] for number in held.condition[:ROWS]]
    return result, picture(columns, rows, notes)


def picture(columns, rows, notes):
    """Images {head: (B, ...)} from the same noise side by side, each with its note (its error) under it."""
    pixels = {name: data.to_pixels(x[:ROWS]) for name, x in columns.items()}
    return pictures.grid(pixels, rows, "Labels and noise that the fit has not seen", scale=3, notes=notes)


def show(result):
    """The tables, as markdown."""
    cache = result["cache"]
    print(f"\n{result['teacher']}: {result['trajectories']} trajectories, {result['seconds']:.0f} s in all")
    if cache["ratio"]:
        print(
            f"cache {cache['seconds']:.1f} s for {cache['calls']} guided calls, {cache['ratio']:.3f} of the "
            f"bare model's time; {cache['mib']:.1f} MiB"
        )
    print("\n| steps | fitted | on new noise | auto | seconds | fitted, new labels | auto, new labels |")
    print("|---" * 7 + "|")
    for row in result["fits"]:
        new = row["new labels"]
        fitted = f"{row['fitted']:.4f}{'' if row['gained'] else ' (no gain)'}"
        print(
            f"| {row['steps']} | {fitted} | {row['low']:.4f} to {row['high']:.4f} | {row['auto']:.4f} | "
            f"{row['seconds']:.0f} | {new['fitted']:.4f} | {new['auto']:.4f} |"
        )
    print(f"\n| 4 calls, {result['noises']} new noises and {HELD_OUT} new labels | RMSE / deviation |")
    print("|---|---|")
    for name, value in result["at_4_calls"].items():
        print(f"| {name + ': ' + result['core_pair'] if name == 'best core' else name} | {value:.4f} |")
    errors = result["at_4_calls"]
    print(
        f"fitted / best of {result['core_pairs']} core pairs {errors['fitted'] / errors['best core']:.3f}, "
        f"fitted / Euler {errors['fitted'] / errors['Euler']:.3f}; reference moved by "
        f"{result['reference_accuracy']:.4f} from half its steps",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--teacher", choices=("flow", "epsilon"), help="only this one")
    parser.add_argument("--trajectories", type=int, default=64, help="of the fit (default: %(default)s)")
    parser.add_argument(
        "--noises", type=int, default=NOISES, help=f"to compare on, {JUDGED} or more (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, help="keep the trajectories there; what is there is not timed again"
    )
    args = parser.parse_args()
    if args.noises < JUDGED:
        parser.error(f"--noises must be {JUDGED} or more, got {args.noises}")
    args.out.mkdir(parents=True, exist_ok=True)
    core.start()
    for kind in [args.teacher] if args.teacher else ["flow", "epsilon"]:
        with tempfile.TemporaryDirectory() as temporary:
            result, image = measure(kind, args.trajectories, args.noises, args.cache or temporary)
        write_json(args.out / f"fit_{kind}.json", result)
        image.save(args.out / f"fit_{kind}.png")
        show(result)


if __name__ == "__main__":
    main()
