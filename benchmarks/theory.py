"""Draws the plots of docs/theory.md by the project's own formulas, and prints the figures of its text.

    python benchmarks/theory.py        writes docs/theory_*.png; seconds

churn      the weight that each of 8 predictions has in the picture, by churn (`diffusion/probe.py`)
scaling    one path in three scalings: the states differ, the pictures do not (`diffusion/paths.py`)
straight   how far the paths of a flow model are from straight lines, and what few Euler steps lose by it
"""

import math
import sys
from pathlib import Path

import torch
from exact import Cloud
from fewstep.diffusion.paths import FLOW, VARIANCE_EXPLODING, VARIANCE_PRESERVING
from fewstep.diffusion.probe import prediction_weights
from fewstep.diffusion.samplers import sample, solve
from fewstep.training.reports.pictures import curves

DOCS = Path(__file__).parent.parent / "docs"
STEPS = 8
CHURNS = {"churn 0": 0.0, "churn 0.25": 0.25, "churn 1 (DDPM)": 1.0, "all noise fresh (LCM)": math.inf}
PATHS = (VARIANCE_EXPLODING, VARIANCE_PRESERVING, FLOW)
STRAIGHT = 200  # Euler steps that stand for the exact path


def cloud(*means, std):
    """A mixture of equal parts on a line."""
    places = torch.tensor(means, dtype=torch.float64)[:, None]
    return Cloud(places, torch.full((len(means),), 1 / len(means), dtype=torch.float64), std, (1,))


# ---- the weight of each prediction, by churn ---------------------------------------------------


def churn_lines():
    """{churn: [(call, weight)]} on the flow path, and the share of the starting noise that is left."""
    grid = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    lines, left = {}, {}
    for name, churn in CHURNS.items():

        def run(respond, noise, latent, churn=churn):
            still = torch.zeros_like
            return solve(respond, noise + latent, grid, FLOW, churn=churn, noise=still)

        found = prediction_weights(run, FLOW, (1, 1, 8, 8))
        lines[name] = [(call + 1, weight) for call, weight in enumerate(found.predictions)]
        left[name] = found.survival
    return lines, left


# ---- one path in three scalings ----------------------------------------------------------------


def scaling_lines():
    """States in each path's own scale, states over alpha, and how far the pictures are apart.

    The grids have the same lambda, from where all three have some signal.
    """
    data = cloud(-1.0, 1.0, std=0.2)
    lambdas = torch.linspace(-4, 4, STEPS + 1, dtype=torch.float64)
    noise = torch.tensor([[0.8]], dtype=torch.float64)
    own, common, pictures = {}, {}, []
    for path in PATHS:
        grid = path.sigma(lambdas)
        grid[-1] = 0.0
        states = [(grid[0], noise * grid[0])]
        steps = sample(lambda x, sigma, path=path: data.denoise(x, path, sigma), states[0][1], grid, path)
        states += [(torch.tensor(state.sigma_next, dtype=torch.float64), state.x) for state in steps]
        own[path.name] = [(n, float(x)) for n, (_, x) in enumerate(states)]
        common[path.name] = [(n, float(x / path.alpha(sigma))) for n, (sigma, x) in enumerate(states)]
        pictures.append(float(states[-1][1]))
    return own, common, max(pictures) - min(pictures)


# ---- straight paths ----------------------------------------------------------------------------

DATA = {
    "one picture": cloud(0.5, std=0.0),
    "one Gaussian": cloud(0.0, std=0.5),
    "two pictures": cloud(-1.0, 1.0, std=0.05),
    "four pictures": cloud(-1.5, -0.5, 0.5, 1.5, std=0.05),
}


def straight_lines(noises=512):
    """How far states lie from the chord of their path, by time; and the error of n Euler steps, by n."""
    start = torch.randn(noises, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = torch.linspace(1, 0, STRAIGHT + 1, dtype=torch.float64)
    bends, errors = {}, {}
    for name, data in DATA.items():

        def denoise(x, sigma, data=data):
            return data.denoise(x, FLOW, sigma)

        states = [start, *(state.x for state in sample(denoise, start, fine, FLOW))]
        end = states[-1]
        off = [float((x - (t * start + (1 - t) * end)).square().mean().sqrt()) for t, x in zip(fine, states)]
        bends[name] = list(zip(fine.tolist(), off))
        errors[name] = [(n, _euler_error(denoise, start, end, n)) for n in (1, 2, 3, 4, 6, 8, 12, 16)]
    return bends, errors


def _euler_error(denoise, start, end, steps):
    """RMS distance of a few steps' end to the exact one."""
    few = solve(denoise, start, torch.linspace(1, 0, steps + 1, dtype=torch.float64), FLOW)
    return float((few - end).square().mean().sqrt())


def main() -> int:
    """Draw all three."""
    weights, left = churn_lines()
    curves([("weight of each prediction in the picture", "model call", weights)], (760, 300)).save(
        DOCS / "theory_churn.png"
    )
    for name, share in left.items():
        print(f"{name}: {share:.3f} of the starting noise is left")
    own, common, apart = scaling_lines()
    panels = [("state, each path in its own scale", "step", own), ("state / alpha", "step", common)]
    curves(panels, (860, 300)).save(DOCS / "theory_scaling.png")
    print(f"pictures of the three scalings are {apart:.1e} apart")
    bends, errors = straight_lines()
    bent = {name: line for name, line in errors.items() if line[0][1] > 0}  # the axis is logarithmic
    panels = [
        ("distance from the chord", "time (1 noise, 0 picture)", bends),
        ("error of n Euler steps", "n", bent),
    ]
    curves(panels, (860, 300)).save(DOCS / "theory_straight.png")
    for name, line in errors.items():
        print(f"{name}: " + ", ".join(f"{n} steps {error:.4f}" for n, error in line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
