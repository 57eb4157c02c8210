"""The table of `distil.py` and its aims, from the rows of its --json file."""

import itertools
from collections.abc import Iterable

STEPS, FIGURES = (1, 2, 4, 8), ("rmse", "distance_teacher", "distance_data", "diversity")
TEACHER, BASE, RECIPE = "teacher", "base", "LCM-LoRA"
# what is run with several seeds, and longer, where it is there
MAIN = ("phased", "matching", "anchored", "phased-matching")
USUAL_STEPS = 4  # that a run is made for
RIVALRY = {"rmse": "4", "distance_teacher": "4"}  # what the recipe's rates are chosen by, at which steps


def of(rows: Iterable[dict], **wanted) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def made_for(rows: list[dict], steps: int) -> list[dict]:
    """Of one method's rows, what one would take for so many steps: made for as few, or for the next more."""
    return of(rows, steps=min(row["steps"] for row in rows if row["steps"] >= steps))


def made_alike(rows: list[dict], others: list[dict], steps: int) -> tuple[list[dict], list[dict]]:
    """Of two methods' rows, those that `made_for` would take if both had been made for the same numbers of
    steps only.
    """
    shared = {row["steps"] for row in rows} & {row["steps"] for row in others}
    return tuple(made_for([row for row in each if row["steps"] in shared], steps) for each in (rows, others))


def mean(rows: list[dict], figure: str, steps: str | int) -> float:
    """Of a figure over the seeds."""
    values = [row[figure][str(steps)] for row in rows]
    return sum(values) / len(values)


def ranked(rows: list[dict], figure: str) -> list[float]:
    """The recipe's rates from best to worst by that figure, of rows of one teacher and one length."""
    found = {row["lr"]: row[figure][RIVALRY[figure]] for row in rows if row["seed"] == 0}
    return sorted(found, key=found.get)


def best_rates(rows: list[dict]) -> list[float]:
    """The recipe's best rates by either figure, the one by RMSE first."""
    return list(dict.fromkeys(ranked(rows, figure)[0] for figure in RIVALRY)) if rows else []


# ---- aims ----------------------------------------------------------------------------------------------


def aims(rows: list[dict], asked: float) -> list[dict]:
    """What the runs of that length were to reach: [{"teacher", "aim", "value", "target", "met"}].

    The expected distance of the teacher from itself is 0, so that a distance is the excess over the floor.
    """
    kinds = dict.fromkeys(row["teacher"] for row in rows)
    return [
        {"teacher": kind, "aim": name, "value": value, "target": target, "met": value * sign <= target * sign}
        for kind in kinds
        for name, value, target, sign in _aims(of(rows, teacher=kind, asked=asked))
    ]


def _aims(rows):
    """(what, value, target, 1 where at most that is aimed at, -1 where at least) of one teacher."""
    ours = {name: of(rows, method=name, pictures="teacher") for name in MAIN}
    ours, theirs = {name: found for name, found in ours.items() if found}, of(rows, method=RECIPE)
    phased = ours.get("phased")
    for name in [name for name in ours if name != "phased" and phased]:
        for steps, most in ((1, 0.5), (2, 0.5), (4, 1.0)):
            found, before = (
                mean(each, "distance_teacher", steps) for each in made_alike(ours[name], phased, steps)
            )
            yield f"{name}: distance at {steps} / phased's", found / before, most, 1
        for steps in (1, 2, 4) if ours[name][0]["diversity"]["1"] is not None else ():
            diversity = mean(made_for(ours[name], steps), "diversity", steps)
            yield f"{name}: diversity at {steps}", diversity, 0.9, -1
    if "anchored" in ours and phased:
        found, before = (mean(each, "rmse", 4) for each in made_alike(ours["anchored"], phased, 4))
        yield "anchored: RMSE at 4 / phased's", found / before, 1.1, 1
    for name, figure in itertools.product(ours, RIVALRY if theirs else ()):
        rival = of(theirs, lr=ranked(theirs, figure)[0])
        for steps in (1, 2, 4):
            ratio = mean(made_for(ours[name], steps), figure, steps) / mean(rival, figure, steps)
            yield f"{name}: {figure} at {steps} / the recipe's best rate", ratio, 1.0, 1


def bracketed(rows: list[dict]) -> dict:
    """{teacher: {figure: whether the recipe's lowest and highest rates are worse than its best}}."""
    found = {}
    for kind in dict.fromkeys(row["teacher"] for row in rows):
        of_kind = of(rows, teacher=kind, method=RECIPE, seed=0)
        shortest = min((row["asked"] for row in of_kind), default=None)
        tried = of(of_kind, asked=shortest)
        rates = sorted(row["lr"] for row in tried)
        found[kind] = {
            figure: len(rates) > 2 and ranked(tried, figure)[0] not in (rates[0], rates[-1])
            for figure in RIVALRY
        }
    return found


def summary(rows: list[dict]) -> dict:
    """The aims at each length, and whether the recipe's rates are bracketed."""
    lengths = sorted({row["asked"] for row in rows if row["asked"]})
    return {"aims": {f"{asked:g}": aims(rows, asked) for asked in lengths}, "bracketed": bracketed(rows)}


# ---- in words ------------------------------------------------------------------------------------------

HEADS = ("teacher", "method", "asked s", "seed", "samples", "samples/s", "MiB", *FIGURES)


def name_of(row: dict) -> str:
    """What a row is called."""
    if row["method"] == BASE:
        return "untrained, twice the calls"
    name = row["method"] + (f", rate {row['lr']:g}" if row["lr"] else "")
    name += f", for {row['steps']} steps" if row["steps"] != USUAL_STEPS else ""
    return name + (", real pictures" if row["pictures"] == "real" and row["method"] != RECIPE else "")


def text(value: float | None) -> str:
    """A figure, a dash where it is not known."""
    return "–" if value is None else f"{value:.3f}"


def line(row: dict) -> str:
    """A row of the table; the figures at 1, 2, 4 and 8 steps (the teacher's at 50)."""
    costs = ["–"] * 3
    if "samples_per_second" in row:
        costs = [
            str(row["samples"]),
            f"{row['samples_per_second']:.1f}",
            f"{row['peak_memory_mib']:.0f}",
        ]
    figures = [", ".join(text(value) for value in row[name].values()) for name in FIGURES]
    cells = [row["teacher"], name_of(row), f"{row['asked']:g}", str(row["seed"]), *costs, *figures]
    return f"| {' | '.join(cells)} |"


def show(rows: list[dict]) -> None:
    """The table, the floor and the aims."""
    print(f"\n| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    for row in rows:
        print(line(row))
    for row in of(rows, method=TEACHER):
        low, high = row["floor_interval"]
        print(f"\n{row['teacher']}: teacher against teacher {row['floor']:.4f} ({low:.4f} to {high:.4f})")
    found = summary(rows)
    for asked, each in found["aims"].items():
        print(f"\nAims at {asked} s:")
        for aim in each:
            met = "met" if aim["met"] else "MISSED"
            print(f"  {aim['teacher']}: {aim['aim']}: {aim['value']:.3f}, aim {aim['target']:g}: {met}")
    print(f"\nThe recipe's rates are bracketed: {found['bracketed']}")
