"""Can the measure tell? Teacher against teacher, trained students and the untrained model, with intervals.

    python benchmarks/distances.py [--json FILE] [--pictures N] [--updates N] [--methods a,b]
                                   [--teachers a,b] [--work FOLDER]

For each teacher N noises over all labels; from the same noises the teacher's 50 steps of order 2, the
untrained model at the teacher's guidance, and a LoRA of each method, trained for that many updates, in 1, 2,
4 and 8 steps on one grid; and the teacher again from N other noises, which is the floor.

The first table has the figures of `training.models.demo.judge` with 95 % intervals, and for each row which
rows its distance to the teacher is *not* apart from. The second compares measures on the same pictures: for
each how many pictures it takes until the intervals of teacher-against-teacher and of what is judged have
nothing in common (of half widths W and a distance d from the floor's expectation, 0, that is
N ((W1 + W2) / d)^2, as intervals shrink with the root of N). "Other noises" judges against the teacher's
other set, as published figures do.

On one core at the defaults some eight minutes a teacher, of which the teacher's own pictures take half.
--work keeps pictures, and another call goes on from them.
"""

import argparse
import math
import tempfile
from pathlib import Path

import torch
from fewstep.training import methods
from fewstep.training.formats.files import write_json
from fewstep.training.models.demo import data
from fewstep.training.models.demo.features import layers
from fewstep.training.models.demo.judge import FIGURES, Judge
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports.distances import Estimate, scale_of, share
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from fewstep.training.trajectories.noises import noises
from safetensors.torch import load_file, save_file

CFG, STEPS, SEED = 2.0, (1, 2, 4, 8), 1_000_000
TEACHER, OTHER, BASE = "teacher, 50 steps", "teacher, other noises", "untrained"


# ---- pictures --------------------------------------------------------------------------------------


def made(kind, args):
    """{name: pixels (N, 3, 32, 32)} of a teacher and its students."""
    teacher = DemoTeacher(kind)
    noise = noises(SEED, range(2 * args.pictures), teacher.shape)
    condition = torch.arange(args.pictures) % teacher.conditions
    halves = noise.split(args.pictures)
    run = Run(teacher, DistilConfig(cfg=CFG))
    sigmas = run.task.sigmas_for
    jobs = {
        name: lambda half=half: run.student.sample_base(half, condition, sigmas(50), order=2)
        for name, half in zip((TEACHER, OTHER), halves)
    }
    for steps in STEPS:
        jobs[f"{BASE}, {steps}"] = lambda steps=steps: run.student.sample_base(
            halves[0], condition, sigmas(steps)
        )
    found = {name: kept(args.work / f"{kind} {name}", job) for name, job in jobs.items()}
    run.close()
    for method in args.methods:
        found |= student(kind, method, args, halves[0], condition)
    return found, condition


def student(kind, method, args, noise, condition):
    """{name: pixels} of a method's LoRA, which is trained where its pictures are not there."""
    names = {steps: args.work / f"{kind} {method} {args.updates}, {steps}" for steps in STEPS}
    trained = []

    def sample(steps):
        if not trained:
            images = max(64, round(1400 * args.updates / 720))
            config = DistilConfig(method=method, cfg=CFG, updates=args.updates, images=images)
            trained.append(Run(DemoTeacher(kind), config))
            for _ in trained[0].progress():
                pass
        run = trained[0]
        sigmas, churn = run.task.sigmas_for(steps), run.task.churn
        return run.student.sample(noise, condition, sigmas, adapter=run.adapter, churn=churn)

    return {f"{method}, {n}": kept(path, lambda n=n: sample(n)) for n, path in names.items()}


def kept(path, job):
    """The pixels in that file, or those of the job's latents, which are written there."""
    path = path.with_name(f"{path.name}.safetensors")
    if path.exists():
        return load_file(path)["pixels"]
    pixels = data.to_pixels(job().cpu()).clamp(-1, 1)
    save_file({"pixels": pixels.contiguous()}, path)
    return pixels


# ---- the first table -------------------------------------------------------------------------------


def judged(kind, pictures, judge):
    """A row for each set of pictures."""
    rows, last = [], FEATURES["classifier, last layer"]
    reference = last(pictures[TEACHER])
    for name, pixels in pictures.items():
        figures = judge(pixels)
        if name == OTHER:  # another picture of each label, not one from the same noise
            figures.pop("rmse")
        found = {key: list_of(value) for key, value in figures.items()}
        far = frechet(last(pixels), reference)
        rows.append({"teacher": kind, "name": name, "figures": found, "frechet": far})
    for row in rows:
        own = Estimate(*row["figures"]["distance_teacher"])
        row["not_apart"] = [
            other["name"]
            for other in rows
            if other is not row and not own.apart(Estimate(*other["figures"]["distance_teacher"]))
        ]
    return rows


