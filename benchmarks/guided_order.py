"""What *auto* makes of strong guidance in few steps, beside order 1 and order 2 whatever the guidance.

    python benchmarks/guided_order.py [--json FILE] [--cfg 1,2,3,4,6] [--cases a,b]      some 20 minutes

RMSE to the converged ODE from the same noise, in units of the data's standard deviation, all on the automatic
grid. The cases: mixtures and clouds of emoji whose parts have labels, with exact conditional and
unconditional predictions, and the demo teachers. The rule by which *auto* takes its order was found on the
teachers and the mixtures, with other noises on the teachers; the emoji had no say.
"""

import argparse
import json
from pathlib import Path

import exact
import torch
from fewstep.diffusion.schedules import auto, grids
from fewstep.training.formats.files import write_json
from fewstep.training.models.demo import data
from tasks import GuidedTeacher, sampled, start

STEPS = (2, 3, 4, 5, 6, 8, 10)
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
CLASSES, NOISES, PICTURES = 4, 64, 16  # labels of a mixture; noises of a mixture, and of pictures
MIXTURES = ("2d-flow1", "8d-flow3", "32d-eps", "8d-edm")
EMOJI = ("emoji-flow1", "emoji-eps")
TEACHERS = ("teacher-flow", "teacher-epsilon")
CASES = (*MIXTURES, *EMOJI, *TEACHERS)
SOLVERS = {
    "order 1": lambda sigmas, path, cfg: {"order": 1},
    "order 2 with corrector": lambda sigmas, path, cfg: {"order": 2, "corrector": True},
    "auto": auto.solver,
}


class GuidedCloud:
    """An exact denoiser with guidance: x0 = u + cfg (c - u), c that of a row's own label."""

    def __init__(self, case, labels, condition, cfg):
        self.case, self.condition, self.cfg = case, condition, cfg
        whole = case.cloud
        self.of_label = {}
        for label in condition.unique().tolist():
            own = labels == label
            share = whole.weights[own] / whole.weights[own].sum()
            self.of_label[label] = exact.Cloud(whole.means[own], share, whole.std, whole.shape)

    def __call__(self, x, sigma):
        unconditional = self.case.denoise(x, sigma)
        conditional = torch.empty_like(x)
        for label, cloud in self.of_label.items():
            rows = self.condition == label
            conditional[rows] = cloud.denoise(x[rows], self.case.path, sigma)
        return unconditional + self.cfg * (conditional - unconditional)


def guided_case(name, cfg):
    """(denoiser, path, sigma_of, unit noise, lowest level, deviation, limits of `exact.converged`)."""
    generator = torch.Generator().manual_seed(7)
    if name in TEACHERS:
        denoise = GuidedTeacher(name.removeprefix("teacher-"), cfg, torch.arange(PICTURES) % 14)
        teacher = denoise.teacher
        noise = torch.randn(PICTURES, *teacher.shape, generator=generator, dtype=torch.float64)
        low = float(teacher.sigma_of(torch.tensor([1e-3])))
        limits = {"tolerance": 5e-3, "steps": 80, "most": 320}
        deviation = float(data.load("train")[0].std())
        return denoise, teacher.path, teacher.sigma_of, noise, low, deviation, limits
    case = exact.case(name)
    if name in EMOJI:
        labels, count = data.load("all", core=False)[1], PICTURES
        offered = torch.tensor(list(data.label_numbers().values()))
        condition, limits = offered[torch.arange(count) % len(offered)], {"tolerance": 1e-3, "most": 2000}
    else:
        labels, count = torch.arange(len(case.cloud.means)) % CLASSES, NOISES
        condition, limits = torch.arange(count) % CLASSES, {"tolerance": 1e-3}
    noise = torch.randn(count, *case.cloud.shape, generator=generator, dtype=torch.float64)
    denoise = GuidedCloud(case, labels, condition, cfg)
    return denoise, case.path, case.sigma_of, noise, case.low, case.deviation, limits


@torch.no_grad()
def measured(name, cfg):
    """{"case", "cfg", "accuracy", "errors": {solver: [for each of STEPS]}}."""
    denoise, path, sigma_of, noise, low, deviation, limits = guided_case(name, cfg)
    top = float(sigma_of(torch.ones(1, dtype=torch.float64)))
    first = start(noise, top, top, path)
    reference, accuracy = exact.converged(denoise, first, path, top, low, deviation, **limits)
    errors = {}
    for solver, options in SOLVERS.items():
        errors[solver] = []
        for steps in STEPS:
            sigmas = grids.grid("auto", steps, sigma_of, path, dimension=noise[0].numel())
            images = sampled(denoise, noise, sigmas, sigma_of, path, **options(sigmas, path, cfg))
            errors[solver].append(exact.rmse(images, reference) / deviation)
    return {"case": name, "cfg": cfg, "accuracy": accuracy, "errors": errors}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there; those that it holds are kept")
    parser.add_argument(
        "--cfg", type=lambda text: [float(part) for part in text.split(",")], default=STRENGTHS
    )
    parser.add_argument("--cases", type=lambda text: text.split(","), default=CASES)
    args = parser.parse_args()
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    have = {(row["case"], row["cfg"]) for row in rows}
    print(f"{'steps':44}", *(f"{steps:7}" for steps in STEPS))
    for name in args.cases:
        for cfg in args.cfg:
            if (name, cfg) not in have:
                rows.append(measured(name, cfg))
                if args.json:
                    write_json(args.json, {"steps": STEPS, "rows": rows})
    for row in rows:
        for solver, errors in row["errors"].items():
            head = f"{row['case']}, CFG {row['cfg']:g}: {solver}"
            print(f"{head:44}", *(f"{error:7.4f}" for error in errors))


if __name__ == "__main__":
    main()
