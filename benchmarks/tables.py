"""Writes the tables of README and docs from the JSON files of benchmarks/results.

    python benchmarks/tables.py            rewrites what stands between <!-- table: name --> and <!-- end -->
    python benchmarks/tables.py --check    changes nothing; exit status 1 where a table is stale

A table is a function here, of the name that the page gives; it returns lines of Markdown. No figure is typed.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from distil_table import BASE, TEACHER, USUAL_STEPS, name_of, of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TEACHERS = ("flow", "epsilon")
CALLS = (3, 4, 5, 6, 8, 10, 16)
EXACT = {  # cases of solvers.py whose denoiser is known exactly, and one network for each trained teacher
    "2d-flow1": "mixture, 2 numbers, flow",
    "8d-flow3": "mixture, 8 numbers, flow with shift 3",
    "32d-eps": "mixture, 32 numbers, epsilon",
    "8d-edm": "mixture, 8 numbers, EDM",
    "emoji-flow1": "877 emoji, flow",
    "emoji-eps": "877 emoji, epsilon",
}
TRAINED = {
    "teacher-flow": "demo teacher, flow, CFG 2",
    "teacher-epsilon": "demo teacher, epsilon, CFG 2",
    "teacher-flow-cfg4": "demo teacher, flow, CFG 4",
    "teacher-epsilon-cfg4": "demo teacher, epsilon, CFG 4",
}
KINDS_OF_CASES = {"trained models": TRAINED, "exact denoisers": EXACT}
NONE = "–"


def read(name: str) -> dict:
    """A JSON file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows_of(name: str, key: str = "rows") -> list:
    """Rows of a JSON file of benchmarks/results; none as long as it was not made."""
    return read(name)[key] if (RESULTS / f"{name}.json").exists() else []


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def mean(values: Iterable[float]) -> str:
    """Geometric mean, as a ratio is averaged; a dash for none."""
    values = list(values)
    return f"{statistics.geometric_mean(values):.2f}" if values else NONE


# ---- one function a table ----------------------------------------------------------------------

DEMO = {
    "teacher-50": "teacher, 50 steps, CFG 2 (100 calls)",
    "base-4": "untrained, 4 steps, CFG 2 (8 calls)",
    "base-4-order-2": "untrained, 4 steps of order 2, CFG 2 (8 calls)",
    "base-4-same-grid": "untrained, 4 steps on the distilled grid, CFG 2 (8 calls)",
    "base-4-order-2-same-grid": "untrained, 4 steps of order 2 on the distilled grid, CFG 2 (8 calls)",
    "base-2-same-grid": "untrained, 2 steps on the distilled grid, CFG 2 (4 calls)",
    "distilled-1": "distilled, 1 step, CFG 1 (1 call)",
    "distilled-2": "distilled, 2 steps, CFG 1 (2 calls)",
    "distilled-4": "distilled, 4 steps, CFG 1 (4 calls)",
}


def demo() -> list[str]:
    """What `fewstep demo` makes, beside what the same calls make without training."""
    columns = [read(f"demo_{teacher}")["columns"] for teacher in TEACHERS]
    rows = [
        [name, *(f"{c[key]['rmse']:.4f}" for c in columns), *(_distance(c[key]) for c in columns)]
        for key, name in DEMO.items()
    ]
    four, one = (
        [c[key]["rmse"] / c["base-4"]["rmse"] for c in columns] for key in ("distilled-4", "distilled-1")
    )
    for name, ratios in (
        ("distilled 4 / untrained 4 (aim .6)", four),
        ("distilled 1 / untrained 4 (aim below 1)", one),
    ):
        rows.append([name, *(f"{ratio:.3f}" for ratio in ratios), NONE, NONE])
    heads = [f"{teacher}: {figure}" for figure in ("RMSE", "distance to the teacher") for teacher in TEACHERS]
    return table(["64 noises not seen in training", *heads], rows)


def _distance(column):
    """To the teacher's pictures, with its interval; a dash for these themselves."""
    if not column["distance_teacher"]:
        return NONE
    return interval(column["distance_teacher"], *column["intervals"]["distance_teacher"])


MODELS = {
    "epsilon, v": ("eps", "v"),
    "EDM": ("EDM",),
    "flow": ("flow shift 1",),
    "flow, shift 3": ("flow shift 3",),
}
RIGHT = 0.01  # deviation up to which a sampler counts as right


