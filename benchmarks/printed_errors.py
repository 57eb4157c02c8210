"""Does a fit tell the truth? Its printed error and interval beside the error on new noise.

    python benchmarks/printed_errors.py [--solvers benchmarks/results/solvers.json] [--json FILE] [--noises N]
                                        [--cases a,b]

Each recipe that `solvers.py` has kept is sampled from noises that neither the fit nor that benchmark has
seen, for the prompts that it was fitted on, as its printed error is of these. The truth is what the fit takes
for it: the model in 60 steps of order 2 on the automatic grid. Errors are means over noises of the RMSE of a
picture, in units of the pictures' deviation. The printed interval should hold the true error in 19 of 20
cases; at least 9 of 10 are asked for.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from fewstep.training.formats.files import write_json
from fewstep.training.formats.recipe import Recipe
from solvers import automatic, by_recipe
from tasks import CASES, HELD_OUT, TEACHERS, GuidedTeacher, task

NOISES, SEED, REFERENCE_STEPS, AT_ONCE = 256, 77, 60, 64
COLUMNS = ("fitted", "apart")
RESULTS = Path(__file__).parent / "results"


def fresh(name, count):
    """The task of a case with other noises, of the labels that solvers are fitted on."""
    work = task(name, 1)
    noise = torch.randn(
        count, *work.noise.shape[1:], generator=torch.Generator().manual_seed(SEED), dtype=torch.float64
    )
    denoise = work.denoise
    if name in TEACHERS:
        kind, cfg = TEACHERS[name]
        fitted_on = denoise.teacher.conditions - HELD_OUT
        denoise = GuidedTeacher(kind, cfg, HELD_OUT + torch.arange(count) % fitted_on)
    return dataclasses.replace(work, noise=noise, denoise=denoise)


def drawn(work, sample):
    """`sample(task)` of all noises, as many at once as are quick; (N, ...)."""
    parts = []
    for part in torch.arange(len(work.noise)).split(AT_ONCE):
        denoise = work.denoise
        if isinstance(denoise, GuidedTeacher):
            denoise = GuidedTeacher(*TEACHERS[work.name], denoise.condition[part])
        parts.append(sample(dataclasses.replace(work, noise=work.noise[part], denoise=denoise)))
    return torch.cat(parts).double()


@torch.no_grad()
def rows_of(name, solvers, count):
    """A row for each recipe of a case."""
    recipes = [
        (row["nfe"], column, row[f"{column}_by"])
        for row in solvers
        if row["case"] == name
        for column in COLUMNS
        if f"{column}_by" in row
    ]
    if not recipes:
        return
    work = fresh(name, count)
    truth = drawn(work, lambda part: automatic(part, part.noise, REFERENCE_STEPS))
    for nfe, column, said in recipes:
        recipe = Recipe.from_json(json.dumps(said["recipe"]))
        off = drawn(work, lambda part, recipe=recipe: by_recipe(part, recipe, part.noise)) - truth
        true = float(off.flatten(1).square().mean(1).sqrt().mean() / truth.std())
        printed = {key: said[key] for key in ("held_out", "low", "high")}
        yield {"case": name, "nfe": nfe, "column": column, "noises": count, **printed, "true": true}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--solvers", type=Path, default=RESULTS / "solvers.json", help="whose recipes")
    parser.add_argument("--json", type=Path, help="write the rows there; those of other cases are kept")
    parser.add_argument("--noises", type=int, default=NOISES, help="new ones (default: %(default)s)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    args = parser.parse_args()
    solvers = json.loads(args.solvers.read_text())["rows"]
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    print("| case | predictions | solver | printed | interval | true | within |\n" + "|---" * 7 + "|")
    for name in args.cases.split(","):
        rows = [row for row in rows if row["case"] != name]
        for row in rows_of(name, solvers, args.noises):
            within = row["low"] <= row["true"] <= row["high"]
            print(
                f"| {name} | {row['nfe']} | {row['column']} | {row['held_out']:.4f} | {row['low']:.4f} to "
                f"{row['high']:.4f} | {row['true']:.4f} | {'yes' if within else 'no'} |",
                flush=True,
            )
            rows.append(row)
        if args.json:
            write_json(args.json, {"rows": rows})
    inside = sum(row["low"] <= row["true"] <= row["high"] for row in rows)
    print(f"\nwithin the printed interval: {inside} of {len(rows)}")


if __name__ == "__main__":
    main()
