"""What a second process gains: training and trajectories of a packaged teacher, and bytes an update.

    python benchmarks/ranks.py [--json FILE] [--pairs N] [--updates N] [--tiny]

Two processes of one thread each, joined by gloo, against one of one thread. They take turns: one works while
the other sleeps, then both do, N times; a gain is the median of the pairs' ratios. Both ways make the very
same update of 16 samples and draw the same 32 trajectories. Where an update's time goes is told by a third
turn, in which one process makes its half while the other sleeps and nothing is exchanged, and by CPU seconds:
what does not halve, what the other's work costs (caches, memory), waiting. Bytes are what the kernel counted
on a process's own connections (Linux), beside the size of what is summed. For two quiet cores: under three
minutes.
Targets: 1.8 times in training, 1.9 in trajectories.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import conftest  # noqa: F401   makes the checkout importable as `fewstep`
from fewstep.training.models.demo.teacher import DemoTeacher
from fewstep.training.models.denoiser import Guided
from fewstep.training.ranks.joining import joined
from fewstep.training.ranks.ranks import ALONE, Ranks
from fewstep.training.run.config import DistilConfig
from fewstep.training.run.run import Run
from fewstep.training.run.source import PROBES
from fewstep.training.trajectories.sampling import SHARD

TARGETS = {"training": 1.8, "trajectories": 1.9}
WARM = 2  # updates before the first that counts
ACKED = 120  # where tcp_info has the bytes that were sent and arrived


class Half(Ranks):
    """The first of two processes, whose other half nobody makes."""

    world = 2

    def share(self, batch):
        return {name: values[::2] for name, values in batch.items()}

    def summed(self, parameters, losses, count, done):
        whole = torch.zeros(count)
        whole[::2] = losses
        return whole

    def all(self, value):
        return [value, value]


def sent():
    """Bytes that this process's connections have sent, by the kernel's count; None where it tells none."""
    total = 0
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as place:
                info = place.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            total += struct.unpack_from("Q", info, ACKED)[0]
        except OSError:  # no TCP connection, or closed meanwhile
            continue
    return total or None


def a_run(ranks, folder, seed, tiny):
    """A run of the demo teacher whose trajectories are kept in a folder of that seed's."""
    small = {"images": 2 * SHARD - PROBES, "seed": seed} | ({"rank": 2, "image_steps": 4} if tiny else {})
    identity = {"patches": "", "conditioning": "labels"}
    return Run(DemoTeacher("flow"), DistilConfig(**small), cache=(folder, identity), ranks=ranks)


def drawn(ranks, folder, seed, tiny):
    """Seconds that two shards of new trajectories take."""
    run = a_run(ranks, folder, seed, tiny)
    try:
        began = time.perf_counter()
        with run.student.lora.off():
            teacher = Guided(run.student.asked, run.config.cfg)
            for _ in run.source.cache.build(teacher, 2 * SHARD, ranks):
                pass
        return time.perf_counter() - began
    finally:
        run.close()


def updates(run, count):
    """(seconds, CPU seconds) of so many updates."""
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        run.update()
    return time.perf_counter() - began, time.process_time() - busy


def in_turn(ranks, both, *alone):
    """What rank 0 measures alone while the others sleep, one after another, and then all together."""
    found = [one() for one in alone] if ranks.leads else [None] * len(alone)
    for _ in ranks.all_come():
        time.sleep(0.05)
    return (*found, both())


def parts(turns, count):
    """Milliseconds of an update of two processes, of CPU but for the waiting; turns: of whole, half, both."""
    whole, half, both, busy = (
        1e3 * statistics.median(turn[which][kind] for turn in turns) / count
        for which, kind in ((0, 1), (1, 1), (2, 0), (2, 1))
    )
    found = {
        "half of what one process takes": whole / 2,
        "what does not halve": half - whole / 2,
        "slower beside the other": busy - half,
        "waiting": both - busy,
    }
    return {name: round(value, 1) for name, value in found.items()}


def measured(ranks, folder, args):
    """The row, on rank 0."""
    torch.set_num_threads(1)
    # the one process keeps its trajectories apart; a run of the same seed and folder finds them ready
    mine = folder / "alone"
    runs = {"both": a_run(ranks, folder / "both", 0, args.tiny)}
    if ranks.leads:
        runs |= {"alone": a_run(ALONE, mine, 0, args.tiny), "half": a_run(Half(), mine, 0, args.tiny)}
    drawings = [
        in_turn(
            ranks,
            lambda seed=seed: drawn(ranks, folder / "both", seed, args.tiny),
            lambda seed=seed: drawn(ALONE, mine, seed, args.tiny),
        )
        for seed in range(args.pairs)  # seed 0 is that of the runs, which then find theirs drawn
    ]
    for run in runs.values():
        for _ in run.source.gather():
            pass
        updates(run, WARM)
    pairs, before, payload = [], sent(), ranks.sent
    for _ in range(args.pairs):
        turns = [lambda name=name: updates(runs[name], args.updates) for name in ("both", "alone", "half")]
        pairs.append(in_turn(ranks, *turns))
    count = args.pairs * args.updates
    on_the_wire = (sent() - before) / count if before else None
    row = {"bytes_per_update": round(on_the_wire or (ranks.sent - payload) / count)}
    if ranks.leads:
        trained = [(one[0], both[0]) for one, _, both in pairs]
        for name, found in (("training", trained), ("trajectories", drawings)):
            row[name] = round(statistics.median(one / both for one, both in found), 3)
        samples = runs["both"].config.batch * args.updates
        row["samples_per_second"] = [round(samples / statistics.median(side), 2) for side in zip(*trained)]
        row["update_ms"] = parts(pairs, args.updates)
        row |= {"payload": (ranks.sent - payload) // count, "targets": TARGETS, "pairs": args.pairs}
    for run in runs.values():
        run.close()
    return row


def worker(args):
    """One of the processes."""
    with joined() as ranks:
        row = measured(ranks, Path(args.folder), args)
        most = max(ranks.all(row["bytes_per_update"]))
    if not ranks.leads:
        return
    row["bytes_per_update"] = most
    for name, target in TARGETS.items():
        missed = "" if row[name] >= target else "  MISSED"
        print(f"{name:13} {row[name]:5.2f} times with two processes, target {target}{missed}")
    one, two = row["samples_per_second"]
    print(f"training      {one:.2f} samples/s with one process, {two:.2f} with two")
    for name, value in row["update_ms"].items():
        print(f"an update     {value:.1f} ms {name}")
    print(f"an update     {most} bytes sent by a process, of which the sum is {row['payload']}")
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the row there")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--updates", type=int, default=8, help="of a turn")
    parser.add_argument("--tiny", action="store_true", help="a small form that tells nothing, for tests")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of a worker
    args = parser.parse_args()
    if args.folder:
        worker(args)
        return
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(2):
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
            command = [sys.executable, __file__, "--folder", folder, *sys.argv[1:]]
            started.append(subprocess.Popen(command, env=environment))
        sys.exit(max(process.wait() for process in started))


if __name__ == "__main__":
    main()