def oracle() -> list[str]:
    """The worst deviation of signal and noise from what the model expects, by sampler and kind of model."""
    rows = read("oracle")["rows"]
    core = sorted({row["sampler"] for row in rows if row["who"] == "core"})

    def worst(samplers, models):
        found = [
            row["deviation"]
            for row in rows
            if row["model"] in models and (samplers is None or row["sampler"] in samplers)
        ]
        return max(found)

    ours = {row["sampler"] for row in rows if row["who"] == "fewstep"}
    wrong = [name for name in core if any(worst({name}, models) > RIGHT for models in MODELS.values())]
    lines = [(f"every mode of ours ({len(ours)}), 1 to 20 steps", ours)]
    lines += [(f"ComfyUI: `{name}`", {name}) for name in wrong]
    lines.append((f"ComfyUI: the other {len(core) - len(wrong)}", set(core) - set(wrong)))

    def cell(samplers, models):
        share = worst(samplers, models)
        return f"**{share:.1%}**" if share > RIGHT else f"{share:.1%}"

    body = [[name, *(cell(samplers, models) for models in MODELS.values())] for name, samplers in lines]
    return table(["worst deviation", *MODELS], body)


def _solver_rows(kind="ode"):
    """{(case, predictions): row} of solvers.json."""
    return {(row["case"], row["nfe"]): row for row in read("solvers")["rows"] if row["kind"] == kind}


def _cells(key, cases, counts, kind="ode"):
    """The ratios of that name in solvers.json, of those cases and counts of predictions, where they exist."""
    rows = _solver_rows(kind)
    found = [rows.get((case, n), {}).get(key) for case in cases for n in counts]
    return [ratio for ratio in found if ratio is not None]


def _two(values):
    """The number, if there is one, with two decimals."""
    return "".join(f"{value:.2f}" for value in values) or NONE


def _solver_table(key, counts, what, kinds=KINDS_OF_CASES, kind="ode"):
    """A ratio of solvers.json: a line for each case, a column for each count of predictions."""
    lines = []
    for title, cases in kinds.items():
        cases = {case: name for case, name in cases.items() if _cells(key, [case], counts, kind)}
        lines += [
            [name, *(_two(_cells(key, [case], [n], kind)) for n in counts)] for case, name in cases.items()
        ]
        means = [mean(_cells(key, cases, [n], kind)) for n in counts]
        lines.append([f"*{title}, geometric mean*", *(f"*{value}*" for value in means)])
    return table([what, *(str(n) for n in counts)], lines)


def auto() -> list[str]:
    """The automatic solver against the best pair in hindsight."""
    return _solver_table("auto/core_best", CALLS, "auto / best ComfyUI pair; predictions")


def guided_order() -> list[str]:
    """Auto's error as a share of two others' on the same grid, by guidance and steps: means of the cases."""
    found, lines = read("guided_order"), []
    others = {
        "order 2 with corrector": lambda errors: errors["order 2 with corrector"],
        "the better of it and order 1, in hindsight": lambda errors: [
            min(pair) for pair in zip(errors["order 1"], errors["order 2 with corrector"])
        ],
    }
    for name, other_of in others.items():
        for cfg in sorted({row["cfg"] for row in found["rows"]} - {1.0}):
            ratios = [
                [own / other for own, other in zip(row["errors"]["auto"], other_of(row["errors"]))]
                for row in found["rows"]
                if row["cfg"] == cfg
            ]
            lines.append([f"{name}, CFG {cfg:g}", *(mean(column) for column in zip(*ratios))])
    return table(["auto / other; steps", *map(str, found["steps"])], lines)


def fitted() -> list[str]:
    """The fitted solver against the best pair in hindsight."""
    return _solver_table("fitted/core_best", CALLS[:-1], "fitted / best ComfyUI pair; predictions")


def apart() -> list[str]:
    """The solver whose calls of guidance are fitted apart against the best pair in hindsight."""
    what = "fitted with calls apart / best ComfyUI pair; predictions of 2 calls"
    return _solver_table("apart/core_best", CALLS[:-1], what, {"trained models": TRAINED})


