"""How near a few model calls come to the converged ODE, or to the data: our automatic choice and fitted
solvers beside every pair of the host's own, and beside what skips calls.

    python benchmarks/solvers.py [--json FILE] [--noises N] [--cases a,b] [--nfe 3,4,...] [--columns a,b]
                                 [--no-sde] [--picture FILE]

ode     same noise, samplers that draw none: RMSE to the converged ODE in units of the data's standard
        deviation
sde     samplers that draw noise, on mixtures: sliced Wasserstein-2 distance to data in the same units (64
        directions, 4000 samples), the mean over 10 draws of noise and data

A row is a case at so many predictions, `nfe`, or `calls` of the model, twice as many where guidance takes
two. Every column may use up to that many calls:

core_best   the host's best pair of sampler and scheduler in hindsight; where a call is dear all are run on 8
            of the noises, the best 8 of them on all
auto        our automatic choice, made beforehand
fitted      a solver fitted on other noises (and, for the teachers, other labels), up to 12 steps; with fresh
            noise its grid and the churn of each step, on 2048 pictures
apart       the same with the two halves of guidance as calls of their own
cached      the best of what skips calls, in hindsight (`skipping.py`)

Each has its 95 % interval over the noises in `intervals`, and so do its ratios to core_best and auto, by
resampling noises. With --json, what the file already holds is kept, and each new figure is saved as soon as
it is known: a stopped run goes on. --picture draws what the columns of PICTURED make of the same noises, from
what that file says of them.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import core
import exact
import skipping
import torch
from fewstep.diffusion.samplers import batch_noise, sample
from fewstep.diffusion.schedules import auto, grids
from fewstep.diffusion.solvers.linear import solve as solve_linear
from fewstep.diffusion.solvers.linear import solve_apart
from fewstep.diffusion.solvers.trajectories import Trajectories
from fewstep.training.formats.recipe import Recipe
from fewstep.training.models.demo import data
from fewstep.training.reports import pictures
from fewstep.training.run.fit_denoiser import sample_recipe
from fewstep.training.run.fitting import MOST_STEPS, FitConfig, SolverFit
from fresh_fit import fit_fresh
from tasks import CASES, TEACHERS, FitTeacher, family, sampled, start, task

NFE = (3, 4, 5, 6, 8, 10, 16)
JUDGED, FINALISTS = 8, 8  # noises that every pair is run on where a call is dear; pairs that are run on all
SAMPLES, DIRECTIONS, DRAWS = 4000, 64, 10
COLUMNS = ("core_best", "auto", "fitted", "apart", "cached")
TITLES = {"ode": "error to the converged ODE", "sde": "distance to the data, with fresh noise"}
RESAMPLED = 1000
PICTURES, REFERENCE_STEPS, FRESH_RUNS = 2048, 120, 300  # of a fit with fresh noise


# ---- runs ------------------------------------------------------------------------------------------


def automatic(task, noise, nfe, stochastic=False, seed=0):
    """Images of the automatic choice."""
    sigmas = grids.grid("auto", nfe, task.sigma_of, task.path, dimension=task.noise[0].numel())
    options = auto.solver(sigmas, task.path, task.cfg, stochastic)
    with torch.no_grad():
        return sampled(task.denoise, noise, sigmas, task.sigma_of, task.path, seed, **options)


def pairs(task, nfe, stochastic, report):
    """The host's pairs of one kind of sampler."""
    model = core.model(task.type)
    every = core.core_pairs(model, nfe, report)
    return [pair for pair in every if core.draws_noise(model, pair.sampler) == stochastic]


def run_pair(task, pair, noise, seed=0):
    """Images of a pair, None where it took other calls than counted."""
    model = core.model(task.type)
    images, calls = core.run(
        model, core.sampler(pair.sampler), pair.sigmas, noise.float(), task.denoise, seed
    )
    return images if calls == pair.calls else None


def best_pair(task, nfe, report):
    """(errors of each noise, what a row says) of the host's best pair, and `next`, the names behind it."""

    def scores(those, count):
        found = {}
        for pair in those:
            images = run_pair(task, pair, task.noise[:count])
            if images is None:
                report(f"left out: {pair.name}, other model calls than when counted")
            else:
                found[pair] = task.errors(images)
        return dict(sorted(found.items(), key=lambda item: rms(item[1])))

    every = pairs(task, nfe, False, report)
    dear = family(task.name) == "teacher" and len(task.noise) > JUDGED
    shown = list(scores(every, JUDGED))[:FINALISTS] if dear else every
    found = scores(shown, len(task.noise))
    best, *others = found
    said = {"core_name": best.name, "core_pairs": len(every), "core_calls": best.calls * task.cost}
    said["core_next"] = [[pair.name, rms(found[pair])] for pair in others[:4]]
    said["single"] = [[p.sampler, p.scheduler] for p in found if p.calls == len(p.sigmas) - 1][:4]
    return found[best], said


