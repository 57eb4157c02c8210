"""Our trainer beside an independent run of the LCM-LoRA recipe (`lcm_recipe`), both demo teachers, CFG 2.

    python benchmarks/distil.py --json benchmarks/results/distil.json            everything; some nine hours
    python benchmarks/distil.py --quick                                          a proof that it runs: minutes
    python benchmarks/distil.py --json FILE --only anchored                      one method's rows
    python benchmarks/distil.py --json FILE --picture FILE                       what runs of --seconds draw

Rows that the file holds are kept, each new one is saved as soon as it is known, and the same command goes on
where it was stopped. A row is one run, in a process of its own on one thread and one core, --at-once of them
at the same time. In this order, for each teacher:

1. its own pictures and the floor; the untrained model
2. --seconds of every method, with the teacher's pictures; those that learn from pictures also on the emoji,
   as the recipe does; the recipe at the rates of RATES, and at further ones until the best has a worse one on
   both sides, by RMSE and by distance at 4 steps
3. --seconds of `distil_table.MAIN` made for --steps, and with seeds 1 to --seeds - 1 the same and the
   recipe's best rates
4. --long seconds of these, seed 0

**Seconds** are the process's own, of CPU (of the clock on CUDA), from the start of a run to its last update,
the teacher's trajectories and the run's own measurements included: so other load on the machine changes no
result, only how long one waits. Each side has its own defaults, which is what a user runs: ours a rank of 16
and one rate, given beforehand; the recipe a rank of 64 and the best rate in hindsight. The same for both:
batch 16, float32, every Linear and convolution layer. Ours has to know its length: a trial takes the time of
a few updates, and after each eighth what is left is counted anew from the run's own speed.

Figures at 1, 2, 4 and 8 steps, each with a 95 % interval over the pictures ("intervals"; not over seeds):

rmse              to the teacher's 50 steps of order 2 from the same noise, pixels in 0..1
distance_teacher  energy distance to those pictures, distance_data to the emoji of the same labels, as shares
                  (`training.models.demo.judge`; docs/findings/distances.md tells why); "floor", once for each
                  teacher: its own pictures from other noises
diversity         mean distance of two pictures of one label, as a share of the teacher's

Ours is sampled as its own recipe says; the LCM-LoRA by the best of its samplers in hindsight
(`lcm_recipe.SAMPLERS`), for each figure and step count, and the untrained model (at CFG 2, twice the calls)
by the best of orders 1 and 2 with and without our shift.
"""

import argparse
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from distil_picture import draw
from distil_run import KEY, TRIAL, length, one
from distil_table import (
    BASE,
    MAIN,
    RECIPE,
    RIVALRY,
    TEACHER,
    USUAL_STEPS,
    best_rates,
    line,
    of,
    ranked,
    show,
    summary,
)
from fewstep.training import methods
from fewstep.training.formats.files import write_json

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
RATES = (3e-5, 1e-4, 3e-4)
FIXED = {"lr": None, "asked": 0, "seed": 0}  # of what is not trained
QUICK = {
    "seconds": 12.0,
    "long": 0.0,
    "seeds": 1,
    "steps": [],
    "noises": 28,
    "teachers": ["flow"],
    "only": ["phased"],
}


def key(row):
    """What tells a row, or the job of one, from all others."""
    return tuple(row[name] for name in KEY)


# ---- which runs ----------------------------------------------------------------------------------------


def rates(rows):
    """The recipe's rates to try, by those that were: more until the best by each figure is between two."""
    tried = sorted(row["lr"] for row in rows)
    found = set(RATES)
    if set(RATES) <= set(tried):
        for figure in RIVALRY:
            place = LADDER.index(ranked(rows, figure)[0])
            found |= set(LADDER[max(0, place - 1) : place + 2])
    return sorted(found)


def wanted(kind, rows, args):
    """The jobs on one teacher that can be told by now, in their order."""
    same = {"teacher": kind, "device": args.device, "noises": args.noises}

    def job(method, pictures="teacher", lr=None, asked=args.seconds, seed=0, steps=USUAL_STEPS):
        given = {"method": method, "pictures": pictures, "lr": lr, "steps": steps}
        return {**same, **given, "asked": asked, "seed": seed}

    def ours(main, asked, seed, made_for):
        for steps, name in itertools.product(made_for, main):
            if methods.get(name).least_steps <= steps:
                yield job(name, asked=asked, seed=seed, steps=steps)

    def all_of(main, asked, seed):
        yield from ours(main, asked, seed, (USUAL_STEPS, *args.steps))
        yield from (job(RECIPE, "real", lr, asked, seed) for lr in best)

    yield from ({**job(name), **FIXED} for name in (TEACHER, BASE))
    yield from (job(name) for name in args.only)
    yield from (job(name, "real") for name in args.only if methods.get(name).needs == "images")
    tried = of(rows, **same, method=RECIPE, asked=args.seconds, seed=0)
    to_try = RATES if args.quick else rates(tried)
    yield from (job(RECIPE, "real", lr) for lr in to_try)
    if not set(to_try) <= {row["lr"] for row in tried}:
        return  # which rate is best isn't known yet
    best, main = best_rates(tried), [name for name in MAIN if name in args.only]
    yield from ours(main, args.seconds, 0, args.steps)
    for seed in range(1, args.seeds):
        yield from all_of(main, args.seconds, seed)
    if args.long:
        yield from all_of(main, args.long, 0)


