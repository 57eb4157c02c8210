"""Does a sampler keep the path's marginals? The worst deviation over all model calls, for data of one point.

    python benchmarks/oracle.py [--json FILE] [--elements N] [--ours]

With x0 known, x at every call must have mean alpha x0 and standard deviation sigma, whatever the sampler did
before. Deviations are those of the mean relative to max(alpha |x0|, sigma) and of the standard deviation
relative to sigma; 1 % is the limit. The host's own samplers stand beside ours (8 steps, scheduler "simple");
without ComfyUI that part is skipped.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import core
import exact
import torch
from fewstep.diffusion.samplers import sample
from fewstep.diffusion.schedules import grids

POINT, STEPS, LIMIT, CORE_STEPS = 1.3, (1, 2, 4, 8, 20), 0.01, 8
SOLVERS = [
    *({"order": order, "corrector": corrected} for order in (1, 2, 3) for corrected in (False, True)),
    {"order": "heun"},
]
NOISES = [
    *({"churn": c, "mode": mode} for mode in ("each step", "raise first") for c in (0.0, 0.5, 1.0, math.inf)),
    {"churn": 1.0, "mode": "restart"},
    {"kappa": 0.5},
    {"kappa": 1.0},
]


class Watch:
    """A denoiser (x, sigma) -> POINT that keeps the worst deviation of what it is given."""

    def __init__(self, path):
        self.path, self.worst = path, 0.0

    def __call__(self, x, sigma):
        alpha = float(self.path.alpha(torch.tensor(sigma, dtype=torch.float64)))
        std, mean = (float(v) for v in torch.std_mean(x.double()))
        mean_off = abs(mean - alpha * POINT) / max(abs(alpha * POINT), sigma)
        std_off = abs(std - sigma) / sigma if sigma > 0 else std
        self.worst = max([self.worst, mean_off, std_off], key=lambda v: math.inf if math.isnan(v) else v)
        return torch.full_like(x, POINT)


def unit_noise(shape, generator):
    """Normal noise (float64) with its own mean and variance brought to 0 and 1, so that 1 % shows."""
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (z - z.mean()) / z.std()


def attempt(path, run, *args, **kwargs):
    """{"deviation": the worst at any call, "end": how far the result is from the data} of run(watch, ...).

    The run yields states. Where it fails, or its result is no number, both are None and there is an "error".
    """
    watch, x = Watch(path), torch.full((1,), math.nan)
    try:
        for state in run(watch, *args, **kwargs):
            x = state
    except (ArithmeticError, RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        return {"deviation": None, "end": None, "error": f"{type(error).__name__}: {str(error)[:100]}"}
    end = float((x.double() - POINT).square().mean().sqrt()) / POINT
    if not math.isfinite(watch.worst + end):
        return {"deviation": None, "end": None, "error": "not a number"}
    return {"deviation": watch.worst, "end": end}


def own_run(watch, *args, **options):
    """The states of our kernel."""
    for state in sample(watch, *args, **options):
        yield state.x


def named(solver, noising):
    """What a setting of ours is called in the table."""
    corrected = " corrected" if solver.get("corrector") else ""
    how = ", ".join(value if name == "mode" else f"{name} {value}" for name, value in noising.items())
    return f"order {solver['order']}{corrected}, {how}"


def ours(elements, seed=0):
    """Rows of every setting of ours on every model type and step count."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, elements)

    def fresh(x):
        return unit_noise(x.shape, generator)

    for kind, solver, noising, steps in itertools.product(exact.TYPES, SOLVERS, NOISES, STEPS):
        path, sigma_of = exact.model_type(kind)
        sigmas = grids.grid("uniform", steps, sigma_of, path)
        start = path.alpha(sigmas[0]) * POINT + sigmas[0] * unit_noise(shape, generator)
        row = {"who": "fewstep", "sampler": named(solver, noising), "model": kind, "steps": steps}
        yield row | attempt(path, own_run, start, sigmas, path, **solver, **noising, noise=fresh)


def hosts(elements, seed=0):
    """Rows of the host's samplers on every model type."""
    side = math.isqrt(elements // 4)
    for kind in exact.TYPES:
        model, path = core.model(kind), exact.model_type(kind)[0]
        for name in core.names()[0]:
            if core.twin(name):
                continue
            row = {"who": "core", "sampler": name, "model": kind, "steps": CORE_STEPS}
            noise = unit_noise((1, 4, side, side), torch.Generator().manual_seed(seed)).float()
            yield row | attempt(path, host_run, model, name, noise, seed)


def host_run(watch, model, name, noise, seed):
    """The result of the host's sampler over data at POINT, as its only state."""
    sigmas = core.sigmas(model, name, "simple", CORE_STEPS)
    latent = torch.full_like(noise, POINT)
    samples, _ = core.run(model, core.sampler(name), sigmas, noise, watch, seed, latent)
    yield samples


def table(rows):
    """A line for each sampler, a column for each model type: the worst of its step counts, in percent.

    "!" stands behind what is above the limit, "inf" for runs that failed.
    """
    cells = {}
    for row in rows:
        line = cells.setdefault(row["sampler"], {})
        off = math.inf if row["deviation"] is None else row["deviation"]
        line[row["model"]] = max(line.get(row["model"], 0.0), off)
    width = max(map(len, cells), default=0)
    print(" " * width, *(f"{kind:>13}" for kind in exact.TYPES))
    for name, line in cells.items():
        print(
            f"{name:{width}}",
            *(f"{100 * line[kind]:12.3g}{'!' if line[kind] > LIMIT else ' '}" for kind in exact.TYPES),
        )
    away = [row for row in rows if (row["end"] or 0) > LIMIT]
    off = sorted({f"{row['sampler']} on {row['model']} {100 * row['end']:.3g}" for row in away})
    if off:
        print(f"results off the data by more than {100 * LIMIT:g} % of it: {'; '.join(off)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument(
        "--elements", type=int, default=200_000, help="elements of x; fewer are faster and noisier"
    )
    parser.add_argument("--ours", action="store_true", help="leave the host's samplers out")
    args = parser.parse_args()
    rows = list(ours(args.elements))
    failed = [row for row in rows if row["deviation"] is None]
    worst = None if failed else max(row["deviation"] for row in rows)
    print("fewstep: worst deviation in percent")
    table(rows)
    for error in sorted({row["error"] for row in failed}):
        settings = sorted({f"{row['sampler']} ({row['model']})" for row in failed if row["error"] == error})
        print(f"FAILED with {error}: {'; '.join(settings)}")
    if not failed:
        verdict = "within" if worst <= LIMIT else "ABOVE"
        print(f"worst of all {len(rows)} runs: {100 * worst:.3g} %, {verdict} {100 * LIMIT:g} %\n")
    if not args.ours:
        try:
            others = list(hosts(args.elements))
            print(f"ComfyUI core, {CORE_STEPS} steps, scheduler simple")
            table(others)
            rows += others
        except core.NoHost as error:
            print(f"ComfyUI core: skipped. {error}")
    if args.json:
        args.json.write_text(json.dumps({"worst": worst, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
