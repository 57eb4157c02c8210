"""The table of `distil.py` and its three ratios, from the rows of its --json file."""

import statistics

from fewstep.training import methods

STEPS, JUDGED = (1, 2, 4, 8), "4"
BASE, RECIPE = "base", "LCM-LoRA"
TARGETS = {
    "rmse_ratio": ("RMSE at 4 steps", 0.7),
    "throughput_ratio": ("samples/s", 1.2),
    "memory_ratio": ("peak memory", 0.8),
}


def error(row):
    """The RMSE that rows are judged by."""
    return row["steps"][JUDGED]["rmse"]


def summary(rows, args):
    """The three ratios with what they are made of; None for each as long as runs lack."""
    wanted = {"budget": "seconds", "asked": args.seconds, "device": args.device, "noises": args.noises}
    rows = [row for row in rows if wanted.items() <= row.items()]
    teachers = set(args.teachers)
    theirs = {}  # of each teacher the recipe's best rate
    ours = {}  # {method: {teacher: row}}
    for row in rows:
        teacher, method = row["teacher"], row["method"]
        if method == RECIPE and (teacher not in theirs or error(row) <= error(theirs[teacher])):
            theirs[teacher] = row
        elif method in methods.names(task=None):
            ours.setdefault(method, {})[teacher] = row
    whole = {m: found for m, found in ours.items() if found.keys() >= teachers and m in args.methods}
    if not whole or not theirs.keys() >= teachers:
        return dict.fromkeys(TARGETS)
    best = min(whole, key=lambda m: statistics.geometric_mean(error(whole[m][t]) for t in args.teachers))

    def ratio(value):
        return statistics.geometric_mean(value(whole[best][t]) / value(theirs[t]) for t in args.teachers)

    return {
        "rmse_ratio": ratio(error),
        "throughput_ratio": ratio(lambda r: r["samples_per_second"]),
        "memory_ratio": ratio(lambda r: r["peak_memory_mib"]),
        "best": best,
        "teachers": args.teachers,
        "recipe_lr": {t: theirs[t]["lr"] for t in args.teachers},
        "seconds_ratio": ratio(lambda r: r["seconds"]),
        "training_throughput_ratio": ratio(lambda r: r["samples"] / (r["seconds"] - r["data_seconds"])),
    }


HEADS = (
    "teacher",
    "equal",
    "method",
    "seconds",
    "samples",
    "samples/s",
    "MiB",
    "RMSE at 1, 2, 4, 8 steps",
    "Fréchet at 1, 2, 4, 8",
)


def line(row):
    """A row of the table."""
    trained = row["method"] != BASE
    name = row["method"] + (f", {row['lr']:g}" if row["lr"] else "")
    figures = ["–"] * 4
    if trained:
        figures = [
            f"{row['seconds']:.0f}",
            str(row["samples"]),
            f"{row['samples_per_second']:.1f}",
            f"{row['peak_memory_mib']:.0f}",
        ]
    rmse = ", ".join(f"{row['steps'][str(n)]['rmse']:.4f}" for n in STEPS)
    frechet = ", ".join(f"{row['steps'][str(n)]['frechet']:.2f}" for n in STEPS)
    cells = [row["teacher"], row["budget"] if trained else "–", name, *figures, rmse, frechet]
    return f"| {' | '.join(cells)} |"


def show(rows, found):
    """The table and the targets."""
    print(f"\n| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    for row in rows:
        print(line(row))
    if found["rmse_ratio"] is None:
        print("\nNo ratios: runs are missing.")
        return
    print(
        f"\n{found['best']} / {RECIPE} (rates {found['recipe_lr']}): seconds {found['seconds_ratio']:.2f}, "
        f"samples/s of training alone {found['training_throughput_ratio']:.2f}"
    )
    for key, (name, target) in TARGETS.items():
        met = found[key] >= target if key == "throughput_ratio" else found[key] <= target
        print(f"{name}: {found[key]:.3f} of the recipe's, target {target}: {'met' if met else 'MISSED'}")