def cached() -> list[str]:
    """The best of what skips calls against the best pair in hindsight."""
    return _solver_table("cached/core_best", CALLS, "best cache / best ComfyUI pair; predictions")


def counts() -> list[str]:
    """How many cells each column wins, trained models apart from exact ones."""
    lines = []
    for column, other in itertools.product(("auto", "fitted", "apart", "cached"), ("core_best", "auto")):
        for title, cases in KINDS_OF_CASES.items():
            key, few, many = f"{column}/{other}", (3, 4, 5, 6), (8, 10)
            cells = _cells(key, cases, few + many)
            if not cells:
                continue
            ahead = f"{sum(ratio <= 1.0 for ratio in cells)} of {len(cells)}"
            means = [mean(_cells(key, cases, counts)) for counts in (few, many)]
            rival = "best ComfyUI pair" if other == "core_best" else other
            lines.append([f"{column} / {rival}", title, ahead, f"{max(cells):.2f}", *means])
    heads = ["solver", "cases", "no worse in", "worst ratio", "mean, 3 to 6 predictions", "mean, 8 and 10"]
    return table(heads, lines)


def solver_aims() -> list[str]:
    """What fitted solvers were to reach, and did."""
    few, many, rows, lines = (3, 4, 5, 6), (8, 10), _solver_rows(), []

    def line(what, found, aim, met):
        lines.append([what, found, aim, "yes" if met else "no"])

    for title, cases, counts, aim in (
        ("exact denoisers", EXACT, few, 0.4),
        ("exact denoisers", EXACT, many, 0.6),
        ("trained models", TRAINED, few + many, 0.75),
    ):
        for column in ("fitted", "apart"):
            cells = _cells(f"{column}/core_best", cases, counts)
            if cells:
                what = f"{column} / best ComfyUI pair, {title}, {counts[0]} to {counts[-1]} predictions: mean"
                found = statistics.geometric_mean(cells)
                line(what, f"{found:.2f}", f"at most {aim}", found <= aim)
    for column in ("fitted", "apart"):
        cells = [row for row in rows.values() if f"{column}/core_best" in row]
        worse = sum(row[f"{column}/core_best"] > 1.05 for row in cells)
        what = f"{column}: cells above 1.05 of the best ComfyUI pair"
        line(what, f"{worse} of {len(cells)}", "none", not worse)
        worse = sum(row["intervals"][f"{column}/auto"][0] > 1 for row in cells)
        line(f"{column}: cells above auto beyond the interval", f"{worse} of {len(cells)}", "none", not worse)
        rising = [
            rows[case, n][column] > rows[case, least][column]
            for case in (*EXACT, *TRAINED)
            for least, n in itertools.pairwise(CALLS)
            if column in rows.get((case, n), {}) and column in rows.get((case, least), {})
        ]
        what = f"{column}: cells whose error is above that of fewer predictions"
        line(what, f"{sum(rising)} of {len(rising)}", "none", not sum(rising))
    printed = rows_of("printed_errors")
    inside = sum(row["low"] <= row["true"] <= row["high"] for row in printed)
    line(
        "cells whose error on 256 new noises is within the printed interval",
        f"{inside} of {len(printed)}",
        "9 of 10",
        inside >= 0.9 * len(printed),
    )
    draws = [row["fitted_ahead"] for row in _solver_rows("sde").values() if "fitted_ahead" in row]
    enough = sum(ahead >= 9 for ahead in draws)
    line(
        "fresh noise: cells ahead of the best ComfyUI pair in 9 of 10 draws",
        f"{enough} of {len(draws)}",
        "all",
        enough == len(draws),
    )
    return table(["", "found", "aim", "met"], lines)


def printed_errors() -> list[str]:
    """How far printed errors and their intervals are from the truth on new noises."""
    body = []
    for title, cases in KINDS_OF_CASES.items():
        rows = [row for row in rows_of("printed_errors") if row["case"] in cases]
        inside = sum(row["low"] <= row["true"] <= row["high"] for row in rows)
        off = [row["true"] / row["held_out"] for row in rows]
        upper = [row["high"] / row["held_out"] for row in rows]
        figures = [f"{statistics.median(off):.2f}", f"{min(off):.2f} to {max(off):.2f}"]
        width = [f"{statistics.median(upper):.1f}", f"{max(upper):.1f}"]
        body.append([title, f"{inside} of {len(rows)}", *figures, *width])
    heads = ["cells", "within the interval", "true / printed: median", "all", "upper end / printed: median"]
    return table([*heads, "largest"], body)