def by_recipe(task, recipe, noise):
    """Images of a recipe's own solver."""
    if not recipe.asks:
        return sample_recipe(recipe, task.denoise, noise)
    top = float(task.sigma_of(torch.ones(1, dtype=torch.float64)))
    return solve_apart(recipe.solver, task.denoise.ask, start(noise, recipe.sigmas[0], top, task.path))


# ---- what a column is --------------------------------------------------------------------------


def rms(errors):
    """Of all noises, infinite where there is no number."""
    value = float(errors.square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


def interval(own, other=None):
    """95 % of what resampled noises give: of the RMS, or of its ratio to another's on the same noises."""
    which = torch.randint(len(own), (RESAMPLED, len(own)), generator=torch.Generator().manual_seed(0))
    found = own[which].square().mean(1).sqrt()
    if other is not None:
        found = found / other[which].square().mean(1).sqrt()
    return [float(v) for v in found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype))]


def put(row, column, errors, **said):
    """Put a column's errors of each noise into a row, with its interval and ratios."""
    row[column] = rms(errors)
    each = row.setdefault("each", {})
    each[column] = [float(f"{value:.4g}") for value in errors.tolist()]
    intervals = row.setdefault("intervals", {})
    intervals[column] = interval(errors)
    for other in ("core_best", "auto"):
        if other in each and other != column:
            theirs = torch.tensor(each[other], dtype=torch.float64)
            row[f"{column}/{other}"] = row[column] / row[other]
            intervals[f"{column}/{other}"] = interval(errors, theirs)
    row.update(said)


def add_fitted(task, rows, apart, keep):
    """Put "fitted", or "apart", into those rows, `keep()` after each."""
    column = "apart" if apart else "fitted"
    key = "calls" if apart else "nfe"
    counts = tuple(row[key] for row in rows)
    config = FitConfig(**{"calls" if apart else "steps": counts})
    left = {row[key]: row for row in rows}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run, began = SolverFit(FitTeacher(task), config, folder), None
        for progress in run.progress():
            if progress.fitting and began is None:
                began = time.monotonic()
            if progress.fitting not in left or progress.step % 100:
                continue
            row = left.pop(progress.fitting)
            recipe = run.recipe(row[key])
            images = by_recipe(task, recipe, task.noise)
            said = {"seconds": time.monotonic() - began, "calls": recipe.calls, **recipe.errors}
            said["recipe"] = json.loads(recipe.to_json())
            put(row, column, task.errors(images), **{f"{column}_by": said})
            print(f"{task.name:16} {column} {row['nfe']:3}  {row[column]:6.4f}  {recipe.asks}", flush=True)
            keep()
            began = time.monotonic()


def add_cached(task, row):
    """Put "cached" into a row."""
    images, name, calls = skipping.best(task, row["calls"], row["single"])
    if images is None:
        row.update(cached=None, cached_name="none keeps within so many calls")
    else:
        put(row, "cached", task.errors(images), cached_name=name, cached_calls=calls)


def fitted_fresh(task, nfe):
    """The fit of grid and churn to as many of the model's own pictures, from other noise."""
    generator = torch.Generator().manual_seed(1000)
    noise = torch.randn(PICTURES, *task.cloud.shape, generator=generator, dtype=torch.float64)
    dimension = {"dimension": task.noise[0].numel()}
    few, fine = (grids.grid("auto", n, task.sigma_of, task.path, **dimension) for n in (nfe, REFERENCE_STEPS))
    top = float(task.sigma_of(torch.ones(1, dtype=torch.float64)))
    x = start(noise, float(fine[0]), top, task.path)
    with torch.no_grad():
        run = list(sample(task.denoise, x, fine, task.path, order=3))
        data = Trajectories(
            task.path,
            fine,
            torch.stack([x, run[-1].x], 1),
            run[-1].x0[:, None],
            lambda x, sigma, which: task.denoise(x, sigma),
        )
        *_, best = fit_fresh(data, few, auto.CHURN, FRESH_RUNS * PICTURES * nfe, PICTURES)
    return best


def by_solver(task, solver, noise, seed):
    """Images of a linear solver with fresh noise."""
    top = float(task.sigma_of(torch.ones(1, dtype=torch.float64)))
    with torch.no_grad():
        return solve_linear(
            solver, task.denoise, start(noise, solver.sigmas[0], top, task.path), batch_noise(seed)
        )