def list_of(estimate):
    """[value, low, high]."""
    return [estimate.value, estimate.low, estimate.high]


def show(rows):
    """The first table."""
    print(
        "\n| | RMSE | distance to teacher | to data | diversity | not apart from |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        cells = [text(row["figures"].get(figure)) for figure in FIGURES]
        print(f"| {row['teacher']}: {row['name']} | {' | '.join(cells)} | {'; '.join(row['not_apart'])} |")


def text(figure):
    """value (low to high)."""
    return "–" if figure is None else "{:.3f} ({:.3f} to {:.3f})".format(*figure)


# ---- which measure ---------------------------------------------------------------------------------


def spread(layer):
    """Mean and deviation over places."""
    return torch.cat([layer.mean((2, 3)), layer.std((2, 3))], 1)


FEATURES = {
    "classifier, last layer": lambda pixels: layers(pixels)[-1].mean((2, 3)),
    "classifier, all layers": lambda pixels: torch.cat([spread(layer) for layer in layers(pixels)], 1),
    "pixels": lambda pixels: pixels.flatten(1),
}


def energy(a, b):
    """Pair distances of the energy distance."""
    return torch.cdist(a, b)


def gaussian(width):
    """Pair distances of the squared MMD with a Gaussian kernel, as wide as that share of the median."""

    def pairs(a, b):
        return -torch.exp(-torch.cdist(a, b).square() / (2 * width**2))

    return pairs


KERNELS = {"energy": energy, "Gaussian": gaussian(0.5)}


def pairs_of(kernel, a, b):
    """h (N, N) whose mean over i != j is the distance of two sets by that kernel."""
    across = kernel(a, b)
    return across + across.T - kernel(a, a) - kernel(b, b)


def frechet(a, b):
    """Frechet distance of the Gaussians fitted to features (N, D) and (M, D): Heusel et al. 2017,
    arXiv:1706.08500, eq. 6. It has no unbiased estimate; here to show that it can't tell.
    """
    a, b = a.double(), b.double()
    of_a, of_b = torch.cov(a.T), torch.cov(b.T)
    root = square_root(of_a)
    mixed = square_root(root @ of_b @ root).trace()
    return float((a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * mixed)


def square_root(matrix):
    """Of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def needed(floor, found, count):
    """Pictures until the two intervals have nothing in common; the floor's expectation is 0."""
    width = (floor.high - floor.low + found.high - found.low) / 2
    return count * (width / abs(found.value)) ** 2 if found.value else math.inf


def compared(kind, pictures, judge):
    """A row for each measure: how many pictures each comparison takes."""
    rows, emoji = [], data.to_pixels(data.load("all")[0])
    names = [name for name in pictures if name not in (TEACHER, OTHER)]
    for features, see in {**FEATURES, "middle block": judge.features}.items():
        scaled = scale_of(see(emoji))
        seen = {name: scaled(see(pixels)) for name, pixels in pictures.items()}
        middle = torch.cdist(seen[TEACHER], seen[TEACHER]).median()
        for name in seen:
            seen[name] = seen[name] / middle
        for noise, reference in (("same noises", TEACHER), ("other noises", OTHER)):
            for title, kernel in KERNELS.items():
                ones = torch.ones(len(seen[TEACHER]), len(seen[TEACHER]), dtype=torch.float64)
                floor = share(pairs_of(kernel, seen[OTHER], seen[TEACHER]), ones)
                need = {}
                for name in names:
                    found = share(pairs_of(kernel, seen[name], seen[reference]), ones)
                    need[name] = needed(floor, found, len(ones))
                measure = f"{features}; {title}; {noise}"
                rows.append({"teacher": kind, "measure": measure, "pictures": need})
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--pictures", type=int, default=256, help="of each set (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=160, help="of each student (default: %(default)s)")
    parser.add_argument("--methods", default="phased", help="separated by commas (default: %(default)s)")
    parser.add_argument("--teachers", default="flow", help="separated by commas (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder to keep pictures in")
    args = parser.parse_args()
    args.methods = [methods.get(name).name for name in args.methods.split(",") if name]
    torch.set_num_threads(1)
    rows, measures = [], []
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or Path(folder)
        args.work.mkdir(parents=True, exist_ok=True)
        for kind in args.teachers.split(","):
            pictures, condition = made(kind, args)
            judge = Judge(pictures[TEACHER], condition)
            rows += judged(kind, pictures, judge)
            measures += compared(kind, pictures, judge)
            if args.json:
                write_json(args.json, {"pictures": args.pictures, "rows": rows, "measures": measures})
    show(rows)
    print("\nPictures that it takes until the intervals are apart from teacher against teacher:")
    for row in measures:
        cells = (f"{name} {count:.0f}" for name, count in row["pictures"].items())
        print(f"{row['teacher']}: {row['measure']}: {'; '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
