"""How good the demo teachers are: the figures and the picture of training/models/demo/MODEL_CARD.md.

    python benchmarks/demo_teachers.py [--out benchmarks/results]

For each teacher one sample for each core emoji of the offered labels, with that label (20 steps of order 2,
CFG 2): energy distance to the core emoji with its 95 % interval (`training.models.demo.judge`);
nearest-neighbour distance (RMSE of pixels in 0..1) to the training emoji, beside the one among the emoji;
and how often the classifier finds the label. Writes demo_teachers.json and
samples_<kind>.png (64 samples).
"""

import argparse
import json
from pathlib import Path

import torch
from fewstep.diffusion.schedules.grids import grid
from fewstep.training.models.demo import data
from fewstep.training.models.demo.features import classify
from fewstep.training.models.demo.judge import Judge
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.reports import pictures
from fewstep.training.trajectories.sampling import in_chunks

SHOWN_ROWS, SHOWN_COLUMNS = 8, 8


def nearest(pixels, reference, skip_self=False):
    """Mean RMSE (pixels in 0..1) from each picture to its nearest in `reference`."""
    distance = torch.cdist(pixels.flatten(1).double(), reference.flatten(1).double())
    distance /= 2 * pixels[0].numel() ** 0.5  # pixels are in [-1, 1]
    if skip_self:
        distance.fill_diagonal_(float("inf"))
    return float(distance.min(1).values.mean())


def offered(split, numbers):
    """(pixels, places) of the core emoji of `split` whose label users are offered."""
    emoji, places, _ = data.load(split)
    keep = torch.isin(places, torch.tensor(numbers))
    return data.to_pixels(emoji[keep]), places[keep]


def measure(kind, seed=0):
    """(figures, pixels) of a teacher."""
    teacher = DemoTeacher(kind)
    numbers = list(data.label_numbers().values())
    real, places = offered("all", numbers)
    train, _ = offered("train", numbers)
    condition = torch.tensor([numbers.index(p) for p in places.tolist()])
    noise = torch.randn(len(real), *teacher.shape, generator=torch.Generator().manual_seed(seed))
    sigmas = grid("uniform", 20, teacher.sigma_of, teacher.path)
    with torch.no_grad():
        pixels = data.to_pixels(in_chunks(teacher, noise, condition, 2.0, sigmas, order=2)).clamp(-1, 1)
    distance = Judge(pixels, condition)(pixels)["distance_data"]
    figures = {
        "samples": len(pixels),
        "distance_data": distance.value,
        "distance_data_low": distance.low,
        "distance_data_high": distance.high,
        "nearest_neighbour": nearest(pixels, train),
        "nearest_neighbour_of_data": nearest(train, train, skip_self=True),
        "label_found": float((classify(pixels) == places).float().mean()),
        "label_found_of_data": float((classify(real) == places).float().mean()),
    }
    return figures, pixels


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    result = {}
    for kind in ("flow", "epsilon"):
        result[kind], pixels = measure(kind)
        pick = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))
        shown = pixels[pick[: SHOWN_ROWS * SHOWN_COLUMNS]]
        tiles = shown.unflatten(0, (SHOWN_ROWS, SHOWN_COLUMNS))
        columns = {f" {c + 1}": tiles[:, c] for c in range(SHOWN_COLUMNS)}
        title = f"{kind} teacher: 64 samples, labels at random, CFG 2, 20 steps"
        pictures.grid(columns, [""] * SHOWN_ROWS, title, scale=2).save(out / f"samples_{kind}.png")
        print(kind, " ".join(f"{k} {v:.3f}" for k, v in result[kind].items()))
    (out / "demo_teachers.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
