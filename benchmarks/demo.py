"""The first table of docs/results.md and the README's picture: `fewstep demo` for both teachers, from a seed.

    python benchmarks/demo.py [--teacher flow|epsilon] [--out benchmarks/results]

Writes demo_<teacher>.json (its metrics.json) and the demo's picture and curves.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from fewstep.training.cli.demo import demo
from fewstep.training.models.demo.judge import FIGURES


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--teacher", choices=("flow", "epsilon"), help="only this one")
    args = parser.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    for kind in [args.teacher] if args.teacher else ["flow", "epsilon"]:
        with tempfile.TemporaryDirectory() as folder:
            result = demo(folder, kind=kind)
            for name in ("demo", "curves"):
                shutil.copyfile(Path(folder) / f"{name}.png", out / f"{name}_{kind}.png")
        columns = result["columns"]
        (out / f"demo_{kind}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"\n| {kind}, {result['seconds']:.0f} s | {' | '.join(FIGURES)} |")
        print("|---" * (1 + len(FIGURES)) + "|")
        for name, row in columns.items():
            print(f"| {name} | {' | '.join(str(row.get(figure, '–')) for figure in FIGURES)} |")
        base = columns["base-4"]["rmse"]
        print(
            f"distilled-4 / base-4 {columns['distilled-4']['rmse'] / base:.3f}, "
            f"distilled-1 / base-4 {columns['distilled-1']['rmse'] / base:.3f}"
        )


if __name__ == "__main__":
    main()
