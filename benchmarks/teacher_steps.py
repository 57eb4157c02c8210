"""In how many steps the teacher's pictures should be drawn where guidance is strong.

    python benchmarks/teacher_steps.py [--json FILE] [--cfg 6] [--seconds 120]        half an hour of one core

*phased* on both demo teachers for the same seconds of CPU, once from pictures of 8 steps and once of 16,
which leaves fewer updates. Judged as in `distil.py`, on 128 noises, beside the teacher's 50 steps at that
guidance.
"""

import argparse
import tempfile
from pathlib import Path

from distil_run import TRIAL, length, one
from fewstep.training.formats.files import write_json

KINDS, IMAGE_STEPS, NOISES = ("flow", "epsilon"), (8, 16), 128


def row_of(kind, image_steps, cfg, seconds, folder):
    """A run and how it is judged."""
    job = {"method": "phased", "teacher": kind, "pictures": "teacher", "lr": None, "steps": 4, "seed": 0}
    job |= {"asked": seconds, "device": "cpu", "noises": NOISES, "cfg": cfg, "image_steps": image_steps}
    times = one({**job, "pictures": TRIAL, "of": "teacher"}, folder)
    updates, images = length(times, job)
    row = one({**job, "updates": updates, "images": images}, folder)
    return {"cfg": cfg, "image_steps": image_steps, **row}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--cfg", type=float, default=6.0, help="(default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: %(default)g)")
    args = parser.parse_args()
    rows = []
    print(
        "| teacher | image_steps | samples | RMSE at 1, 2, 4, 8 | distance | diversity |\n" + "|---" * 6 + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for image_steps in IMAGE_STEPS:
                row = row_of(kind, image_steps, args.cfg, args.seconds, folder)
                rows.append(row)
                figures = [
                    ", ".join(f"{value:.3f}" for value in row[name].values())
                    for name in ("rmse", "distance_teacher", "diversity")
                ]
                print(
                    "| " + " | ".join([kind, str(image_steps), str(row["samples"]), *figures]) + " |",
                    flush=True,
                )
                if args.json:
                    write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