def stochastic() -> list[str]:
    """Auto with churn against the best noisy pair in hindsight, by the distance to the data."""
    what = "auto with churn / best noisy ComfyUI pair; calls"
    return _solver_table("auto/core_best", CALLS, what, {"mixtures": EXACT}, "sde")


def stochastic_fitted() -> list[str]:
    """Grid and churn fitted, against the same."""
    what = "fitted with churn / best noisy ComfyUI pair; calls"
    return _solver_table("fitted/core_best", CALLS, what, {"mixtures": EXACT}, "sde")


def fit_labels() -> list[str]:
    """The default fit on labels that it has not seen."""
    heads = ["labels not fitted on, error in deviations", "1 step", "2", "3", "4", "6", "8"]
    body = []
    for teacher in TEACHERS:
        found = {row["steps"]: row["new labels"] for row in read(f"fit_{teacher}")["fits"]}
        body += [
            [f"{teacher}: {key}", *(f"{found[n][key]:.3f}" for n in (1, 2, 3, 4, 6, 8))]
            for key in ("auto", "fitted", "quick")
            if key in found[1]
        ]
    return table(heads, body)


def fit_four() -> list[str]:
    """The default fit at four calls, beside what needs none."""
    runs = {teacher: read(f"fit_{teacher}") for teacher in TEACHERS}
    names = list(runs["flow"]["at_4_calls"])
    body = [[name, *(f"{runs[teacher]['at_4_calls'][name]:.3f}" for teacher in TEACHERS)] for name in names]
    body.append(["ComfyUI pairs tried", *(str(runs[teacher]["core_pairs"]) for teacher in TEACHERS)])
    seconds = [[fit["seconds"] for fit in runs[teacher]["fits"]] for teacher in TEACHERS]
    body.append(["seconds a step count", *map(_from_to, seconds)])
    quick = [runs[teacher].get("quick_seconds", {}).values() for teacher in TEACHERS]
    if all(quick):
        body.append(["seconds a step count, effort *quick*", *map(_from_to, quick)])
    return table(["4 calls, error in deviations", *TEACHERS], body)


def _from_to(seconds):
    return f"{min(seconds):.0f} to {max(seconds):.0f}"


FIGURES = {
    "rmse": "RMSE",
    "distance_teacher": "distance to the teacher",
    "distance_data": "to the emoji",
    "diversity": "diversity",
}