def stochastic_row(task, nfe, report):
    """One row of samplers that draw noise: the mean over draws, and how often ours is the nearer one."""
    directions = exact.unit_directions(DIRECTIONS, math.prod(task.cloud.shape))
    found, floors, fresh = {"auto": [], "fitted": []}, [], fitted_fresh(task, nfe)
    every = pairs(task, nfe, True, report)
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(2 + draw)
        truth, again = (task.cloud.sample(SAMPLES, generator) for _ in range(2))
        noise = torch.randn(SAMPLES, *task.cloud.shape, generator=generator, dtype=torch.float64)

        def judge(images, truth=truth):
            return exact.sliced_wasserstein(images, truth, directions) / task.deviation

        floors.append(judge(again))
        found["auto"].append(judge(automatic(task, noise, nfe, True, draw)))
        found["fitted"].append(judge(by_solver(task, fresh.solver, noise, draw)))
        if draw == 1:  # only those that came near
            every = sorted(every, key=lambda pair: found[pair.name][0])[:FINALISTS]
        for pair in every:
            images = run_pair(task, pair, noise, draw)
            value = judge(images) if images is not None else math.inf
            found.setdefault(pair.name, []).append(value if math.isfinite(value) else math.inf)
    own, fit = found.pop("auto"), found.pop("fitted")
    whole = {name: values for name, values in found.items() if len(values) == DRAWS}
    name = min(whole, key=lambda one: statistics.mean(whole[one]))
    best = statistics.mean(whole[name])
    return {
        "auto": statistics.mean(own),
        "core_best": best,
        "core_name": name,
        "core_pairs": len(found),
        "auto/core_best": statistics.mean(own) / best,
        "fitted": statistics.mean(fit),
        "fitted/core_best": statistics.mean(fit) / best,
        "fitted/auto": statistics.mean(fit) / statistics.mean(own),
        "fitted_ahead": sum(a < b for a, b in zip(fit, whole[name])),
        "fitted_churn": fresh.churn,
        "fitted_sigmas": fresh.solver.sigmas,
        "ahead": sum(a < b for a, b in zip(own, whole[name])),
        "draws": DRAWS,
        "floor": statistics.mean(floors),
    }


# ---- tables ------------------------------------------------------------------------------------


def show(row):
    """One line."""
    line = f"{row['case']:20} {row['kind']} {row['nfe']:3} {row['calls']:3} calls "
    line += " ".join(f"{name} {row[name]:.4f}" for name in COLUMNS if row.get(name) is not None)
    print(line + (f"  {row['core_name']}" if "core_name" in row else ""), flush=True)


def show_table(title, rows, figure, counts):
    """A line for each case, a column for each number of predictions."""
    cases = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["nfe"]] = row[figure]
    print(f"\n| {title} | {' | '.join(str(n) for n in counts)} |")
    print("|---" * (1 + len(counts)) + "|")
    for name, cells in cases.items():
        print(f"| {name} | {' | '.join(f'{cells[n]:.2f}' if n in cells else '' for n in counts)} |")


def summary(rows):
    """Each column as a share of the best pair's error and of auto's, and how often it is no worse."""
    for kind, title in TITLES.items():
        for column in COLUMNS[1:]:
            for other in ("core_best", "auto"):
                key = f"{column}/{other}"
                those = [row for row in rows if row["kind"] == kind and key in row]
                if not those:
                    continue
                show_table(f"{title}: {key}", those, key, sorted({row["nfe"] for row in those}))
                values = [row[key] for row in those]
                print(
                    f"no worse in {sum(v <= 1 for v in values)} of {len(values)}, geometric mean "
                    f"{statistics.geometric_mean(values):.2f}, worst {max(values):.2f}"
                )
                for low, high in ((3, 6), (8, 10)):
                    for trained in (False, True):
                        cells = [
                            row[key]
                            for row in those
                            if low <= row["nfe"] <= high and (row["case"] in TEACHERS) == trained
                        ]
                        if cells:
                            print(
                                f"{'trained' if trained else 'exact'}, {low} to {high}: geometric mean "
                                f"{statistics.geometric_mean(cells):.3f}, {len(cells)} cells"
                            )


# ---- a picture -----------------------------------------------------------------------------------

PICTURED, SHOWN, TEACHER_STEPS = ("teacher-flow-cfg4", 4), 8, 50  # case and predictions; noises


