"""What the sections of `card.py` have in common: the card, the size of a run, rates and peaks."""

import gc
import time

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS = 8  # of each measurement
BATCH = 4


def rank_of(name, tiny):
    """The LoRA's rank on that model, the same for whoever trains it."""
    if tiny:
        return 4
    return 64 if name.startswith("SD") else 32


def wait():
    """Until the card has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rate(work, seconds=SECONDS):
    """Calls of `work` a second, after one to warm up; at least one."""
    work()
    wait()
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        work()
        wait()
        calls += 1
    return calls / (time.perf_counter() - began)


def peak(work):
    """Bytes at the worst moment of `work`, of all that lies on the card; None without one."""
    if DEVICE.type != "cuda":
        work()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait()
    return torch.cuda.max_memory_allocated()
