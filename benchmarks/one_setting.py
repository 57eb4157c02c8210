"""What a setting of a run is worth: its values against one another, for the same seconds of CPU.

    python benchmarks/one_setting.py image_steps 8 16 --cfg 6 --json benchmarks/results/image_steps.json
    python benchmarks/one_setting.py real pictures guided blended --method phased-matching --steps 2 \
        --teachers flow --seconds 300 --json benchmarks/results/real_scores.json

A value that costs more leaves fewer updates. Judged as in `distil.py`, on 128 noises, beside the teacher's
50 steps at that guidance. Each run takes its seconds of one core and a minute more.
"""

import argparse
import json
import tempfile
from pathlib import Path

from distil_run import CFG, TRIAL, length, one
from distil_table import FIGURES
from fewstep.training.formats.files import write_json

KINDS, NOISES = ("flow", "epsilon"), 128
FIXED = ("method", "steps", "cfg", "updates", "images", "batch", "seed")  # by an option, or for all values


def row_of(kind, setting, value, args, folder):
    """A run and how it is judged."""
    job = {"method": args.method, "teacher": kind, "pictures": "teacher", "lr": None, "steps": args.steps}
    job |= {"seed": 0, "asked": args.seconds, "device": "cpu", "noises": NOISES, "cfg": args.cfg}
    job["set"] = {setting: value}
    times = one({**job, "pictures": TRIAL, "of": "teacher"}, folder)
    updates, images = length(times, job)
    row = one({**job, "updates": updates, "images": images}, folder)
    return {"cfg": args.cfg, **row, setting: value}


def value_of(text):
    """As JSON has it, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", help="of DistilConfig")
    parser.add_argument("values", nargs="+", type=value_of)
    parser.add_argument("--method", default="phased", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="that it is made for (default: %(default)s)")
    parser.add_argument("--cfg", type=float, default=CFG, help="of the teacher (default: %(default)g)")
    parser.add_argument("--teachers", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: %(default)g)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    if args.setting in FIXED:
        parser.error(f"setting must be one that is not the same for all values, got {args.setting}")
    rows = []
    print(f"| teacher | {args.setting} | samples | {' | '.join(FIGURES)} |\n{'|---' * (3 + len(FIGURES))}|")
    for kind in args.teachers:
        for value in args.values:
            with tempfile.TemporaryDirectory() as folder:
                row = row_of(kind, args.setting, value, args, folder)
            rows.append(row)
            figures = [", ".join(f"{found:.3f}" for found in row[name].values()) for name in FIGURES]
            print(f"| {' | '.join([kind, str(value), str(row['samples']), *figures])} |", flush=True)
            if args.json:
                write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