@torch.no_grad()
def picture(rows, file):
    """What each column of a row makes of the same noises, beside many steps of the teacher."""
    name, nfe = PICTURED
    row = next((row for row in rows if (row["case"], row["nfe"]) == PICTURED), {})
    if lacking := {*COLUMNS[:-1]} - set(row.get("each", ())):
        raise SystemExit(f"--picture needs {', '.join(sorted(lacking))} of {name} at {nfe} in --json.")
    work = task(name, SHOWN)
    pair = next(p for p in core.core_pairs(core.model(work.type), nfe, str) if p.name == row["core_name"])
    fits = {key: Recipe.from_json(json.dumps(row[f"{key}_by"]["recipe"])) for key in ("fitted", "apart")}
    drawn = {
        f"teacher\n{TEACHER_STEPS} steps": automatic(work, work.noise, TEACHER_STEPS),
        f"best in ComfyUI\n{pair.name}": run_pair(work, pair, work.noise),
        "auto": automatic(work, work.noise, nfe),
        **{name: by_recipe(work, recipe, work.noise) for name, recipe in fits.items()},
    }
    columns, notes = {}, {}
    for head, images in drawn.items():
        calls = row["calls"] if columns else 2 * TEACHER_STEPS
        head = f"{head}\n{calls} calls"
        columns[head] = data.to_pixels(images.float())
        notes[head] = [f"{value:.3f}" for value in work.errors(images)]
    names = [work.denoise.teacher.labels[number] for number in work.denoise.condition]
    title = f"{name}: labels and noise that no fit has seen"
    pictures.grid(columns, names, title, scale=3, notes=notes).save(file)


# ---- a run -------------------------------------------------------------------------------------


def save(path, rows):
    """Write all rows at once, so that a stopped run leaves a whole file."""
    if path:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        part.replace(path)


def numbers(text):
    return [int(v) for v in text.split(",")]


def measure(name, args, rows, report):
    """All that is lacking of a case."""
    own = [row for row in rows if row["case"] == name]
    kept = {(row["nfe"], row["kind"]): row for row in own if row["kind"] == "ode" or "draws" in row}
    cost = 2 if name in TEACHERS else 1
    stochastic = [
        n for n in args.nfe if not args.no_sde and family(name) == "mixture" and (n, "sde") not in kept
    ]
    lacking = {column: [] for column in args.columns}
    for n in args.nfe:
        row = kept.get((n, "ode"), {})
        for column in args.columns:
            fits = n <= MOST_STEPS if column in ("fitted", "apart") else True
            there = column in row.get("each", ()) or row.get("cached_name") and column == "cached"
            if not there and fits and not (column == "apart" and cost == 1):
                lacking[column].append(n)
    if not stochastic and not any(lacking.values()):
        return
    began, work = time.monotonic(), task(name, args.noises)
    print(
        f"{name}: reference converged to {work.accuracy:.1e} in {time.monotonic() - began:.0f} s", flush=True
    )

    def row_of(nfe):
        if (nfe, "ode") not in kept:
            rows.append({"case": name, "nfe": nfe, "kind": "ode", "calls": nfe * cost})
            kept[nfe, "ode"] = rows[-1]
        kept[nfe, "ode"].update(accuracy=work.accuracy, noises=len(work.noise))
        return kept[nfe, "ode"]

    for nfe in args.nfe:
        row = row_of(nfe)
        if nfe in lacking.get("core_best", ()):
            errors, said = best_pair(work, nfe, report)
            put(row, "core_best", errors, **said)
        if nfe in lacking.get("auto", ()):
            put(row, "auto", work.errors(automatic(work, work.noise, nfe)))
            show(row)
        save(args.json, rows)
    for column in ("fitted", "apart"):
        if those := [row_of(n) for n in lacking.get(column, ())]:
            add_fitted(work, those, column == "apart", keep=lambda: save(args.json, rows))
    for nfe in lacking.get("cached", ()):
        add_cached(work, row_of(nfe))
        show(row_of(nfe))
        save(args.json, rows)
    for nfe in stochastic:
        made = {"case": name, "nfe": nfe, "kind": "sde", "calls": nfe}
        stale = [row for row in own if (row["nfe"], row["kind"]) == (nfe, "sde")]
        rows[:] = [row for row in rows if row not in stale]
        rows.append(made | stochastic_row(work, nfe, report))
        show(rows[-1])
        save(args.json, rows)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, help="keep the rows there; what is in it is not worked out again"
    )
    parser.add_argument("--picture", type=Path, help="draw the columns' pictures into this file")
    parser.add_argument("--noises", type=int, help="starting noises of a case; by default 64")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--nfe", type=numbers, default=NFE, help="predictions, such as 3,4,8")
    parser.add_argument("--columns", default=",".join(COLUMNS), help=f"some of {','.join(COLUMNS)}")
    parser.add_argument("--no-sde", action="store_true", help="leave out samplers that draw noise")
    args = parser.parse_args()
    for name, known in (("cases", CASES), ("columns", COLUMNS)):
        given = getattr(args, name).split(",")
        if unknown := set(given) - set(known):
            parser.error(f"--{name} must be some of {', '.join(known)}; got {', '.join(sorted(unknown))}")
        setattr(args, name, given)
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    core.start()
    said = set()

    def report(line):
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    for name in args.cases:
        measure(name, args, rows, report)
    summary(rows)
    if args.picture:
        picture(rows, args.picture)


if __name__ == "__main__":
    main()
