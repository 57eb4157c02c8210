"""What blur + noise costs beside plain noise: `forward.Chain(Blur, Gaussian)` in units of the Gaussian's.

    python benchmarks/udm_cost.py [--json FILE] [--repeats N] [--device cuda]

One 16 x 128 x 128 latent, float32, one thread. Both processes take turns within every repetition, and ratios
are the medians of the pairs'. On a CPU time is the thread's own, so that neighbours do not count; on CUDA it
is wall time between synchronisations.

forward, solve   corrupt(x0, eps, t) and solve_noise(x0, x_t, t), us, and their sum's ratio; target: at most 2
with noise       the same with the drawing of eps, which both need
step             transition from t to t - 0.05 as the sampler calls it (kappa = 0), a solve and a forward at
                 once, and its ratio to the Gaussian's solve and forward
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from fewstep.diffusion.destruction.degradations import hot_blur
from fewstep.diffusion.destruction.forward import gaussian

SHAPE = (1, 16, 128, 128)
TIMES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STEP = 0.05
WIDTH = 20.0  # of the blur at time 1, pixels
TARGET = 2.0
HEAD = (
    "   t  blur px | us forward: Gaussian  blur | solve: Gaussian  blur | ratio  with noise | us step  ratio"
)


def clock(device):
    """A function that reads the time in seconds."""
    if device == "cpu":
        return time.thread_time

    def read():
        torch.cuda.synchronize()
        return time.perf_counter()

    return read


def paired(functions, device, repeats, inner):
    """Seconds of every function in every repetition, {name: [seconds]}; `inner` calls are timed together."""
    read, times = clock(device), {name: [] for name in functions}
    for i in range(repeats + 3):
        for name, function in functions.items():
            began = read()
            for _ in range(inner):
                function()
            if i >= 3:  # the first ones build what is kept
                times[name].append((read() - began) / inner)
    return times


def ratio(times, over, under):
    """The median over repetitions of the sum of `over` divided by the sum of `under`."""
    above = [sum(each) for each in zip(*(times[name] for name in over))]
    below = [sum(each) for each in zip(*(times[name] for name in under))]
    return statistics.median(a / b for a, b in zip(above, below))


def measure(t, device, repeats, inner):
    """One row of the table."""
    plain, blurred = gaussian(), hot_blur(WIDTH)
    generator = torch.Generator(device).manual_seed(0)
    x0, eps = torch.randn(2, *SHAPE, generator=generator, device=device).unbind(0)
    x, y = plain.corrupt(x0, eps, t), blurred.corrupt(x0, eps, t)
    timed = {
        "Gaussian forward": lambda: plain.corrupt(x0, eps, t),
        "blur forward": lambda: blurred.corrupt(x0, eps, t),
        "Gaussian solve": lambda: plain.solve_noise(x0, x, t),
        "blur solve": lambda: blurred.solve_noise(x0, y, t),
        "blur step": lambda: blurred.transition(y, x0, t, t - STEP),
        "noise": lambda: torch.randn(SHAPE, generator=generator, device=device),
    }
    times = paired(timed, device, repeats, inner)
    both, beside = ["blur forward", "blur solve"], ["Gaussian forward", "Gaussian solve"]
    return {
        "t": t,
        "blur_pixels": round(float(blurred.degradations[0].std(t)), 2),
        **{f"{name} us": round(1e6 * statistics.median(v), 1) for name, v in times.items()},
        "ratio": round(ratio(times, both, beside), 2),
        "target": TARGET,
        "ratio_with_noise": round(ratio(times, [*both, "noise"], [*beside, "noise"]), 2),
        "ratio_of_step": round(ratio(times, ["blur step"], beside), 2),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(HEAD)
    with torch.no_grad():
        for t in TIMES:
            row = measure(t, args.device, args.repeats, 1 if args.device == "cpu" else 50)
            rows.append(row)
            print(
                f"{t:4.2f}  {row['blur_pixels']:7.2f} | "
                f"{row['Gaussian forward us']:20.0f} {row['blur forward us']:5.0f} | "
                f"{row['Gaussian solve us']:15.0f} {row['blur solve us']:5.0f} | {row['ratio']:5.2f}  "
                f"{row['ratio_with_noise']:10.2f} | {row['blur step us']:7.0f}  {row['ratio_of_step']:5.2f}"
                f"{'' if row['ratio'] <= TARGET else '   MISSED'}"
            )
    missed = [row["ratio"] for row in rows if row["ratio"] > TARGET]
    result = f"missed at {len(missed)} of {len(rows)} times, at worst {max(missed):.1f}" if missed else "met"
    print(f"target {TARGET:g}: {result}")
    if args.json:
        whole = {"device": args.device, "shape": list(SHAPE), "rows": rows}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