def unmade(others: int) -> list[list[str]]:
    """The only row of a table that was not made."""
    return [["*not run yet*", *[NONE] * others]]


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A figure with the ends of its interval; a dash where it is not known."""
    if value is None:
        return NONE
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def distances() -> list[str]:
    """Teacher, student and untrained model held against the teacher, and what they are not apart from."""
    body = []
    for row in rows_of("distances"):
        figures = [interval(*row["figures"].get(key, (None,) * 3)) for key in FIGURES]
        apart = "; ".join(row["not_apart"]) or "nothing"
        body.append([f"{row['teacher']}: {row['name']}", *figures, apart])
    return table(["", *FIGURES.values(), "distance not apart from"], body or unmade(1 + len(FIGURES)))


def measures() -> list[str]:
    """How many pictures each measure takes to tell."""
    rows = rows_of("distances", "measures")
    names = list(rows[0]["pictures"]) if rows else []
    body = [[row["measure"], *(f"{row['pictures'][name]:.0f}" for name in names)] for row in rows]
    return table(["features; distance; reference drawn from", *names], body or unmade(0))


def frechet() -> list[str]:
    """The same pictures by the Frechet distance that stood here before."""
    rows = rows_of("distances")
    body = [[row["name"], f"{row['frechet']:.0f}"] for row in rows if row["frechet"] > 1e-6]
    return table(["", "Fréchet distance to the teacher"], body or unmade(1))


def _judged(long):
    """Rows of the runs of the longest budget, or of the shorter one; no rows as long as they were not run."""
    rows = rows_of("distil")
    lengths = sorted({row["asked"] for row in rows if row["asked"]})
    asked = lengths[-1] if long and len(lengths) > 1 else lengths[0] if lengths and not long else None
    figures = [f"{name} at 1, 2, 4, 8" for name in FIGURES.values()]
    heads = ["teacher", "", "seed", "seconds", "samples/s", *figures]
    body = []
    for row in sorted(rows, key=lambda row: TEACHERS.index(row["teacher"])):
        if row["asked"] not in (asked, *(() if long else (0,))):
            continue
        trained = "samples_per_second" in row
        costs = [NONE] * 3
        if trained:
            costs = [str(row["seed"]), f"{row['seconds']:.0f}", f"{row['samples_per_second']:.1f}"]
        cells = [", ".join(interval(value, None, None) for value in row[key].values()) for key in FIGURES]
        body.append([row["teacher"], name_of(row), *costs, *cells])
    return table(heads, body or unmade(len(heads) - 1))


def distil_seeds() -> list[str]:
    """What was run with several seeds at the shorter budget: the mean, and the least and the most."""
    rows = [row for row in rows_of("distil") if row["asked"]]
    shortest = min((row["asked"] for row in rows), default=None)
    several: dict[tuple, list] = {}
    for row in rows:
        if row["asked"] == shortest:
            several.setdefault((row["teacher"], name_of(row)), []).append(row)
    body = []
    for (teacher, name), found in sorted(several.items(), key=lambda item: TEACHERS.index(item[0][0])):
        if len(found) > 1:
            cells = [_spread([row[key]["4"] for row in found]) for key in FIGURES]
            body.append([teacher, name, str(len(found)), *cells])
    heads = ["teacher", "", "seeds", *(f"{name} at 4" for name in FIGURES.values())]
    return table(heads, body or unmade(len(heads) - 1))


def _spread(values):
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def distil_short() -> list[str]:
    """Every method and rate at the shorter budget."""
    return _judged(long=False)


def distil_long() -> list[str]:
    """The main methods at the longer budget."""
    return _judged(long=True)


def distil_apart() -> list[str]:
    """Distances to the teacher with their intervals, and from what they are apart by these; runs with seed 0
    that were made for four steps.
    """
    body, steps = [], ("1", "2", "4", "8")
    rows = [row for row in rows_of("distil") if row["seed"] == 0 and row["steps"] == USUAL_STEPS]
    for teacher, asked in itertools.product(TEACHERS, (120, 900)):
        these = of(rows, teacher=teacher, asked=asked)
        if asked == 120:
            these = of(rows, teacher=teacher, method=BASE) + these
        floor = of(rows, teacher=teacher, method=TEACHER)[0]["floor_interval"]
        phased = of(these, method="phased")[0]["intervals"]["distance_teacher"]
        for row in these:
            own = row["intervals"]["distance_teacher"]
            cells = [interval(row["distance_teacher"][n], *own[n]) for n in steps]
            nearer = [n for n in steps if own[n][1] < phased[n][0]]
            farther = [n for n in steps if own[n][0] > phased[n][1]]
            level = [n for n in steps if own[n][0] <= floor[1]]
            told = [", ".join(found) or NONE for found in (nearer, farther, level)]
            body.append([teacher, name_of(row), f"{asked}" if row["asked"] else NONE, *cells, *told])
    heads = ["teacher", "", "seconds", "1 step", "2", "4", "8", "nearer than phased at", "farther at"]
    return table([*heads, "not apart from the teacher at"], body)


def distil_aims() -> list[str]:
    """What was aimed at, at the longer budget."""
    aims = dict(rows_of("distil", "summary") or {"aims": {}})["aims"]
    found = aims[max(aims, key=float)] if len(aims) > 1 else []
    body = [
        [
            aim["teacher"],
            aim["aim"],
            f"{aim['value']:.2f}",
            f"{aim['target']:g} ({'met' if aim['met'] else '**missed**'})",
        ]
        for aim in found
    ]
    return table(["teacher", "", "found", "aim"], body or unmade(3))


def restored() -> list[str]:
    """Restoration by one LoRA a process."""
    body = []
    for row in read("udm")["restoration"]:
        wiener = NONE if row["wiener"] is None else f"{row['wiener']:.2f}"
        baseline = f"{row['best_baseline']:.2f} ({row['baseline']})"
        ours = [f"{row[key]:.2f}" for key in ("restored", "restored_4_steps")]
        body.append([row["process"], f"{row['strength']:.2f}", *ours, baseline, wiener])
    return table(
        ["PSNR in dB", "strength", "restored in 1 step", "in 4", "best baseline", "Wiener filter"], body
    )


def overhead() -> list[str]:
    """Cost of a step without the model."""
    body = []
    for row in read("overhead")["rows"]:
        shape, met = (
            "×".join(map(str, row["shape"])),
            "met" if row["ratio"] <= row["target"] else "**missed**",
        )
        body.append(
            [
                shape,
                str(row["order"]),
                f"{row['us_per_step']:.0f}",
                f"{row['euler_us_per_step']:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['target']:.1f} ({met})",
            ]
        )
    return table(["latent", "order", "µs a step", "ComfyUI's `euler`", "ratio", "aim"], body)


def adapter() -> list[str]:
    """What a LoRA and its exact gradient cost beside a Flux of full size, in operations."""
    found = read("adapter")
    body = [["the LoRA, in each layer", f"{found['lora_plain']:.0f}", f"{found['lora']:.0f}", NONE]]
    names = {"whole": "a gradient, kept whole", "checkpointed": "a gradient, blocks recomputed"}
    for key, name in names.items():
        row = found[key]
        share = f"{row['share']:.1%} of {row['operations']}"
        body.append([f"{name}: looked at", str(row["looked_at_always"]), str(row["looked_at"]), share])
    return table(["operations", "before", "now", "share (aim: at most 5 %)"], body)


def memory_plan() -> list[str]:
    """What a run of models of real size would take on cards of so many GB."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for row in read("memory_plan")["rows"]:
        found.setdefault((row["family"], row["size"]), {})[row["preset"]] = row

    def cell(row):
        if not row["fits"]:
            return f"does not fit: {row['peak'] / 2**30:.1f}"
        graph = "recomputed" if row["checkpointing"] else "whole"
        peak = f"{row['peak'] / 2**30:.1f}"
        return f"{row['residency']}, {row['micro_batch']} {graph}, rank {row['rank']}: {peak}"

    presets = sorted({preset for rows in found.values() for preset in rows})
    body = [
        [f"{family}, {size}", *(cell(rows[preset]) for preset in presets)]
        for (family, size), rows in found.items()
    ]
    return table(["predicted peak in GiB", *(f"{preset} GB" for preset in presets)], body)


