"""The unified diffusion model on the demo: how well destroyed pictures are restored, and what renewing noise
does.

    python benchmarks/udm.py [--json FILE] [--teacher flow|epsilon] [--updates N]
                             [--only restoration|ablation]

Restoration: one LoRA for each process, trained from the packaged teacher to undo it at all strengths, on
emoji of every label (the teacher's own training set) with no label given. Judged on the emoji that neither
teacher nor LoRA was trained on, destroyed to three times t of the process, restored in 1 and 4 steps. PSNR in
dB, pixels in 0..1, mean over the pictures. The baseline is the best of no restoration at all and, for
squares, bicubic interpolation between their centres; for missing pixels, the mean of those that are left
nearby. Beside it stands, for blur, the Wiener filter that knows the blur, the noise and the emoji's mean
power: what is possible without a model where the blur itself is known. Pictures without noise are rounded to
8 bits first, as in a file.

Ablation: models that draw pictures from noise, on the Gaussian process (the teacher itself, with no guidance)
and on hot blur (a LoRA that undoes blur + noise), in 4, 8 and 20 steps with a share kappa (Su's sigma~) of
the noise renewed in each step. Energy distance of the pictures to the emoji, which are known whole, in the
features of `training.models.demo.judge`, with its 95 % interval: lower is better.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from fewstep.diffusion.destruction.degradations import cosines, fall
from fewstep.diffusion.samplers import batch_noise
from fewstep.training.formats.files import write_json
from fewstep.training.methods.restoration import restore, times_for
from fewstep.training.models.demo import data
from fewstep.training.models.demo.judge import eye
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports.distances import known_pairs, scale_of, share
from fewstep.training.reports.pictures import grid
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from fewstep.training.trajectories.data import Data
from torch.nn import functional as F

PROCESSES = {
    "pixelate": [{"kind": "pixelate", "largest": 8}],
    "blur": [{"kind": "blur", "width": 3.0}],
    "mask": [{"kind": "mask"}],
    "blur + noise": [{"kind": "blur", "width": 3.0}, {"kind": "noise", "strength": 0.2}],
}
STRENGTHS = (1 / 3, 2 / 3, 1.0)
HOT = [{"kind": "blur", "width": 8.0}, {"kind": "gaussian"}]
SHARES, STEPS = (0.0, 0.3, 0.6, 1.0), (4, 8, 20)
BITS = 1 / 127.5 / 12**0.5 / data.STD  # what rounding to 8 bits adds, in model space
RESULTS = Path(__file__).parent / "results"


class Unlabelled(DemoTeacher):
    """The packaged teacher asked for any emoji: its only condition is no label."""

    def __init__(self, kind, device="cpu"):
        super().__init__(kind, device)
        self._labels, self.conditions = self._labels[-1:], 1

    def __call__(self, x, sigma, condition):
        return super().__call__(x, sigma, torch.zeros_like(condition))


def trained(teacher, process, updates, seed=0, images=None):
    """A `Restoration` after its run, on the emoji that are not held out."""
    images = data.load("train", core=False)[0] if images is None else images
    config = DistilConfig(
        method="restoration",
        process=process,
        steps=1,
        updates=updates,
        batch=16,
        rank=32,
        seed=seed,
        images=8,
    )
    unlabelled = torch.zeros(len(images), dtype=torch.long)
    run = Run(teacher, config, data=Data(images=images, condition=unlabelled))
    for _ in run.progress():
        pass
    return run


def psnr(pixels, reference):
    """Mean over pictures of the peak signal-to-noise ratio, dB; pixels in [-1, 1]."""
    error = (pixels.clamp(-1, 1) - reference.clamp(-1, 1)).div(2).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def baselines(kind, x, t, process, noise):
    """{name: pictures} restored without a model from x: destroyed to t by `process`, and noise of that
    standard deviation.
    """
    found = {"none": x}
    if kind == "pixelate":
        size = 2 ** math.ceil(3 * t)
        small = F.avg_pool2d(x, size)
        found["bicubic"] = F.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False)
    if kind == "mask":
        known = (x != 0).any(1, keepdim=True).float()
        for width in (3, 5, 9):
            weight = F.avg_pool2d(known, width, 1, width // 2, count_include_pad=False)
            total = F.avg_pool2d(x * known, width, 1, width // 2, count_include_pad=False)
            found[f"mean of {width} x {width}"] = torch.where(known > 0, x, total / weight.clamp_min(1e-6))
    if kind == "blur":
        found["Wiener"] = wiener(process, x, t, noise)
    return found


def wiener(process, x, t, noise):
    """The best linear guess of blurred pictures, mode by mode, by the mean power of the training emoji.

    In every cosine mode y = g x + n, n of standard deviation `noise` and x of mean m and variance P:
    x = m + P g / (P g^2 + noise^2) (y - g m).
    """
    whole, c = data.load("train", core=False)[0].double(), cosines(x.shape[-1])
    modes = c @ whole @ c.T
    mean, power = modes.mean(0), modes.var(0)
    gain = fall(x.shape[-1], process.std(torch.tensor(t, dtype=torch.float64)))
    gain = gain[:, None] * gain
    guess = mean + power * gain / (power * gain**2 + noise**2) * (c @ x.double() @ c.T - gain * mean)
    return (c.T @ guess @ c).float()


@torch.no_grad()
def restored(run, x, t, steps):
    """Pictures restored from time t in that many steps."""

    def call(x, sigma):
        return run.student.asked(x, sigma, torch.zeros(len(x), dtype=torch.long))

    with run.student.lora.using(run.adapter):
        *_, last = restore(call, run.task.seen, x, t * times_for(steps), 0.0, batch_noise(1))
    return last.x


def show_head(*heads):
    """The head of a table."""
    print(f"\n| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|", flush=True)


def show(*cells):
    """A row of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def destroyed(process, whole, noise, t):
    """Pictures destroyed to t; without noise they are rounded as a file would hold them."""
    x = process.corrupt(whole, noise, t)
    return x if process.noisy else data.from_pixels((data.to_pixels(x) * 127.5).round() / 127.5)


