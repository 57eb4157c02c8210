"""What the machine has: bytes that a run may take on a device, and bytes that this process holds."""

import math
import os
from pathlib import Path

import torch

from ..models.devices import free_bytes, most_bytes

ROOT = Path("/")
# version 2, version 1: folder, limit, taken, what of it the system gives back
CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(device: torch.device | str) -> float:
    """Bytes that a run may take on that device; inf where unknown.

    That is what is free there, and what this process can give back.
    """
    if torch.device(device).type != "cpu":
        return free_bytes(device)
    try:  # with what the system gives back of its caches
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # Windows, macOS
        return math.inf
    return min(free, *(_granted(*files) for files in CGROUPS))


def _granted(folder, limit, taken, cache):
    """Bytes that a container's limit leaves; inf without a limit.

    They include what the system gives back of its caches.
    """
    try:
        most, now = (int((ROOT / folder / name).read_text()) for name in (limit, taken))
        lines = (ROOT / folder / "memory.stat").read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return max(0, most - now + int(counts.get(cache, 0)))
    except (OSError, ValueError):  # no such control group, or "max"
        return math.inf


def used(device: torch.device | str) -> int | None:
    """Bytes that this process holds on that device; None where unknown.

    On an accelerator that tells, the most that its tensors took since the run began.
    """
    if torch.device(device).type != "cpu":
        return most_bytes(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # Windows, macOS
        return None


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
