"""The README's table and picture: `fewstep demo` for both teachers, from a seed.

    python benchmarks/demo.py [--out benchmarks/results]

Writes demo.json ({teacher: metrics.json}) and the demo's picture and curves of each teacher.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from fewstep.training.demo.run import demo


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for kind in ("flow", "epsilon"):
        with tempfile.TemporaryDirectory() as folder:
            results[kind] = demo(folder, kind=kind)
            for name in ("demo", "curves"):
                shutil.copyfile(Path(folder) / f"{name}.png", out / f"{name}_{kind}.png")
        columns = results[kind]["columns"]
        print(f"\n| {kind}, {results[kind]['seconds']:.0f} s | RMSE to teacher-50 | Fréchet to data |\n|---|---|---|")
        for name, row in columns.items():
            print(f"| {name} | {row.get('rmse', '–')} | {row['frechet']} |")
        base = columns["base-4"]["rmse"]
        print(f"distilled-4 / base-4 {columns['distilled-4']['rmse'] / base:.3f}, "
              f"distilled-1 / base-4 {columns['distilled-1']['rmse'] / base:.3f}")
    (out / "demo.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
