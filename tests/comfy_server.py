"""A real ComfyUI server for tests: the pack in a base directory of its own, the process, and a few calls."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKFLOWS = Path(__file__).parent / "nodes" / "workflows"


def link_pack(base, name="fewstep"):
    """A ComfyUI base directory whose custom_nodes holds this pack alone, in a folder of that name."""
    (base / "custom_nodes").mkdir(parents=True)
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "node_modules", "__pycache__", "tests", "demo-out", "fit-out", "*.part"
    )
    shutil.copytree(ROOT, base / "custom_nodes" / name, ignore=ignore)
    return base / "custom_nodes" / name


class Server:
    """A running ComfyUI, and the calls that tests make. arguments: more of its command line; seconds: that
    it may take to answer.
    """

    def __init__(self, base, folder, *arguments, seconds=180):
        self.base = base
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        options = {
            "--port": str(self.port),
            "--base-directory": str(base),
            "--database-url": f"sqlite:///{base}/comfy.db",
        }
        pairs = [part for option in options.items() for part in option]
        command = [sys.executable, "main.py", "--cpu", *pairs, *arguments]
        self.log = open(base / "server.log", "w")
        environment = {"OMP_NUM_THREADS": "2", **os.environ}
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=self.log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            self.wait(lambda: self.get("/system_stats"), seconds)
        except AssertionError:
            self.stop()
            raise

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return json.load(reply)

    def post(self, path, value):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                text = reply.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def wait(self, probe, seconds):
        """Poll until `probe()` gives something true; raises with the log's end when it never does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := probe():
                    return value
            except (OSError, KeyError):
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise AssertionError(f"no answer in {seconds} s; the server's log ends:\n" + self.text()[-3000:])

    def text(self):
        return (self.base / "server.log").read_text(errors="replace")

    def queue(self, prompt):
        """Queue as a page does: without a client older hosts (0.26) leave cached nodes out of the history."""
        reply = self.post("/prompt", {"prompt": prompt, "client_id": "tests"})
        assert "prompt_id" in reply and not reply.get("node_errors"), reply
        return reply["prompt_id"]

    def result(self, prompt_id, seconds=500):
        """The history entry of a prompt that has ended."""
        return self.wait(lambda: self.get(f"/history/{prompt_id}").get(prompt_id), seconds)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def workflow(name, **changes):
    """An API-format workflow with some inputs changed: n3__updates=20 is the input `updates` of node 3."""
    prompt = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for place, value in changes.items():
        node, key = place.split("__")
        prompt[node.lstrip("n")]["inputs"][key] = value
    return prompt