def restoration(teacher, updates):
    """Rows of restored against best baseline, and pictures {heading: pixels} of the second strength."""
    truth = data.load("held-out", core=False)[0]
    reference, rows, pictures = data.to_pixels(truth), [], {}
    for name, process in PROCESSES.items():
        kind = process[0]["kind"]
        began = time.perf_counter()
        run = trained(teacher, process, updates)
        seconds = time.perf_counter() - began
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(7))
        for number, t in enumerate(STRENGTHS):
            if kind == "mask":
                t = min(t, 0.9)  # at 1 nothing is left of a picture
            x = destroyed(run.task.seen.process, truth, noise, t)
            first = getattr(run.task.seen.process, "degradations", [run.task.seen.process])[0]
            spread = (
                float(run.task.seen.process.noise(t))
                if run.task.seen.process.noisy and kind != "mask"
                else BITS
            )
            guesses = baselines(kind, x, t, first, spread)
            known = {k: psnr(data.to_pixels(guess), reference) for k, guess in guesses.items()}
            linear = known.pop("Wiener", None)
            best = max(known, key=known.get)
            ours = {steps: restored(run, x, t, steps) for steps in (1, 4)}
            found = {steps: psnr(data.to_pixels(v), reference) for steps, v in ours.items()}
            row = {
                "process": name,
                "strength": round(t, 3),
                "restored": found[1],
                "restored_4_steps": found[4],
                "best_baseline": known[best],
                "baseline": best,
                "wiener": linear,
                "seconds": seconds,
            }
            rows.append(row)
            wiener_cell = f"{linear:.2f}" if linear else "–"
            figures = (f"{found[1]:.2f}", f"{found[4]:.2f}", f"{known[best]:.2f} ({best})", wiener_cell)
            show(name, f"{t:.2f}", *figures)
            if number == 1:
                pictures[f"{name}\n{t:.2f}"] = data.to_pixels(x[:6])
                pictures[f"restored\n{found[1]:.1f} dB"] = data.to_pixels(ours[1][:6])
        run.close()
    return rows, {"whole": reference[:6], **pictures}


def ablation(teacher, updates, count=128):
    """Rows of distances to the emoji for each process, number of steps and share of renewed noise."""
    whole = data.load("all", core=False)[0]
    features, rows = eye(), []
    known = features(data.to_pixels(whole))
    scaled, alike = scale_of(known), torch.zeros(len(known), dtype=torch.long)
    unlabelled = torch.zeros(count, dtype=torch.long)
    noise = torch.randn(count, *teacher.shape, generator=torch.Generator().manual_seed(11))
    for name, process, length in (("Gaussian", [{"kind": "gaussian"}], 1), ("hot blur", HOT, updates)):
        run = trained(teacher, process, length, images=whole)
        adapter = run.adapter
        if name == "Gaussian":  # the teacher itself
            adapter = [torch.zeros_like(p) for p in run.student.lora.parameters()]
        for steps in STEPS:
            distances = {}
            for kappa in SHARES:
                x = run.task.restored(adapter, run.task.destroyed(noise, noise), unlabelled, steps, kappa)
                seen = scaled(features(data.to_pixels(x)))
                found = share(*known_pairs(seen, unlabelled, scaled(known), alike))
                distances[kappa] = found.value
                figures = {"distance": found.value, "interval": [found.low, found.high]}
                rows.append({"process": name, "steps": steps, "kappa": kappa, **figures})
            best = min(distances, key=distances.get)
            show(name, steps, *(f"{value:.3f}" for value in distances.values()), f"{best:g}")
        run.close()
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--teacher", choices=("flow", "epsilon"), default="flow")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--only", choices=("restoration", "ablation"))
    args = parser.parse_args()
    teacher = Unlabelled(args.teacher)
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}

    def save():
        if args.json:
            write_json(args.json, {"teacher": args.teacher, "updates": args.updates, **found})

    if args.only != "ablation":
        show_head("process", "strength", "restored, 1 step", "4 steps", "best baseline", "Wiener")
        found["restoration"], shown = restoration(teacher, args.updates)
        picture = grid(shown, [""] * 6, "Held-out emoji, destroyed and restored in one step", scale=2)
        picture.save(RESULTS / "udm.png")
        cells = [row["restored"] > row["best_baseline"] for row in found["restoration"]]
        save()
        print(f"\nrestored above the best baseline in {sum(cells)} of {len(cells)} cells")
    if args.only != "restoration":
        show_head("process", "steps", *(f"kappa {k:g}" for k in SHARES), "best")
        found["ablation"] = ablation(teacher, args.updates)
        save()


if __name__ == "__main__":
    main()
