"""`started(name or line, world, folder, ...)` runs a scenario of `forks`, or a command line, in so many
processes and returns the exit codes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def started():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    command = [sys.executable, str(Path(__file__).parent / "forks.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as process:

        def start(name, world, folder, **asked):
            folder.mkdir(parents=True, exist_ok=True)
            what = {"line": name} if isinstance(name, list) else {"name": name}
            request = {**what, "world": world, "folder": str(folder), **asked}
            process.stdin.write(json.dumps(request) + "\n")
            return json.loads(process.stdout.readline())

        yield start
        process.stdin.close()


@pytest.fixture
def said():
    """What the processes of a scenario said, rank by rank."""

    def read(folder):
        return [file.read_text().strip() for file in sorted(folder.glob("said.*"))]

    return read
