"""`--processes N`: the same command in N processes of this machine, started by torchrun."""

import logging
import os
import sys
import uuid

from ...diffusion.faults import BadValue, NotInstalled
from ..ranks.joining import several

PACKAGE = __package__.rpartition(".")[0]  # `python -m` it is the command line


def launch(processes: int, arguments: list[str] | None = None) -> int:
    """Run this command line, without --processes, in so many processes; returns the exit status.

    arguments: in place of this process's own. Raises ValueError for a number below 1, and within torchrun.
    """
    if processes < 1:
        raise BadValue("processes must be 1 or more, got {got}.", got=processes)
    if several():
        raise BadValue(
            "processes must be left out where torchrun has started several already, got {got}.",
            got=processes,
        )
    try:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run
    except ImportError as error:
        raise NotInstalled(
            "Several processes need a PyTorch with torch.distributed, and this one is built without. Run one "
            "process, or install PyTorch from pytorch.org."
        ) from error
    arguments = without(sys.argv[1:] if arguments is None else arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the run itself says what ended it
    started = ["--nnodes=1", f"--nproc-per-node={processes}", f"--rdzv-id={uuid.uuid4()}", "--standalone"]
    try:
        run(parse_args([*started, "-m", PACKAGE, *arguments]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return max(2, *(code for code in codes if code > 0)) if any(code > 0 for code in codes) else 2
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return 130
    return 0


def without(arguments: list[str]) -> list[str]:
    """A command line without its --processes N."""
    found, skip = [], False
    for text in arguments:
        if skip or text == "--processes" or text.startswith("--processes="):
            skip = text == "--processes" and not skip
            continue
        found.append(text)
    return found