# ---- running them --------------------------------------------------------------------------------------


class Runner:
    """Runs jobs in processes of their own, each on a core of its own; folder: of the teachers' pictures."""

    def __init__(self, args, folder):
        self.args, self.folder, self.trials = args, folder, {}
        self.cores = queue.Queue()
        for core in sorted(_cores())[: args.at_once]:
            self.cores.put(core)

    def row(self, job):
        """The job's row; None, with a line, when it fails."""
        core = self.cores.get()
        try:
            if job["method"] in (TEACHER, BASE, RECIPE):
                return self._child(job, core)
            times = self._trial(job, core)
            if times is None:
                return None
            updates, images = length(times, job)
            return self._child({**job, "updates": updates, "images": images}, core)
        finally:
            self.cores.put(core)

    def _trial(self, job, core):
        """What a trial of that method took; each is made once."""
        which = job["teacher"], job["method"], job["pictures"], job["steps"]
        if which not in self.trials:
            self.trials[which] = self._child({**job, "pictures": TRIAL, "of": job["pictures"]}, core)
        return self.trials[which]

    def _child(self, job, core):
        command = [sys.executable, __file__, "--one", json.dumps(job), "--work", str(self.folder)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FEWSTEP_CORE": str(core)},
        )
        if done.returncode:
            print(f"FAILED ({done.returncode}): {job}", flush=True)
            return None
        return json.loads(done.stdout.splitlines()[-1])


def _cores():
    """The cores that this process may use; numbers where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def run_missing(args, rows, save, folder):
    """Run what `rows` lack, and append it."""
    runner, failed = Runner(args, folder), set()
    with ThreadPoolExecutor(args.at_once) as pool:
        while True:
            have = {key(row) for row in rows} | failed
            jobs = [job for kind in args.teachers for job in wanted(kind, rows, args) if key(job) not in have]
            if not jobs:
                return
            first = [
                job for job in jobs if job["method"] == TEACHER
            ]  # others read the pictures that it makes
            running = {pool.submit(runner.row, job): job for job in first or jobs}
            for future in as_completed(running):
                row = future.result()
                if row is None:
                    failed.add(key(running[future]))
                    continue
                rows.append(row)
                save()
                print(line(row), flush=True)


# ---- the command line ----------------------------------------------------------------------------------


def some_of(known):
    """A type for argparse: names from `known`, separated by commas."""

    def names(text):
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name}: {', '.join(known)}")
        return found

    return names


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there; those that it holds are kept")
    parser.add_argument("--quick", action="store_true", help="short runs of one method on one teacher")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: %(default)g)")
    parser.add_argument(
        "--long", type=float, default=900.0, help="of the long ones, 0 for none (%(default)g)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the main ones (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=lambda text: [int(part) for part in text.split(",") if part],
        default=[2],
        help="that the main ones are made for too, beside 4 (default: 2)",
    )
    parser.add_argument("--teachers", type=some_of(("flow", "epsilon")), default=["flow", "epsilon"])
    parser.add_argument(
        "--only", type=some_of(methods.names()), default=list(methods.names()), help="these methods of ours"
    )
    parser.add_argument("--noises", type=int, default=256, help="to judge on (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the teachers' pictures (default: beside the JSON file)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="draw the main runs of --seconds on the first of --teachers, and run nothing",
    )
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, value)
    if args.device == "cuda":
        args.at_once = 1
    return args


def main():
    args = arguments()
    if args.one:
        if hasattr(os, "sched_setaffinity") and "FEWSTEP_CORE" in os.environ:
            os.sched_setaffinity(0, {int(os.environ["FEWSTEP_CORE"])})
        print(json.dumps(one(args.one, args.work)))
        return
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    rows = [{"steps": USUAL_STEPS, **row} for row in rows]
    if args.picture:
        folder = args.work or args.json.with_suffix(".work")
        draw(rows, args.teachers[0], args.seconds, folder, args.picture)
        return

    def save():
        if args.json:
            write_json(args.json, {"rows": rows, "summary": summary(rows)})

    with tempfile.TemporaryDirectory() as folder:
        work = args.work or (args.json.with_suffix(".work") if args.json else Path(folder))
        work.mkdir(parents=True, exist_ok=True)
        run_missing(args, rows, save, work)
    save()
    show(rows)


if __name__ == "__main__":
    main()
