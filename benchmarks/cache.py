"""What keeping the teacher's trajectories costs beside the model's own calls.

    python benchmarks/cache.py [--json FILE] [--repeats N] [--trajectories N] [--steps N] [--cfg X]

A packaged teacher's trajectories are built into an empty cache; "bare" is the model called as often, in the
same batches. The two take turns shard by shard, and the shortest time of each shard over the repeats counts.
Target: at most 1.1 times.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import conftest  # noqa: F401   makes the checkout importable as `fewstep`
from fewstep.diffusion.schedules.grids import grid
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import Guided
from fewstep.training.trajectories.cache import CacheSpec, TrajectoryCache

TARGET = 1.1


def bare(teacher, cache):
    """Seconds of one shard's model calls alone."""
    spec = cache.spec
    x = torch.randn(spec.shard, *spec.shape)
    condition = torch.arange(spec.shard) % spec.conditions
    began = time.perf_counter()
    for sigma in spec.sigmas[:-1]:
        teacher(x, torch.full((spec.shard,), sigma, dtype=torch.float64), condition)
    return time.perf_counter() - began


def built(work, shards, number):
    """Seconds until that shard is solved and on the disk."""
    began = time.perf_counter()
    for share in work:
        if share >= (number + 1) / shards - 1e-9:
            break
    return time.perf_counter() - began


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the row there")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--trajectories", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cfg", type=float, default=2.0)
    args = parser.parse_args()
    teacher = Guided(DemoTeacher("flow"), args.cfg)
    spec = CacheSpec(
        **teacher.identity,
        conditions=teacher.conditions,
        path=teacher.path.name,
        shape=teacher.shape,
        sigmas=tuple(grid("uniform", args.steps, teacher.sigma_of, teacher.path).tolist()),
        kept=tuple(range(args.steps + 1)),
    )
    shards = -(-args.trajectories // spec.shard)
    bare_times = [[] for _ in range(shards)]  # of each shard in every repeat
    built_times = [[] for _ in range(shards)]
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = TrajectoryCache(folder, spec)
            work = cache.build(teacher, args.trajectories)
            for number in range(shards):
                bare_times[number].append(bare(teacher, cache))
                built_times[number].append(built(work, shards, number))
    bare_s = sum(map(min, bare_times))
    built_s = sum(map(min, built_times))
    row = {
        "trajectories": args.trajectories,
        "steps": args.steps,
        "cfg": args.cfg,
        "bare_s": round(bare_s, 2),
        "built_s": round(built_s, 2),
        "ratio": round(built_s / bare_s, 3),
        "target": TARGET,
        "mib": round(cache.bytes(args.trajectories) / 2**20, 1),
    }
    print(
        f"{row['trajectories']} trajectories of {row['steps']} steps: model alone {bare_s:.2f} s, "
        f"built {built_s:.2f} s, {row['mib']} MiB, ratio {row['ratio']:.3f}, target {TARGET}"
        f"{'' if row['ratio'] <= TARGET else '  MISSED'}"
    )
    if args.json:
        args.json.write_text(json.dumps({"rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