def udm_cost() -> list[str]:
    """Cost of a blur against Gaussian noise."""
    body = []
    for row in read("udm_cost")["rows"]:
        met = "met" if row["ratio"] <= row["target"] else "**missed**"
        body.append(
            [
                f"{row['t']:.2f}",
                f"{row['blur_pixels']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_with_noise']:.2f}",
                f"{row['target']:.1f} ({met})",
            ]
        )
    return table(["time", "blur in pixels", "blur / Gaussian", "with noise", "aim"], body)


def ranks() -> list[str]:
    """What a second process gains, and what a network has to carry."""
    row = read("ranks")
    one, two = row["samples_per_second"]
    aims = row["targets"]
    body = [
        ["training, gain of two", f"{row['training']:.2f} times (aim {aims['training']})"],
        ["trajectories, gain of two", f"{row['trajectories']:.2f} times (aim {aims['trajectories']})"],
        ["samples/s, one and two", f"{one:.2f}, {two:.2f}"],
        *([f"ms of an update of two: {name}", f"{ms:.1f}"] for name, ms in row.get("update_ms", {}).items()),
        ["bytes sent by a process, an update", f"{row['bytes_per_update']:,}"],
        ["of them the sum itself", f"{row['payload']:,}"],
    ]
    return table(["two processes of one thread against one", "measured"], body)


GROWS = {
    "server_mib": "server: memory, MiB",
    "server_files": "server: open files",
    "server_threads": "server: threads",
    "heap_mib": "page: JavaScript heap, MiB",
    "nodes": "page: DOM nodes",
    "listeners": "page: listeners",
    "our_elements": "page: elements of the pack",
    "browser_mib": "browser: memory, MiB",
}


