"""The real host for the tests marked `comfy`: in process (`host`), and as a server over HTTP (`server`)."""

import asyncio
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

import pytest

sys.path.insert(0, str(Path(__file__).parent))       # for what the tests of this folder share

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = Path(__file__).parent / "workflows"


def link_pack(base):
    """A ComfyUI base directory whose custom_nodes holds this pack alone."""
    (base / "custom_nodes").mkdir(parents=True)
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", "tests", "demo-out", "fit-out", "*.part")
    shutil.copytree(ROOT, base / "custom_nodes" / "fewstep", ignore=ignore)
    return base / "custom_nodes" / "fewstep"


@pytest.fixture(scope="session")
def host(tmp_path_factory, comfyui_folder):
    """ComfyUI's `nodes` module in this process, on the CPU, with the pack loaded by its own `load_custom_node`."""
    sys.path.insert(0, str(comfyui_folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import folder_paths

    import nodes

    base = tmp_path_factory.mktemp("comfy")
    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    folder_paths.set_user_directory(str(base / "user"))      # trajectory caches
    folder_paths.folder_names_and_paths["loras"] = ([str(loras)], {".safetensors"})
    assert asyncio.run(nodes.load_custom_node(str(link_pack(base))))
    return nodes


class Server:
    """A running ComfyUI and the few calls that the tests make."""

    def __init__(self, base, folder):
        self.base = base
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(base),
                   "--database-url", f"sqlite:///{base}/comfy.db"]
        self.log = open(base / "server.log", "w")
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(command, cwd=folder, stdout=self.log, stderr=subprocess.STDOUT, env=environment)
        self.wait(lambda: self.get("/system_stats"), 180)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return json.load(reply)

    def post(self, path, value):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(value).encode(),
                                         {"Content-Type": "application/json"})
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
        reply = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in reply and not reply.get("node_errors"), reply
        return reply["prompt_id"]

    def result(self, prompt_id, seconds=500):
        """The history entry of a prompt that has ended."""
        return self.wait(lambda: self.get(f"/history/{prompt_id}").get(prompt_id), seconds)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory, comfyui_folder):
    base = tmp_path_factory.mktemp("server")
    link_pack(base)
    running = Server(base, comfyui_folder)
    yield running
    running.stop()


def workflow(name, **changes):
    """An API-format workflow with some inputs changed: {"3.updates": 20}."""
    prompt = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for place, value in changes.items():
        node, key = place.split("__")
        prompt[node.lstrip("n")]["inputs"][key] = value
    return prompt


@pytest.fixture(name="workflow")
def workflow_fixture():
    return workflow


@pytest.fixture
def flow(host):
    """What Load Demo Teacher gives for the flow teacher."""
    from graph import load

    return load(host, "flow")
