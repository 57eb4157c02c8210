"""What a sampler's own arithmetic costs a step, beside the host's euler: the model returns a stored tensor.

    python benchmarks/overhead.py [--json FILE] [--repeats N]

20 steps on float32 latents; ours through the function that the node hands to the host. The samplers take
turns within every repetition; medians. Targets: order 1 at most 1.0 times euler, order 3 at most 1.3 times.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import core
import torch

SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128))
STEPS = 20
KIND = "flow shift 1"
TARGETS = {1: 1.0, 3: 1.3}


class Still:
    """Stands where the host's inpainting wrapper stands: the same guider, a prediction that costs nothing."""

    def __init__(self, model, x0):
        self.inner_model = core.pack_module("FewstepInspectSampler").probing.DenoiserGuider(model, None)
        self.x0 = x0

    def __call__(self, x, sigma, **extra_args):
        return self.x0


def seconds(sampler, model, x, sigmas):
    """Wall time of one run."""
    extra = {"model_options": {}, "seed": 0, "denoise_mask": None}
    began = time.perf_counter()
    with torch.no_grad():
        sampler.sampler_function(
            model,
            x,
            sigmas,
            extra_args=extra,
            callback=lambda state: None,
            disable=True,
            **sampler.extra_options,
        )
    return time.perf_counter() - began


def measure(shape, repeats):
    """{who: median seconds a step}"""
    model = core.model(KIND)
    function = core.pack_module("FewstepSampler").sample
    kind = type(core.sampler("euler"))
    samplers = {"euler": core.sampler("euler")}
    for order in TARGETS:
        samplers[f"order {order}"] = kind(function, {"order": order})
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, *shape, generator=generator).unbind(0)
    still, sigmas = Still(model, x0), core.sigmas(model, "euler", "simple", STEPS)
    times = {name: [] for name in samplers}
    for i in range(repeats + 3):
        for name, sampler in samplers.items():
            took = seconds(sampler, still, x, sigmas)
            if i >= 3:  # the first runs warm caches up
                times[name].append(took / STEPS)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    rows = []
    for shape in SHAPES:
        medians = measure(shape, args.repeats)
        for order, target in TARGETS.items():
            row = {
                "shape": list(shape[1:]),
                "order": order,
                "us_per_step": round(1e6 * medians[f"order {order}"], 1),
                "euler_us_per_step": round(1e6 * medians["euler"], 1),
                "ratio": round(medians[f"order {order}"] / medians["euler"], 3),
                "target": target,
            }
            rows.append(row)
            print(
                f"{'x'.join(map(str, shape[1:])):>10}  order {order}: {row['us_per_step']:8.1f} us a step, "
                f"euler {row['euler_us_per_step']:8.1f} us, ratio {row['ratio']:.3f}, target {target}"
                f"{'' if row['ratio'] <= target else '  MISSED'}"
            )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