def soak() -> list[str]:
    """What grew over an hour of jobs, with the interval of each slope."""
    found = read("soak")
    rows = [
        [
            name,
            f"{found['slopes'][key]['from']:,.0f}",
            f"{found['slopes'][key]['to']:,.0f}",
            "{:+,.1f} ({:+,.1f} to {:+,.1f})".format(*found["slopes"][key]["100 jobs"]),
        ]
        for key, name in GROWS.items()
    ]
    return table(
        [f"{found['jobs']} jobs, {found['minutes']:.0f} minutes", "from", "to", "each 100 jobs"], rows
    )


def new_user() -> list[str]:
    """What a new user waits for, in each renderer."""
    found = read("new_user")["rows"]
    names = {"vue": "Nodes 2.0", "canvas": "classic canvas"}
    parts = [*found["vue"]["seconds"], "whole"]
    seconds = {kind: {**found[kind]["seconds"], "whole": found[kind]["whole"]} for kind in names}
    rows = [[part, *(f"{seconds[kind][part]:.1f}" for kind in names)] for part in parts]
    return table([f"seconds, {found['vue']['updates']} updates", *names.values()], rows)


def guided() -> list[str]:
    """A guider as the teacher beside plain CFG: how far from its own teacher's pictures each LoRA ends."""
    found = read("guided")
    names = {"guided": "RescaleCFG, as a guider", "plain": "plain CFG"}
    rows = [
        [name, f"{found[key]['distance']:.2f}", f"{found[key]['untrained']:.2f}"]
        for key, name in names.items()
    ]
    steps, cfg = found["settings"]["steps"], found["settings"]["cfg"]
    heads = [
        f"teacher, CFG {cfg:.0f}",
        f"its LoRA, {steps} steps at CFG 1",
        f"untrained, {steps} steps with that guidance, twice the calls",
    ]
    return table(heads, rows)


def image_steps() -> list[str]:
    """Phased with strong guidance for the same seconds, by the steps of the teacher's pictures."""
    return _of_one_setting("image_steps", "steps of its pictures")


def real_scores() -> list[str]:
    """Matching for the same seconds, by what is taken for the real score."""
    return _of_one_setting("real_scores", "real score", "real")


def _of_one_setting(name, head, setting=None):
    """The rows of `one_setting.py`."""
    lines = [
        [
            row["teacher"],
            str(row[setting or name]),
            f"{row['samples']}",
            *(", ".join(f"{value:.3f}" for value in row[figure].values()) for figure in FIGURES),
        ]
        for row in rows_of(name)
    ]
    heads = ["teacher", head, "samples", "RMSE at 1, 2, 4, 8", "distance to the teacher", "to the emoji"]
    return table([*heads, "diversity"], lines or unmade(len(heads)))


def one_click() -> list[str]:
    """What one click and *Use it* make of each official workflow and blueprint."""
    rows = []
    for name, file in (("Make this model few-step", "one_click"), ("Use it", "one_click_use")):
        verdicts = [row["verdict"] for row in read(file)["rows"]]
        right, asked, refused = (verdicts.count(v) for v in ("right", "asked rightly", "refused rightly"))
        wrong = len(verdicts) - right - asked - refused
        rows.append([name, *map(str, (len(verdicts), right, asked, refused, wrong))])
    return table(["click", "workflows", "built right", "asked rightly", "refused rightly", "wrong"], rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    made.__name__: made
    for made in (
        demo,
        oracle,
        auto,
        guided_order,
        fitted,
        apart,
        cached,
        counts,
        solver_aims,
        printed_errors,
        stochastic,
        stochastic_fitted,
        fit_labels,
        fit_four,
        distances,
        measures,
        frechet,
        distil_short,
        distil_long,
        distil_seeds,
        distil_apart,
        distil_aims,
        restored,
        overhead,
        udm_cost,
        adapter,
        memory_plan,
        ranks,
        soak,
        new_user,
        guided,
        image_steps,
        real_scores,
        one_click,
    )
}


def written(text: str) -> str:
    """The page with every table made anew. Raises KeyError for a table that no function makes."""
    return PLACE.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)


def main() -> int:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; status 1 where a table is stale"
    )
    args = parser.parse_args()
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = {page: after for page, text in texts.items() if (after := written(text)) != text}
    if args.check:
        print("\n".join(f"{page.relative_to(ROOT)} has tables that are stale" for page in stale))
        return int(bool(stale))
    for page, after in stale.items():
        page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
